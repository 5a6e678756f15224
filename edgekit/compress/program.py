"""The quantized program: a torchao PT2E program that carries the ranges, learned once, for a target to lower."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekit.compress.annotate import (
    CONVOLUTIONS,
    MOVES,
    RELU,
    SUMS,
    SchemeQuantizer,
    behind,
    layer_path,
    leaves,
)
from edgekit.compress.fake_quant import ChannelWeights, LearnedRange
from edgekit.compress.pt2e import (
    FakeQuantizeBase,
    convert_pt2e,
    disable_fake_quant,
    enable_fake_quant,
    prepare_qat_pt2e,
)
from edgekit.compress.scheme import Scheme
from edgekit.models.base import DenoiserModel


@dataclass(frozen=True)
class Kernel:
    """A convolution's own parameters, by name.

    Attributes:
        weight, bias: their paths in the program's module; None without a bias.
        inputs: numbers that one output is a sum of.
    """

    weight: str
    bias: str | None
    inputs: float


@dataclass(frozen=True)
class Link:
    """A rounded tensor between convolutions, at most a ReLU before it is rounded.

    Attributes:
        name: as in `QuantizedProgram.tensors`.
        bounds: its quantizer.
        node: where that is called.
        writer: the convolution that writes the tensor.
        readers: the convolutions that read it rounded: nobody else does. Where a scheme rounds few tensors, others may
            read it as it was.
    """

    name: str
    bounds: LearnedRange
    node: Node
    writer: Node
    readers: tuple[Node, ...]


@dataclass(frozen=True)
class QuantizedLayer:
    """A convolution of the program: its module path, its weights' quantizer (None if they stay float), their number."""

    name: str
    weight: ChannelWeights | None
    weights: int


