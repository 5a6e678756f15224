"""Which tensors of an exported program are quantized, and which share a scale, by a target's scheme."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.block_order import block_first
from edgekit.compress.fake_quant import ChannelWeights, LearnedRange, Pairs
from edgekit.compress.pt2e import QuantizationAnnotation, QuantizationSpec, Quantizer, SharedQuantizationSpec
from edgekit.compress.scheme import Scheme
from edgekit.errors import RecipeError

# By operator, the axis of the weight that counts output channels.
CONVOLUTIONS = {torch.ops.aten.conv2d.default: 0, torch.ops.aten.conv_transpose2d.input: 1}
RELU = {torch.ops.aten.relu.default, torch.ops.aten.relu_.default}
_ADDITIONS = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
SUMS = {*_ADDITIONS, torch.ops.aten.sub.Tensor, torch.ops.aten.sub_.Tensor}
_ARITHMETIC = {*SUMS, torch.ops.aten.mul.Tensor}
# Curves that an integer runtime reads from a table or computes as it does a ReLU.
_CURVES = {
    torch.ops.aten.leaky_relu.default,
    torch.ops.aten.prelu.default,
    torch.ops.aten.hardswish.default,
    torch.ops.aten.clamp.default,
    torch.ops.aten.hardtanh.default,
}
# Bounds that TFLite's pools can have built in.
_BUILT_IN = {(0.0, 6.0), (-1.0, 1.0)}
# Those whose result spans what it always does: TFLite accepts no other scales than 1/256 and 1/128 for them.
_BOUNDED = {
    torch.ops.aten.sigmoid.default: (0.0, 255 / 256),
    torch.ops.aten.tanh.default: (-1.0, 127 / 128),
}
_JOINS = {torch.ops.aten.cat.default}
# Those after which an exporter may number the channels anew.
_REORDERED = {
    torch.ops.aten.pixel_unshuffle.default,
    torch.ops.aten.permute.default,
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
}
# Operators that only move values, or choose among them: their output is the input's integers.
MOVES = {
    torch.ops.aten.pixel_shuffle.default,
    torch.ops.aten.pixel_unshuffle.default,
    torch.ops.aten.permute.default,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.pad.default,
    torch.ops.aten.max_pool2d.default,
    torch.ops.aten.upsample_nearest2d.vec,
}


def _activation(scheme: Scheme, fixed: tuple[float, float] | None = None) -> QuantizationSpec:
    symmetric = scheme.symmetric_activations
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127 if symmetric else -128,
        quant_max=127,
        qscheme=torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=LearnedRange.with_args(symmetric=symmetric, fixed=fixed),
    )


def _weights(scheme: Scheme, convolution: Node) -> QuantizationSpec:
    axis = CONVOLUTIONS[convolution.target]  # type: ignore[index]
    bits, pairs = _without_saturation(convolution) if scheme.paired else (scheme.weight_bits, None)
    peak = 2 ** (bits - 1) - 1
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-peak,
        quant_max=peak,
        qscheme=torch.per_channel_symmetric,
        ch_axis=axis,
        is_dynamic=False,
        observer_or_fake_quant_ctr=ChannelWeights.with_args(bits=bits, axis=axis, pairs=pairs),
    )


def _without_saturation(convolution: Node) -> tuple[int, Pairs | None]:
    """Bits of a layer's weights, and which of its inputs kernels may take two by two, None if they take each alone: as
    oneDNN's int8 convolutions were found to (tests/targets/test_openvino_saturation.py).
    """
    weight = _node(convolution.args[1]).meta["val"]
    groups = convolution.args[6] if len(convolution.args) > 6 else 1
    inputs = weight.shape[1]
    if convolution.target is torch.ops.aten.conv2d.default and inputs == 1 and groups == weight.shape[0]:
        return 8, None  # depthwise
    # Numbers of channels that fours do not divide are padded, or run on into the next tap.
    if convolution.target is not torch.ops.aten.conv2d.default or inputs % 4:
        return 7, None
    source = _node(convolution.args[0])
    as_here = tuple(range(inputs))
    if source.target is torch.ops.aten.pixel_unshuffle.default:
        # It becomes SpaceToDepth, which counts the place in the block first, if only convolutions read it
        # (targets/onnx_layout.py).
        renumbered = tuple(block_first(inputs, int(source.args[1])).tolist())  # type: ignore[arg-type]
        return 8, (renumbered,) if all(user.target in CONVOLUTIONS for user in source.users) else (as_here, renumbered)
    while source.target in MOVES:
        # What else moves channels may be written in ways that number them anew.
        if source.target in _REORDERED:
            return 8, "any"
        source = _node(source.args[0])
    return 8, (as_here,)


class SchemeQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates a program for a scheme.

    Args:
        scheme: the target's.
        sigma_range: noise range in 0..1; the integers of sigma span 0 to its upper end: of the input where that is
            quantized, else, of a symmetric scheme, where a convolution reads it.
    """

    def __init__(self, scheme: Scheme, sigma_range: tuple[float, float]) -> None:
        super().__init__()
        self.scheme = scheme
        self.sigma_high = max(sigma_range[1], 1 / 255)

    def annotate(self, model: GraphModule) -> GraphModule:
        activation = _activation(self.scheme)
        image = _activation(self.scheme, fixed=(0.0, 1.0))
        placeholders = [n for n in model.graph.nodes if n.op == "placeholder"]
        for node in model.graph.nodes:
            if node.op == "placeholder" and self.scheme.quantized_io:
                spec = image if node is placeholders[0] else _activation(self.scheme, fixed=(0.0, self.sigma_high))
                node.meta["quantization_annotation"] = QuantizationAnnotation(output_qspec=spec, _annotated=True)
            elif node.op == "call_function":
                self._operator(node, activation, image)
        return model

    def _operator(self, node: Node, activation: QuantizationSpec, image: QuantizationSpec) -> None:
        every = self.scheme.every_tensor
        output = image if leaves(node) and self.scheme.quantized_io else activation
        inputs: dict[Node, Any] = {}
        if node.target in CONVOLUTIONS:
            if self._is_wide(node):
                if leaves(node):
                    raise RecipeError(
                        f"layer {layer_path(node)!r} writes the image, which leaves as 8 bits: it cannot stay in "
                        "float; leave it out of quantization.wide"
                    )
                return
            weights = _weights(self.scheme, node)
            inputs = {_node(node.args[0]): self._read(node, activation), _node(node.args[1]): weights}
            result = output if every and not self._stays_float(node) and not _only_relu_reads(node) else None
        elif not every and node.target not in _ADDITIONS:
            return
        elif node.target in RELU and self._is_wide(_node(node.args[0])) and all(self._is_wide(u) for u in node.users):
            return  # between two layers that stay float
        elif node.target in RELU or node.target in _CURVES:
            source = _node(node.args[0])
            built_in = node.target in RELU or tuple(node.args[1:]) in _BUILT_IN
            if built_in and source.target is torch.ops.aten.max_pool2d.default:
                # TFLite's converter makes one operator of both, and a pool's output is its input's integers.
                inputs, result = {source: activation}, SharedQuantizationSpec((source, node))
            else:
                inputs, result = {} if node.target in RELU else {source: activation}, output
        elif node.target in _BOUNDED:
            inputs = {_node(node.args[0]): activation}
            result = _activation(self.scheme, fixed=_BOUNDED[node.target])
        elif node.target in _ARITHMETIC and all(isinstance(a, Node) for a in node.args[:2]):
            terms = [_node(a) for a in node.args[:2]]
            rounded = [a for a in terms if node.target not in SUMS or not self._stays_float(a)]
            if not every and not (len(rounded) == 1 and not _is_vector(rounded[0]) and any(map(_is_branch, terms))):
                return
            inputs = dict.fromkeys(rounded, activation)
            result = output if every and not (node.target in SUMS and _only_relu_reads(node)) else None
        elif node.target in _JOINS:
            self._join(node, activation)
            return
        elif self._stays_float(node):
            return
        elif node.target in MOVES and isinstance(node.args[0], Node):
            inputs = {node.args[0]: activation}
            result = SharedQuantizationSpec((node.args[0], node))
        else:
            return
        inputs = {source: self._spec_of(source, spec) for source, spec in inputs.items()}
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=result, _annotated=True
        )

    def _read(self, convolution: Node, default: QuantizationSpec) -> QuantizationSpec:
        """How a convolution reads its input. Where that is sigma, which enters in float, a range that follows what was
        observed would cut the highest levels: no random level reaches the end.
        """
        if self.scheme.symmetric_activations and not self.scheme.quantized_io and _is_level(_node(convolution.args[0])):
            return _activation(self.scheme, fixed=(0.0, self.sigma_high))
        return default

    def _join(self, node: Node, default: QuantizationSpec) -> None:
        """Give what is concatenated one scale, that of the first: an integer runtime then copies bytes.

        An image's scale is fixed, and would be forced on the others: such a join is left to the converter.
        """
        parts = node.args[0]
        assert isinstance(parts, list | tuple)
        first, *others = (_node(part) for part in parts)
        specs = [self._spec_of(part, default) for part in (first, *others)]
        if any(_is_fixed(spec) for spec in specs):
            return
        shared = SharedQuantizationSpec((first, node))
        inputs = {first: specs[0], **{part: shared for part in others if part is not first}}
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=inputs, output_qspec=shared, _annotated=True
        )

    def _stays_float(self, node: Node) -> bool:
        """Whether a tensor is a term of a sum that the scheme leaves in float: a convolution's output, its pixels moved
        or not, that only goes into it - of two such terms the second is rounded -, a constant, or an image that enters
        in float.
        """
        if node.op == "placeholder":
            return not self.scheme.quantized_io
        if not self.scheme.float_terms:
            return False
        if node.op == "get_attr":
            return True
        if not _is_branch(node):
            return False
        user = next(iter(node.users))
        if user.target in MOVES:
            return self._stays_float(user)
        branches = [a for a in user.args[:2] if isinstance(a, Node) and _is_branch(a) and not _is_vector(a)]
        return user.target in SUMS and len(user.all_input_nodes) == 2 and branches[:1] == [node]

    def _is_wide(self, node: Node) -> bool:
        """Whether a node is a convolution that stays in float."""
        return node.target in CONVOLUTIONS and layer_path(node) in self.scheme.wide

    def _spec_of(self, source: Node, default: Any) -> Any:
        """A tensor has one scale: what its producer was given, if it was given one."""
        if not self.scheme.every_tensor or source.op == "get_attr":
            return default
        annotation = source.meta.get("quantization_annotation")
        return default if annotation is None or annotation.output_qspec is None else annotation.output_qspec

    def validate(self, model: GraphModule) -> None:
        """Nothing to refuse: what is not annotated stays float, and the layer report says so."""


