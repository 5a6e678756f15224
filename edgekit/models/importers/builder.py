"""What every importer does: note operators and weights, make the model, and hold it against the original."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgekit.errors import CheckpointError, ShapeError, first_line
from edgekit.models.graph import IMAGE, LEVEL, OPERATORS, GraphModel

Array = NDArray[Any]
# Largest difference between the original's output and the model's, over the output's largest value where that is above
# 1: two ways of adding float32 numbers differ by less, another operator by more.
_TOLERANCE = 1e-4
# Noise levels in 0..1 that both are run at.
_LEVELS = (5 / 255, 50 / 255)
# What a layer may not be called: torch keeps layers beside the methods of what holds them.
_METHODS = frozenset(dir(nn.ModuleDict()))


# Dense layers, and what leads to them, in ONNX and TFLite.
_WHOLE = re.compile(r"FULLY_CONNECTED|BATCH_MATMUL|Gemm|MatMul|Flatten|Global|MEAN|ReduceMean")
# What exporters and users call the noise level.
_LEVEL_NAMES = re.compile(r"sigma|level|std|strength|map", re.IGNORECASE)


def names_level(name: str) -> bool:
    """Whether an input's name speaks of the noise level; of two inputs of one shape, that is the other one."""
    return _LEVEL_NAMES.search(name) is not None