class QuantizedProgram:
    """A denoiser as an exported program with fake quantizers, callable as the model is.

    Batch, height and width are dynamic; sigma is one level an image.

    Args:
        model: the float model; it is not touched.
        scheme: the target's integers.
        sigma_range: noise range in 0..1.
    """

    def __init__(self, model: DenoiserModel, scheme: Scheme, sigma_range: tuple[float, float]) -> None:
        self.scheme = scheme
        self.sigma_range = sigma_range
        self.channels, self.stride, self.halo = model.channels, model.stride, model.halo
        self.module: GraphModule = prepare_qat_pt2e(export(model), SchemeQuantizer(scheme, sigma_range))
        # Lowest and highest noise level in 0..1 that ranges were observed at; None before that.
        self.observed: tuple[float, float] | None = None
        # How its ranges were fitted to what was observed, see `fit_ranges`.
        self.range_fit = ""
        # Whether its residual has the image's own steps, see `fit_ranges`.
        self.exact_residual = False
        # What the roundings of a layer's weights were found to add to its output, by the weights' quantizer.
        self._shifts: dict[ChannelWeights, tuple[str, Tensor]] = {}

    def __call__(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Run it: noisy float32 [N, C, H, W] in 0..1, sigma [N] in 0..1. Returns clean [N, C, H, W]."""
        result: Tensor = self.module(noisy, sigma)
        return result

    @property
    def corrected(self) -> bool:
        """Whether a bias was shifted: weights must then stay as they are."""
        return bool(self._shifts)

    @property
    def ranges(self) -> list[LearnedRange]:
        """The activation quantizers, each once, in the order of the graph."""
        return [m for m in self.module.modules() if isinstance(m, LearnedRange)]

    def residual(self) -> LearnedRange | None:
        """The quantizer of what is added to the image, or taken from it, to give the output, where one is."""
        modules = dict(self.module.named_modules(remove_duplicate=False))
        for node in self.module.graph.nodes:
            if node.target not in SUMS or not leaves(node):
                continue
            terms = [a for a in node.args[:2] if isinstance(a, Node)]
            if not any(_is_image(a) for a in terms):
                continue
            found = [modules.get(str(a.target)) for a in terms if a.op == "call_module" and not _is_image(a)]
            return next((m for m in found if isinstance(m, LearnedRange) and not m.fixed), None)
        return None

    def shift(self, quantizer: ChannelWeights, bias: str, mean: Tensor) -> None:
        """Take off a bias what the rounding of weights adds to their layer's output on average.

        Args:
            quantizer: the weights'.
            bias: the parameter's name.
            mean: what is added, [channels].
        Raises: ValueError: it was done before.
        """
        if quantizer in self._shifts:
            raise ValueError(f"{bias} was shifted before: a second mean would be of a shifted layer")
        mean = mean.to(self.module.get_parameter(bias).dtype)
        self._shifts[quantizer] = (bias, mean)
        with torch.no_grad():
            self.module.get_parameter(bias).sub_(mean)

    def shift_back(self, *quantizers: ChannelWeights) -> None:
        """Undo the `shift` of those quantizers that had one, or every one."""
        for quantizer in quantizers or tuple(self._shifts):
            if quantizer in self._shifts:
                bias, mean = self._shifts.pop(quantizer)
                with torch.no_grad():
                    self.module.get_parameter(bias).add_(mean)

    @contextmanager
    def in_float(self) -> Iterator[None]:
        """Within it nothing is quantized or corrected (ranges that still observe go on observing)."""
        with self.only():
            yield

    @contextmanager
    def only(self, *quantizers: FakeQuantizeBase) -> Iterator[None]:
        """Within it these alone quantize, and of the biases those alone are shifted that belong to them."""
        self.module.apply(disable_fake_quant)
        for quantizer in quantizers:
            enable_fake_quant(quantizer)
        kept = {}
        for quantizer, (name, mean) in self._shifts.items():
            if quantizer not in quantizers:
                bias = self.module.get_parameter(name)
                kept[name] = bias.data
                bias.data = bias.data + mean
        try:
            yield
        finally:
            for name, value in kept.items():
                self.module.get_parameter(name).data = value
            self.module.apply(enable_fake_quant)

    def tensors(self) -> list[tuple[str, LearnedRange]]:
        """The tensors that are rounded, in the order they are written, by the module that writes them.

        Left out are the image and sigma, whose integers are fixed. What a module adds up is "its path sum"; outside of
        any module it is "sum before" the convolution that reads it. Of several in one module, the later are numbered.
        """
        modules = dict(self.module.named_modules(remove_duplicate=False))
        found: dict[LearnedRange, str] = {}
        for node in self.module.graph.nodes:
            bounds = modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(bounds, LearnedRange) and not bounds.fixed and bounds not in found:
                found[bounds] = _written_by(node.args[0])
        count: Counter[str] = Counter()
        named = []
        for bounds, name in found.items():
            count[name] += 1
            named.append((name if count[name] == 1 else f"{name} ({count[name]})", bounds))
        return named

    def links(self) -> list[Link]:
        """The tensors that one convolution writes and only convolutions read, in the order they are written."""
        named = {bounds: name for name, bounds in self.tensors()}
        modules = dict(self.module.named_modules(remove_duplicate=False))
        found: dict[LearnedRange, Link] = {}
        for node in self.module.graph.nodes:
            bounds = modules.get(str(node.target)) if node.op == "call_module" else None
            if not isinstance(bounds, LearnedRange) or bounds not in named:
                continue
            writer = behind(node)
            writer = behind(writer.args[0]) if writer.target in RELU else writer  # type: ignore[arg-type]
            readers = tuple(node.users)
            if all(end.target in CONVOLUTIONS for end in (writer, *readers)):
                found[bounds] = Link(named[bounds], bounds, node, writer, readers)
        return list(found.values())

    def between(self) -> dict[str, frozenset[str]]:
        """By name, the tensors of `links` that may stay in float, and the paths of the convolutions at their ends."""
        ends = {link.name: (link.writer, *link.readers) for link in self.links()}
        # The last convolution stays in integers: the image leaves as 8 bits.
        return {
            name: frozenset(layer_path(end) for end in nodes)
            for name, nodes in ends.items()
            if not any(leaves(end) for end in nodes)
        }

    def layers(self) -> list[QuantizedLayer]:
        """The convolutions in the order they run."""
        return [
            QuantizedLayer(layer_path(node), self.quantizer(node), behind(node.args[1]).meta["val"].numel())
            for node in self.module.graph.nodes
            if node.op == "call_function" and node.target in CONVOLUTIONS
        ]

    def quantizer(self, convolution: Node) -> ChannelWeights | None:
        """The quantizer of a convolution's weights; None where they stay float."""
        read = convolution.args[1]
        assert isinstance(read, Node)
        # `get_submodule` finds a module that has several names by each of them.
        found = self.module.get_submodule(str(read.target)) if read.op == "call_module" else None
        return found if isinstance(found, ChannelWeights) else None

    def kernels(self) -> list[Kernel]:
        """The convolutions' parameters, each once, in the order they run; fixed kernels are left out."""
        found: dict[str, Kernel] = {}
        for node in self.module.graph.nodes:
            if node.op != "call_function" or node.target not in CONVOLUTIONS:
                continue
            name, own = self.named(node)
            shape = behind(node.args[1]).meta["val"].shape
            inputs = shape[1] * shape[2] * shape[3]
            if CONVOLUTIONS[node.target] == 1:
                # [in, out / groups, h, w]: of its taps an output sees those that its place in the stride leaves.
                stride = node.args[3] if len(node.args) > 3 else [1, 1]
                groups = node.args[6] if len(node.args) > 6 else 1
                inputs = shape[0] // groups * shape[2] * shape[3] / (stride[0] * stride[1])
            if name is not None:
                found.setdefault(name, Kernel(name, own, float(inputs)))
        return list(found.values())

    def named(self, convolution: Node) -> tuple[str | None, str | None]:
        """The names of a convolution's weight and bias, as `parameter` has them."""
        read, bias = convolution.args[1], convolution.args[2] if len(convolution.args) > 2 else None
        assert isinstance(read, Node)
        return self.parameter(read), self.parameter(bias) if isinstance(bias, Node) else None

    def parameter(self, node: Node) -> str | None:
        """The name of the parameter that a node reads, rounded or not; None where it is another tensor.

        What several layers share has one name, as in `module.named_parameters()`.
        """
        source = behind(node)
        if source.op != "get_attr":
            return None
        # Of a shared parameter a graph may know another name.
        everything = dict(self.module.named_parameters(remove_duplicate=False))
        read = everything.get(str(source.target))
        return next((name for name, p in self.module.named_parameters() if p is read), None)

    def converted(self, *, fold: bool = False) -> GraphModule:
        """The program with quantize and dequantize operators, ready to lower.

        Args:
            fold: store the weights as integers; otherwise they are float32 and quantized in the graph, as litert-torch
                expects them.
        """
        with warnings.catch_warnings():
            # torchao still asks torch for a spelling that torch deprecates.
            warnings.simplefilter("ignore", FutureWarning)
            result: GraphModule = convert_pt2e(copy.deepcopy(self.module), fold_quantize=fold)
        return result


def _is_image(node: Node) -> bool:
    """Whether a value is the image that enters the network, quantized or not, its pixels moved or not."""
    source = behind(node)
    while source.target in MOVES and isinstance(source.args[0], Node):
        source = behind(source.args[0])
    return source is next(n for n in source.graph.nodes if n.op == "placeholder")


def _written_by(node: Node) -> str:
    """The path of the module that a tensor comes from, by its weights where it has any."""
    source = behind(node)
    # A ReLU, and what only moves values, belongs to the convolution in front.
    while source.target in RELU or source.target in MOVES:
        before = source.args[0]
        assert isinstance(before, Node)
        source = behind(before)
    if source.target in CONVOLUTIONS:
        return layer_path(source)
    stack = list((source.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    stem = source.name.rstrip("_0123456789")
    number = source.name.removeprefix(stem).strip("_")
    kind = {"add": "sum", "sub": "difference"}.get(stem, stem)
    if path:
        return f"{path} {kind}"
    reader = next((layer_path(user) for user in _readers(source) if user.target in CONVOLUTIONS), "")
    return f"{kind} before {reader}" if reader else f"{kind} {number}".strip()


def _readers(node: Node) -> list[Node]:
    """Who reads a tensor, behind its quantizer."""
    return [reader for user in node.users for reader in (user.users if user.op == "call_module" else [user])]


def export(model: DenoiserModel) -> GraphModule:
    """Export a model with dynamic batch, height and width and a scalar sigma per image."""
    # The sample decides nothing but that height and width differ and neither is 1.
    side = 8 * model.stride
    noisy, sigma = torch.rand(2, model.channels, side, side + model.stride), torch.rand(2)
    free = torch.export.Dim.AUTO
    shapes = {"noisy": {0: free, 2: free, 3: free}, "sigma": {0: free}}
    # What is frozen outside - an average of weights is - would not learn here, and nothing would say so.
    module = copy.deepcopy(model).eval().requires_grad_(True)
    program = torch.export.export(module, (noisy, sigma), dynamic_shapes=shapes)
    graph = program.module()
    if not isinstance(graph, GraphModule):
        raise TypeError(f"torch.export gave {type(graph).__name__}, expected a GraphModule")
    return graph
