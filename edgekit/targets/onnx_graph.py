"""Writing a float model or a quantized program as ONNX, dynamic in batch, height and width, and reading it back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.bundle.manifest import LayerReport, TensorSpec
from edgekit.errors import ExportError, first_line
from edgekit.models.base import DenoiserModel
from edgekit.models.complexity import layer_macs
from edgekit.quiet import quietly
from edgekit.targets import onnx_layout

OPSET = 20
IMAGE, SIGMA, CLEAN = "noisy", "sigma", "clean"
_CONVOLUTIONS = ("Conv", "ConvTranspose")


class _Blind(nn.Module):
    """For a model that takes no noise level: its files have no such input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, noisy: Tensor) -> Tensor:
        clean: Tensor = self.model(noisy, noisy.new_zeros(noisy.shape[0]))
        return clean


class Half(nn.Module):
    """A model that computes in float16 between float32 images: a file of it is FP16 for whoever believes the file.

    Args:
        model: the float model; it is not touched.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().half()

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        clean: Tensor = self.model(noisy.half(), sigma.half()).float()
        return clean


def write(
    module: nn.Module,
    model: DenoiserModel,
    path: Path,
    *,
    unsigned: bool = False,
    tidy: bool = True,
    zero_points: bool = False,
) -> None:
    """Export to ONNX: inputs `noisy` float32 [N, C, H, W] and `sigma` [N] in 0..1 (none if blind), output `clean`.

    Args:
        module: the model itself, or its converted program (weights folded into integers).
        model: the float model: channels, stride, blindness and the names of the layers are its.
        path: the .onnx file.
        unsigned: activations of a quantized program as uint8 instead of int8.
        tidy: take out the exporter's detours, see `onnx_layout`; otherwise the graph is what torch's users have.
        zero_points: of stored weights, too, which a tidy graph leaves out.
    Raises: ExportError: the exporter failed, or the graph has other convolutions than the model.
    """
    import onnx

    side = 8 * model.stride
    # The sample decides nothing but that no two dynamic sizes are equal and none is 1.
    noisy, sigma = torch.rand(2, model.channels, side, side + model.stride), torch.rand(2)
    free = torch.export.Dim.AUTO
    sample: tuple[Tensor, ...] = (noisy,) if model.blind else (noisy, sigma)
    shapes: dict[str, Any] = {IMAGE: {0: free, 2: free, 3: free}}
    if not model.blind:
        shapes[SIGMA] = {0: free}
    wrapped = _Blind(module) if model.blind else module
    try:
        with quietly():
            program = torch.onnx.export(
                wrapped,
                sample,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=list(shapes),
                output_names=[CLEAN],
                verbose=False,
            )
            if program is None:
                raise TypeError("torch.onnx.export gave nothing")
            graph = program.model_proto
    except Exception as error:  # the exporter raises whatever its passes raise
        raise ExportError(f"torch.onnx cannot export the model: {first_line(error)}") from error
    if tidy:
        onnx_layout.simplify(graph.graph)
    if unsigned:
        onnx_layout.make_unsigned(graph.graph)
    if zero_points:
        onnx_layout.write_zeros(graph.graph)
    _name(graph.graph, [name for name, _ in layer_macs(model, side)], path)
    _name_axes(graph)
    onnx.save(graph, str(path))


def layers(path: Path, model: DenoiserModel, side: int) -> tuple[LayerReport, ...]:
    """Report every convolution of a graph: int8 where its input and weight come through DequantizeLinear, else its
    weight's type.

    Args:
        path: the .onnx file.
        model: the float model inside, which tells the MACs.
        side: height and width that the MACs are for.
    Raises: ExportError: the graph has other convolutions than the model.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    made = {name: node for node in graph.node for name in node.output}
    nodes = [node for node in graph.node if node.op_type in _CONVOLUTIONS]
    _same(path, [node.name for node in nodes], [name for name, _ in layer_macs(model, side)])
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    found = []
    for node, (name, macs) in zip(nodes, layer_macs(model, side), strict=True):
        float_type = "float16" if node.input[1] in halves else "float32"
        both = all(tensor in made and made[tensor].op_type == "DequantizeLinear" for tensor in node.input[:2])
        found.append(LayerReport(name, node.op_type, macs, "int8" if both else float_type, delegated=False))
    return tuple(found)


def specs(model: DenoiserModel) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the file that `write` makes."""
    shape = (-1, model.channels, -1, -1)
    image = TensorSpec(IMAGE, "image", shape, "NCHW", "float32")
    sigma = TensorSpec(SIGMA, "sigma", (-1,), "N", "float32")
    inputs = (image,) if model.blind else (image, sigma)
    return inputs, (TensorSpec(CLEAN, "clean", shape, "NCHW", "float32"),)


def _name(graph: Any, names: Sequence[str], path: Path) -> None:
    """Call the convolutions by their module paths, which reports and engines then show."""
    nodes = [node for node in graph.node if node.op_type in _CONVOLUTIONS]
    if len(nodes) != len(names):
        _same(path, [node.name for node in nodes], names)
    for node, name in zip(nodes, names, strict=True):
        node.name = name


def _same(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    if list(found) != list(expected):
        raise ExportError(
            f"{path.name} has the convolutions {', '.join(found) or 'none'}, the model {', '.join(expected)}: "
            "leave out layers that the output does not need"
        )


def _name_axes(model: Any) -> None:
    """batch, height, width: what the user of the file calls its dynamic axes."""
    names: dict[str, str] = {}
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        for axis, name in zip(axes, ("batch", "channels", "height", "width"), strict=False):
            if axis.dim_param:
                names.setdefault(axis.dim_param, name)
    for value in (*model.graph.input, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]
    for value in model.graph.output:
        for axis, name in zip(value.type.tensor_type.shape.dim, ("batch", "", "height", "width"), strict=False):
            if not axis.HasField("dim_value"):
                axis.dim_param = name