class Builder:
    """Collects the operators of one file.

    Args:
        path: the file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nodes: list[dict[str, Any]] = []
        self._weights: dict[str, Array] = {}

    def add(self, op: str, hint: str, inputs: Sequence[str], **settings: Any) -> str:
        """Append an operator; returns the name of what it gives. `hint` is what the file calls it."""
        name = self._unique(hint or op)
        self.nodes.append({"op": op, "name": name, "inputs": list(inputs), **settings})
        return name

    def constant(self, value: Array) -> str:
        """A number, or one a channel; float32 [] or [1, C, 1, 1]."""
        name = self.add("const", f"constant_{len(self.nodes)}", [], shape=list(value.shape))
        self._weights[f"constants.{name}"] = value
        return name

    def convolution(
        self,
        op: str,
        hint: str,
        source: str,
        weight: Array,
        bias: Array | None,
        *,
        stride: Sequence[int],
        pad: Sequence[int],
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        **settings: Any,
    ) -> str:
        """Append a layer.

        Args:
            op: "conv" or "conv_transpose".
            weight: as torch has it, [out, in/groups, H, W], or [in, out/groups, H, W] for "conv_transpose".
            pad: pixels [left, right, top, bottom]: added before a "conv", cut off after a "conv_transpose".
        """
        if op == "conv_transpose":
            more = settings.setdefault("more", [0, 0])
            for axis, cut in ((0, pad[2] + pad[3]), (1, pad[0] + pad[1])):
                step = stride[axis]
                extra = (weight.shape[2 + axis] - 1) * dilation[axis] + 1 - cut + more[axis] - step
                if extra:
                    raise self.refuse(op, f"of n pixels it makes {step}n{extra:+}: exactly {step}n is read")
            if groups == 1 and tuple(dilation) == (1, 1):
                return self._subpixel(hint, source, weight, bias, stride, pad)
        first, second = weight.shape[0], weight.shape[1] * groups
        into, out = (first, second) if op == "conv_transpose" else (second, first)
        if op == "conv_transpose" and (pad[0] != pad[1] or pad[2] != pad[3]):
            settings["trim"], pad = list(pad), (0, 0, 0, 0)
        name = self.add(
            op,
            hint,
            [source],
            **{"in": into, "out": out, "kernel": list(weight.shape[2:]), "stride": list(stride), "pad": list(pad)},
            dilation=list(dilation),
            groups=groups,
            bias=bias is not None,
            **settings,
        )
        self._weights[f"layers.{name}.weight"] = weight
        if bias is not None:
            self._weights[f"layers.{name}.bias"] = bias
        return name

    def _subpixel(
        self, hint: str, source: str, weight: Array, bias: Array | None, stride: Sequence[int], pad: Sequence[int]
    ) -> str:
        """A transposed convolution as the same sums in another order: a convolution of the small image whose channels
        are then moved to pixels (Shi et al. 2016, arXiv:1609.07009).

        The converters for LiteRT and OpenVINO leave transposed convolutions in float; this one they take as integers.
        """
        if stride[0] != stride[1]:
            raise self.refuse("conv_transpose", f"strides {list(stride)}: the same along height and width is allowed")
        step, cut = stride[0], (pad[2], pad[0])
        # Pixel step*m + r of the output reads pixel m + d of the input through entry r + cut - d*step of the kernel.
        first = [-((size - 1 - before) // step) for before, size in zip(cut, weight.shape[2:], strict=True)]
        last = [(step - 1 + before) // step for before in cut]
        into, out = weight.shape[:2]
        spread = np.zeros((out, step, step, into, last[0] - first[0] + 1, last[1] - first[1] + 1), np.float32)
        for row, column in np.ndindex(step, step):
            for down, right in np.ndindex(spread.shape[4:]):
                at = (row + cut[0] - (down + first[0]) * step, column + cut[1] - (right + first[1]) * step)
                if all(0 <= entry < size for entry, size in zip(at, weight.shape[2:], strict=True)):
                    spread[:, row, column, :, down, right] = weight[:, :, at[0], at[1]].T
        cells = self.convolution(
            "conv",
            hint,
            source,
            spread.reshape(-1, *spread.shape[3:]),
            None if bias is None else np.repeat(bias, step * step),
            stride=(1, 1),
            pad=(-first[1], last[1], -first[0], last[0]),
        )
        return cells if step == 1 else self.add("depth_to_space", hint, [cells], block=step, order="channel")

    def slopes(self, hint: str, source: str, slopes: Array) -> str:
        """Append a PReLU with one slope, or one a channel."""
        name = self.add("prelu", hint, [source], slopes=slopes.size)
        self._weights[f"layers.{name}.weight"] = slopes.reshape(-1)
        return name

    def refuse(self, op: str, why: str = "it cannot be taken over") -> CheckpointError:
        """The error for an operator that cannot be taken over."""
        if _WHOLE.search(op):
            why = "it sees the whole image at once, which cannot work in tiles: replace it by convolutions"
        known = ", ".join(sorted((*OPERATORS, "conv", "conv_transpose", "prelu")))
        return CheckpointError(f"{self.path}: operator {op}: {why}. What can be read: {known}")

    def model(self, channels: int, level: str, origin: str) -> GraphModel:
        """The model with its weights, in eval mode. Raises: CheckpointError: it is no denoiser."""
        self._activate_before_shuffles()
        # TFLite gives these a scale of their own, and an image leaves at 1/255. In float this changes nothing.
        lowest = {"sigmoid": 0.0, "tanh": -1.0}
        if self.nodes and self.nodes[-1]["op"] in lowest:
            last = self.nodes[-1]
            self.add("clip", "clean", [last["name"]], low=lowest[last["op"]], high=1.0)
        try:
            model = GraphModel(channels=channels, nodes=self.nodes, level=level, origin=origin)
        except ShapeError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        state = {name: torch.tensor(np.asarray(value, np.float32)) for name, value in self._weights.items()}
        model.load_state_dict(state)
        bad = [name for name, value in state.items() if not torch.isfinite(value).all()]
        if bad:
            raise CheckpointError(f"{self.path}: {', '.join(bad[:3])} hold NaN or infinity: export the network again")
        return model.eval()

    def _activate_before_shuffles(self) -> None:
        """Move an activation in front of the pixel-shuffle that it follows: there, a convolution takes it in."""
        for shuffle in [node for node in self.nodes if node["op"] == "depth_to_space"]:
            readers = [node for node in self.nodes if shuffle["name"] in node["inputs"]]
            if len(readers) != 1 or readers[0]["op"] not in ("relu", "leaky_relu", "clip"):
                continue
            activation = readers[0]
            for node in self.nodes:
                node["inputs"] = [shuffle["name"] if n == activation["name"] else n for n in node["inputs"]]
            activation["inputs"], shuffle["inputs"] = shuffle["inputs"], [activation["name"]]
            at = self.nodes.index(activation)
            self.nodes.remove(shuffle)
            self.nodes.insert(at, shuffle)

    def _unique(self, hint: str) -> str:
        # Module names have no dots; a letter first.
        stem = re.sub(r"\W+", "_", hint).strip("_") or "node"
        stem = stem if stem[0].isalpha() else f"n{stem}"
        taken = {node["name"] for node in self.nodes} | {IMAGE, LEVEL} | _METHODS
        numbered = (f"{stem}_{i}" for i in itertools.count(2))
        return next(name for name in itertools.chain([stem], numbered) if name not in taken)


def hold_against(
    model: GraphModel, original: Callable[[Array, float], Array], side: tuple[int, int], path: Path
) -> None:
    """Run both on the same noise.

    Args:
        original: noisy float32 [1, C, H, W] and sigma, both in 0..1 -> what the file's own library gives, [1, C, H, W].
        side: H and W.
    Raises: CheckpointError: sizes or values differ.
    """
    if any(size % model.stride for size in side):
        raise CheckpointError(
            f"{path} takes images of {side[0]}x{side[1]}, which is no multiple of its strides' {model.stride}: what it "
            "crops and pads on its way fits that size alone; export it for a size that is"
        )
    rng = np.random.default_rng(0)
    for sigma in _LEVELS:
        noisy = rng.random((1, model.channels, *side), np.float32)
        expected = original(noisy, sigma)
        if expected.shape != noisy.shape:
            raise CheckpointError(
                f"{path}: an image {side[0]}x{side[1]}x{model.channels} comes out as "
                f"{'x'.join(str(n) for n in (*expected.shape[2:], expected.shape[1]))}: a denoiser keeps the size; pad "
                "its convolutions (padding 'same')"
            )
        try:
            with torch.no_grad():
                found = model(torch.from_numpy(noisy), torch.tensor([sigma])).numpy()
                # Another size shows what fits that of the file alone.
                other = (side[0] + model.stride, side[1] + 2 * model.stride)
                wider = model(torch.zeros(1, model.channels, *other), torch.tensor([sigma]))
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: what was read cannot be run on images of any size ({first_line(error)}); please "
                "report it with the file"
            ) from error
        if wider.shape[2:] != other:
            raise CheckpointError(
                f"{path}: an image of {other[0]}x{other[1]} comes out as {wider.shape[2]}x{wider.shape[3]}: its sizes "
                f"fit {side[0]}x{side[1]} alone; export it for another size, or with free height and width"
            )
        difference = float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))
        if not difference <= _TOLERANCE:
            raise CheckpointError(
                f"{path}: as read it differs from the original by {difference:.2g} (allowed {_TOLERANCE:g}) on the "
                "same input: one of its operators means something else there; please report it with the file"
            )