def _is_level(node: Node) -> bool:
    """Whether a value is the noise level that enters the network, at most with axes added."""
    while node.target in MOVES and isinstance(node.args[0], Node):
        node = node.args[0]
    placeholders = [n for n in node.graph.nodes if n.op == "placeholder"]
    return node in placeholders[1:]


def _is_fixed(spec: Any) -> bool:
    """Whether a tensor's range is given, as an image's is; looked up where it shares another's."""
    while isinstance(spec, SharedQuantizationSpec):
        source = spec.edge_or_node[0] if isinstance(spec.edge_or_node, tuple) else spec.edge_or_node
        annotation = source.meta.get("quantization_annotation")
        spec = annotation.output_qspec if annotation is not None else None
    maker = getattr(spec, "observer_or_fake_quant_ctr", None)
    return maker is not None and maker.p.keywords.get("fixed") is not None


def _only_relu_reads(node: Node) -> bool:
    """Whether a value is rounded behind a ReLU, which every runtime computes with what writes it."""
    return len(node.users) == 1 and next(iter(node.users)).target in RELU


def _is_vector(node: Node) -> bool:
    """Whether a value is one number a channel, as a bias that depends on sigma is."""
    return all(isinstance(size, int) and size == 1 for size in node.meta["val"].shape[2:])


def _is_branch(node: Node) -> bool:
    """Whether a value is a convolution's output, its pixels moved or not, with one reader."""
    if len(node.users) != 1:
        return False
    moved = node.target in MOVES and isinstance(node.args[0], Node)
    return _is_branch(_node(node.args[0])) if moved else node.target in CONVOLUTIONS


def leaves(node: Node) -> bool:
    """Whether a value is the image that leaves the network, as it is, rounded, or with its pixels moved."""
    return any(
        user.op == "output" or ((user.op == "call_module" or user.target in MOVES) and leaves(user))
        for user in node.users
    )


def behind(node: Node) -> Node:
    """What a fake quantizer reads; any other node as it is."""
    return _node(node.args[0]) if node.op == "call_module" else node


def layer_path(convolution: Node) -> str:
    """The module path of a convolution, its weights quantized already or not."""
    return str(behind(_node(convolution.args[1])).target).removesuffix(".weight")


def _node(value: Any) -> Node:
    if not isinstance(value, Node):
        raise TypeError(f"expected a graph node, found {type(value).__name__}")
    return value
