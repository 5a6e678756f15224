"""graph: a user's own network, read from a file as a list of operators and run, pruned and quantized like any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import ShapeError, UnknownNameError
from edgekit.models.base import DenoiserModel
from edgekit.models.reach import reach
from edgekit.models.registry import register

# Values that no node makes: the image, and the noise level as the network wants it.
IMAGE, LEVEL = "noisy", "sigma"
# How the noise level enters: not at all, as [N, 1, 1, 1], as a map [N, 1, H, W], or as the image's last channel.
LEVELS = ("none", "scalar", "map", "channel")
_LAYERS = {"conv": nn.Conv2d, "conv_transpose": nn.ConvTranspose2d}


@register({})
class GraphModel(DenoiserModel):
    """Operators in the order they run, each a mapping with `op`, `name`, `inputs` and the operator's own settings.

    Everything is [N, C, H, W]. `importers` write such lists from files; `OPERATORS` and the layers conv,
    conv_transpose, prelu and const are what one may hold.

    Args:
        channels: of the image, 1 or 3.
        nodes: the operators; `inputs` are names of earlier nodes, "noisy" and "sigma".
        level: how the noise level enters, one of `LEVELS`.
        origin: what the network was read from, for reports.
    Raises: ShapeError; UnknownNameError: no such operator.
    """

    arch = "graph"
    source = "the user's own network, read from a file"

    def __init__(self, *, channels: int, nodes: Sequence[Mapping[str, Any]], level: str, origin: str = "") -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ShapeError(f"the image has {channels} channels: expected 1 (gray) or 3 (RGB)")
        if level not in LEVELS:
            raise ShapeError(f"level {level!r}: expected one of {', '.join(LEVELS)}")
        self.channels = channels
        self.level = level
        self.origin = origin
        self.blind = level == "none"
        self.nodes = [dict(node) for node in nodes]
        known = {*OPERATORS, *_LAYERS, "prelu", "const"}
        if unknown := next((n["op"] for n in self.nodes if n["op"] not in known), None):
            raise UnknownNameError.unknown("operator", unknown, known)
        self.layers = nn.ModuleDict({n["name"]: _layer(n) for n in self.nodes if n["op"] in (*_LAYERS, "prelu")})
        self.constants = nn.ParameterDict(
            {n["name"]: nn.Parameter(torch.zeros(n["shape"])) for n in self.nodes if n["op"] == "const"}
        )
        self.stride, self._halo = reach(self.nodes, mapped=level == "map")

    @property
    def halo(self) -> int:
        return self._halo

    def config(self) -> dict[str, Any]:
        # Widths are those of the weights: pruning changes them.
        nodes = [{**node, **self._widths(node["name"])} for node in self.nodes]
        return {"channels": self.channels, "nodes": nodes, "level": self.level, "origin": self.origin}

    def _widths(self, name: str) -> dict[str, Any]:
        if name in self.constants:
            return {"shape": list(self.constants[name].shape)}
        if name not in self.layers:
            return {}
        layer = self.layers[name]
        if isinstance(layer, nn.PReLU):
            return {"slopes": layer.num_parameters}
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        return {"in": layer.in_channels, "out": layer.out_channels, "groups": layer.groups}

    def _validate(self, noisy: Tensor, sigma: Tensor) -> None:
        super()._validate(noisy, sigma)
        if self.level == "scalar" and sigma.dim() == 4:
            raise ShapeError(f"sigma map is {tuple(sigma.shape)}: this network takes one level an image, expected [N]")

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        if self.level in ("map", "channel"):
            sigma = sigma.expand(noisy.shape[0], 1, noisy.shape[2], noisy.shape[3])
        values = {IMAGE: torch.cat((noisy, sigma), 1) if self.level == "channel" else noisy, LEVEL: sigma}
        result = noisy
        for node in self.nodes:
            name, op = node["name"], node["op"]
            sources = [values[source] for source in node["inputs"]]
            if op in _LAYERS:
                result = self.layers[name](_padded(sources[0], node))
                if any(trim := node.get("trim", ())):
                    result = F.pad(result, [-side for side in trim])
            elif op == "prelu":
                result = self.layers[name](sources[0])
            elif op == "const":
                result = self.constants[name]
            else:
                result = OPERATORS[op](node, *sources)
            values[name] = result
        return result


def _layer(node: Mapping[str, Any]) -> nn.Module:
    if node["op"] == "prelu":
        return nn.PReLU(node["slopes"])
    more = {"output_padding": tuple(node["more"])} if node["op"] == "conv_transpose" else {}
    layer: nn.Module = _LAYERS[node["op"]](
        node["in"],
        node["out"],
        tuple(node["kernel"]),
        stride=tuple(node["stride"]),
        padding=_symmetric(node["pad"]) or 0,
        dilation=tuple(node["dilation"]),
        groups=node["groups"],
        bias=node["bias"],
        **more,
    )
    return layer


def _symmetric(pad: Sequence[int]) -> tuple[int, int] | None:
    """The padding (height, width) that a convolution does itself, from [left, right, top, bottom]."""
    left, right, top, bottom = pad
    return (top, left) if left == right and top == bottom else None


def _padded(x: Tensor, node: Mapping[str, Any]) -> Tensor:
    return x if _symmetric(node["pad"]) is not None else F.pad(x, node["pad"])


def _avg_pool(node: Mapping[str, Any], x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, node["pad"]) if any(node["pad"]) else x, node["kernel"], node["stride"])


def _max_pool(node: Mapping[str, Any], x: Tensor) -> Tensor:
    pad, kernel = node["pad"], node["kernel"]
    own = _symmetric(pad)
    if own is not None and all(2 * side <= size for side, size in zip(own, kernel, strict=True)):
        return F.max_pool2d(x, kernel, node["stride"], own)
    # The edge again: it stands in every window that reaches outside, and unlike -inf it has a scale.
    return F.max_pool2d(F.pad(x, pad, mode="replicate"), kernel, node["stride"])


def _upsample(node: Mapping[str, Any], x: Tensor) -> Tensor:
    rows, columns = node["factor"]
    if node["mode"] == "bilinear":
        return F.interpolate(x, scale_factor=(float(rows), float(columns)), mode="bilinear", align_corners=False)
    return F.interpolate(x, scale_factor=(float(rows), float(columns)), mode="nearest")


def _slice(node: Mapping[str, Any], x: Tensor) -> Tensor:
    return x[:, node["start"] : node["stop"]]


def _depth_to_space(node: Mapping[str, Any], x: Tensor) -> Tensor:
    block = node["block"]
    if node["order"] == "channel":
        return F.pixel_shuffle(x, block)
    # The block's place is the slow part of the channel's number: TensorFlow's order, ONNX's DCR.
    count, channels, height, width = x.shape
    channels //= block * block
    cells = x.reshape(count, block, block, channels, height, width).permute(0, 3, 4, 1, 5, 2)
    return cells.reshape(count, channels, height * block, width * block)


def _space_to_depth(node: Mapping[str, Any], x: Tensor) -> Tensor:
    block = node["block"]
    if node["order"] == "channel":
        return F.pixel_unshuffle(x, block)
    count, channels, height, width = x.shape
    cells = x.reshape(count, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return cells.reshape(count, block * block * channels, height // block, width // block)


# What an operator computes, given its node and its inputs; sizes never change but by a factor that the node names.
OPERATORS: dict[str, Callable[..., Tensor]] = {
    "relu": lambda node, x: F.relu(x),
    "leaky_relu": lambda node, x: F.leaky_relu(x, node["slope"]),
    "elu": lambda node, x: F.elu(x, node["alpha"]),
    "sigmoid": lambda node, x: torch.sigmoid(x),
    "tanh": lambda node, x: torch.tanh(x),
    "hardswish": lambda node, x: F.hardswish(x),
    "clip": lambda node, x: torch.clamp(x, node["low"], node["high"]),
    "add": lambda node, a, b: a + b,
    "sub": lambda node, a, b: a - b,
    "mul": lambda node, a, b: a * b,
    "div": lambda node, a, b: a / b,
    "expand": lambda node, x, like: x.expand(-1, -1, *like.shape[2:]),
    "concat": lambda node, *parts: torch.cat(parts, 1),
    "slice": _slice,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "upsample": _upsample,
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
    "pad": lambda node, x: F.pad(x, node["pad"], mode=node["mode"]),
}
