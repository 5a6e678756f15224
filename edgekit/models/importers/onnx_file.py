"""ONNX: an .onnx file of a denoiser, [N, C, H, W] in and out, with or without an input for the noise level."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import CheckpointError, MissingExtraError, first_line
from edgekit.models.graph import IMAGE, LEVEL, GraphModel
from edgekit.models.importers.builder import Array, Builder, hold_against, names_level

# Height and width that a file of free sizes is read at: a multiple of every stride in use.
_SIDE = 64
_IR = 10
_SIMPLE = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "HardSwish": "hardswish"}
_ARITHMETIC = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
# TensorProto.FLOAT.
_FLOAT = 1
# As float32 has it.
_SIXTH = float(np.float32(1 / 6))
_SAME = ("Identity", "Dropout", "Cast")
# Reshape to six axes, transpose, reshape to four: the order of the axes tells which way pixels move.
_SHUFFLES = {
    (0, 1, 4, 2, 5, 3): ("depth_to_space", "channel", 2),
    (0, 3, 4, 1, 5, 2): ("depth_to_space", "depth", 1),
    (0, 1, 3, 5, 2, 4): ("space_to_depth", "channel", 3),
    (0, 3, 5, 1, 2, 4): ("space_to_depth", "depth", 3),
}


def accepts(path: Path) -> bool:
    """Whether this is such a file, by its name."""
    return path.suffix == ".onnx"


def load(path: Path) -> GraphModel:
    """Read it, and hold it against what ONNX Runtime computes from it.

    Raises: MissingExtraError; CheckpointError.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401 - before the file is read: `convert` needs it
    except ModuleNotFoundError as error:
        raise MissingExtraError.needs(f"reading {path}", str(error.name), "onnx,onnxruntime") from None
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        file = onnx.load(str(path))
        onnx.checker.check_model(file)
    except Exception as error:  # whatever protobuf and the checker raise
        raise CheckpointError(f"{path} is no whole ONNX file ({first_line(error)}): export it again") from error
    return convert(file, path)


def convert(file: Any, path: Path) -> GraphModel:
    """As `load`, of a ModelProto in memory, which is changed; `path` is what messages call it."""
    import onnx
    import onnxruntime

    # onnx writes newer versions of the file format than ONNX Runtime opens; what changed is no operator of a denoiser.
    file.ir_version = min(file.ir_version, _IR)
    image, level, kind = _inputs(file, path)
    with tempfile.TemporaryDirectory() as folder:
        fixed, folded = Path(folder) / "fixed.onnx", Path(folder) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        # Folds constants and shapes that are computed, batch norm into convolutions, drops what does nothing.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 3
        try:
            onnx.save(file, str(fixed))
            session = onnxruntime.InferenceSession(str(fixed), options, providers=["CPUExecutionProvider"])
            graph = onnx.shape_inference.infer_shapes(onnx.load(str(folded)), strict_mode=True).graph
        except Exception as error:  # the runtime's own exception classes are not exported
            raise CheckpointError(f"{path}: ONNX Runtime cannot open it ({first_line(error)})") from error
    shape = _shape(image)
    if len(graph.output) != 1:
        raise CheckpointError(f"{path} has {len(graph.output)} outputs: expected one, the clean image [N, C, H, W]")
    builder = Builder(path)
    _Walk(builder, graph, {image.name: IMAGE, **({level.name: LEVEL} if level is not None else {})}).run()
    channels = shape[1] - (kind == "channel")
    model = builder.model(channels, kind, path.name)

    def original(noisy: Array, sigma: float) -> Array:
        maps = np.full((1, 1, *noisy.shape[2:]), sigma, np.float32)
        feed = {image.name: np.concatenate([noisy, maps], 1) if kind == "channel" else noisy}
        if level is not None:
            feed[level.name] = np.broadcast_to(np.float32(sigma), _shape(level)).copy()
        result: Array = session.run(None, feed)[0]
        return result

    hold_against(model, original, (shape[2], shape[3]), path)
    return model


def _shape(value: Any) -> list[int]:
    return [axis.dim_value for axis in value.type.tensor_type.shape.dim]


def _inputs(file: Any, path: Path) -> tuple[Any, Any, str]:
    """The image and the noise level among the inputs, their free sizes fixed, and how the level enters."""
    stored = {tensor.name for tensor in file.graph.initializer}
    inputs = [value for value in file.graph.input if value.name not in stored]
    images = [v for v in inputs if len(v.type.tensor_type.shape.dim) == 4 and _shape(v)[1] != 1]
    images = images or [v for v in inputs if len(v.type.tensor_type.shape.dim) == 4]
    told = ", ".join(f"{v.name} {[a.dim_value or a.dim_param for a in v.type.tensor_type.shape.dim]}" for v in inputs)
    if not images or len(inputs) > 2:
        raise CheckpointError(f"{path} has the inputs {told}: expected an image [N, C, H, W] and at most a noise level")
    # Of two alike, the one that is not called a level.
    image = min(images, key=lambda v: (_shape(v)[2:] == [1, 1], names_level(v.name)))
    if other := [v.name for v in inputs if v.type.tensor_type.elem_type != _FLOAT]:
        raise CheckpointError(f"{path}: input {other[0]} is not float32: export the network in float32")
    axes = image.type.tensor_type.shape.dim
    if _shape(image)[1] not in (1, 2, 3, 4):
        raise CheckpointError(
            f"{path}: input {image.name} has {axes[1].dim_value or axes[1].dim_param} channels: expected [N, C, H, W] "
            "with C 1 or 3, or 2 or 4 where the last is a map of the noise level"
        )
    for axis, size in zip(
        axes, (1, axes[1].dim_value, axes[2].dim_value or _SIDE, axes[3].dim_value or _SIDE), strict=True
    ):
        axis.dim_value = size
    kind = "channel" if axes[1].dim_value in (2, 4) else "none"
    level = next((value for value in inputs if value is not image), None)
    if level is not None:
        dims = level.type.tensor_type.shape.dim
        mapped = len(dims) == 4 and dims[2].dim_value != 1
        if len(dims) not in (0, 1, 2, 4) or kind == "channel":
            raise CheckpointError(f"{path} has the inputs {told}: expected the noise level as [N] or [N, 1, H, W]")
        kind = "map" if mapped else "scalar"
        sizes = (1, 1, axes[2].dim_value, axes[3].dim_value) if mapped else (1,) * len(dims)
        for axis, size in zip(dims, sizes, strict=True):
            axis.dim_value = size
    for value in file.graph.output:
        for axis in value.type.tensor_type.shape.dim:
            axis.ClearField("dim_param" if axis.dim_param else "dim_value")
    # Sizes that the exporter noted for free dimensions contradict the fixed ones.
    del file.graph.value_info[:]
    return image, level, kind


class _Walk:
    """One pass over a graph of fixed sizes."""

    def __init__(self, builder: Builder, graph: Any, names: dict[str, str]) -> None:
        from onnx import numpy_helper

        self.builder = builder
        self.graph = graph
        self.values = dict(names)
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.shapes = {v.name: _shape(v) for v in (*graph.input, *graph.value_info, *graph.output)}
        # The noise level where it was made a map.
        self.maps: dict[str, str] = {}
        # Pixels under way between two shapes: by value, the last four-axis value, the six sizes, the order of axes.
        self.moving: dict[str, tuple[str, list[int], tuple[int, ...] | None]] = {}
        # What x is multiplied by in HardSwish, which the runtime takes apart: by value, x.
        self.gates: dict[str, str] = {}

    def run(self) -> None:
        """Take over every operator."""
        import onnx

        for node in self.graph.node:
            settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            self._take(node, settings)
        # The model's result is that of its last operator.
        output = self._value(self.graph.output[0].name)
        if not self.builder.nodes or self.builder.nodes[-1]["name"] != output:
            raise self.builder.refuse("output", "the image that leaves is not made by the last operator")

    def _take(self, node: Any, settings: dict[str, Any]) -> None:
        op, inputs, hint = node.op_type, list(node.input), node.name
        result: str | None = None
        if op == "Constant":
            from onnx import numpy_helper

            self.constants[node.output[0]] = numpy_helper.to_array(settings["value"])
            return
        if op in ("Conv", "ConvTranspose"):
            result = self._convolution(op, hint, inputs, settings)
        elif op in _SIMPLE:
            result = self.builder.add(_SIMPLE[op], hint, [self._value(inputs[0])])
        elif op == "HardSigmoid" and (settings.get("alpha"), settings.get("beta", 0.5)) == (_SIXTH, 0.5):
            self.gates[node.output[0]] = self._value(inputs[0])
            return
        elif op == "Mul" and (gated := self._gated(inputs)) is not None:
            result = self.builder.add("hardswish", hint, [gated])
        elif op in _ARITHMETIC:
            if op == "Div" and inputs[1] in self.constants:
                # A factor, which integers know.
                inverse = f"{inputs[1]} inverted"
                self.constants[inverse] = 1 / self.constants[inputs[1]].astype(np.float64)
                op, inputs = "Mul", [inputs[0], inverse]
            result = self.builder.add(_ARITHMETIC[op], hint, [self._operand(name) for name in inputs])
        elif op == "LeakyRelu":
            result = self.builder.add("leaky_relu", hint, [self._value(inputs[0])], slope=settings.get("alpha", 0.01))
        elif op == "Elu":
            result = self.builder.add("elu", hint, [self._value(inputs[0])], alpha=settings.get("alpha", 1.0))
        elif op == "PRelu":
            slopes = self._constant(inputs[1], op)
            if slopes.size not in (1, self.shapes[inputs[0]][1]):
                raise self.builder.refuse(op, f"slopes of shape {list(slopes.shape)}: one number a channel is allowed")
            result = self.builder.slopes(hint, self._value(inputs[0]), slopes)
        elif op == "Clip":
            low = self._number(inputs, 1, op, settings.get("min", -3.4e38))
            high = self._number(inputs, 2, op, settings.get("max", 3.4e38))
            result = self.builder.add("clip", hint, [self._value(inputs[0])], low=low, high=high)
        elif op == "Concat" and settings["axis"] in (1, -3):
            result = self._concat(hint, inputs)
        elif op in ("MaxPool", "AveragePool"):
            result = self._pool(op, hint, inputs, settings)
        elif op in ("Resize", "Upsample"):
            result = self._resize(hint, inputs, node.output[0], settings)
        elif op in ("DepthToSpace", "SpaceToDepth"):
            order = "channel" if settings.get("mode") == b"CRD" else "depth"
            kind = "depth_to_space" if op == "DepthToSpace" else "space_to_depth"
            result = self.builder.add(kind, hint, [self._value(inputs[0])], block=settings["blocksize"], order=order)
        elif op == "Pad":
            result = self._pad(hint, inputs, settings)
        elif op == "Slice":
            result = self._slice(hint, inputs, settings)
        elif op in ("Unsqueeze", "Reshape", "Squeeze") and math.prod(self.shapes[node.output[0]]) == 1:
            # The noise level of one image, however many axes it is given.
            result = self._value(inputs[0])
        elif op == "Expand":
            self._expand(inputs, node.output[0])
            return
        elif op in ("Reshape", "Transpose"):
            if not self._move(op, hint, node, inputs, settings):
                return
            result = self.values[node.output[0]]
        elif op in _SAME:
            result = self._value(inputs[0])
        if result is None:
            raise self.builder.refuse(op)
        self.values[node.output[0]] = result

    def _value(self, name: str) -> str:
        if name not in self.values:
            raise self.builder.refuse(f"that makes {name}", "it is no image-like tensor [N, C, H, W]")
        return self.values[name]

    def _constant(self, name: str, op: str) -> Array:
        if name not in self.constants:
            raise self.builder.refuse(op, f"its setting {name} is computed while it runs")
        return self.constants[name]

    def _number(self, inputs: list[str], place: int, op: str, default: float) -> float:
        """An input that is one number, and may be left out."""
        given = len(inputs) > place and inputs[place]
        return float(self._constant(inputs[place], op).reshape(())) if given else default

    def _settings(self, inputs: list[str], op: str, settings: dict[str, Any], names: Sequence[str]) -> list[Any]:
        """Lists that are inputs from the second on, or in older files attributes; None for what is left out."""
        if len(inputs) == 1:
            return [settings.get(name) for name in names]
        given = [self._constant(name, op).tolist() if name else None for name in inputs[1:]]
        return [*given, None, None, None, None][: len(names)]

    def _gated(self, inputs: list[str]) -> str | None:
        """x, where the inputs are x and what HardSwish multiplies it by."""
        for gate, other in (inputs, inputs[::-1]):
            if gate in self.gates and self.gates[gate] == self.values.get(other):
                return self.gates[gate]
        return None

    def _operand(self, name: str) -> str:
        """A tensor, or a constant with one number or one a channel."""
        if name not in self.constants:
            return self._value(name)
        value = self.constants[name].astype(np.float32)
        if value.size == 1:
            return self.builder.constant(value.reshape(()))
        if value.ndim not in (3, 4) or value.shape[-3] != value.size:
            raise self.builder.refuse(
                "arithmetic", f"constant {name} has shape {list(value.shape)}: one number a channel is allowed"
            )
        return self.builder.constant(value.reshape(1, -1, 1, 1))

    def _convolution(self, op: str, hint: str, inputs: list[str], settings: dict[str, Any]) -> str:
        weight = self._constant(inputs[1], op)
        bias = self._constant(inputs[2], op) if len(inputs) > 2 and inputs[2] else None
        if weight.ndim != 4:
            raise self.builder.refuse(op, f"its kernel has shape {list(weight.shape)}: expected two dimensions")
        if "output_shape" in settings:
            raise self.builder.refuse(op, "it names its output's size")
        stride = settings.get("strides", [1, 1])
        dilation = settings.get("dilations", [1, 1])
        pad = self._padding(settings, inputs[0], weight.shape[2:], stride, dilation)
        more = {"more": list(settings.get("output_padding", [0, 0]))} if op == "ConvTranspose" else {}
        return self.builder.convolution(
            "conv" if op == "Conv" else "conv_transpose",
            hint,
            self._value(inputs[0]),
            weight,
            bias,
            stride=stride,
            pad=pad,
            dilation=dilation,
            groups=settings.get("group", 1),
            **more,
        )

    def _padding(self, settings: dict[str, Any], source: str, kernel: Any, stride: Any, dilation: Any) -> list[int]:
        """[left, right, top, bottom] from pads or auto_pad."""
        auto = settings.get("auto_pad", b"NOTSET")
        if auto in (b"NOTSET", b""):
            top, left, bottom, right = settings.get("pads", [0, 0, 0, 0])
            return [left, right, top, bottom]
        if auto == b"VALID":
            return [0, 0, 0, 0]
        sides = []
        for axis in (1, 0):
            size, step = self.shapes[source][2 + axis], stride[axis]
            reach = (kernel[axis] - 1) * dilation[axis] + 1
            total = max((-(-size // step) - 1) * step + reach - size, 0)
            less = total // 2
            sides += [less, total - less] if auto == b"SAME_UPPER" else [total - less, less]
        return sides

    def _pool(self, op: str, hint: str, inputs: list[str], settings: dict[str, Any]) -> str:
        kernel, stride = settings["kernel_shape"], settings.get("strides", [1, 1])
        pad = self._padding(settings, inputs[0], kernel, stride, (1, 1))
        whole = op == "MaxPool" or not any(pad) or settings.get("count_include_pad", 0)
        if not whole or settings.get("ceil_mode", 0) or any(d != 1 for d in settings.get("dilations", [1, 1])):
            raise self.builder.refuse(op, "padding that does not count, ceil_mode and dilations are not read")
        kind = "max_pool" if op == "MaxPool" else "avg_pool"
        return self.builder.add(
            kind, hint, [self._value(inputs[0])], kernel=list(kernel), stride=list(stride), pad=list(pad)
        )

    def _resize(self, hint: str, inputs: list[str], output: str, settings: dict[str, Any]) -> str:
        before, after = self.shapes[inputs[0]], self.shapes[output]
        factor = [after[axis] / before[axis] for axis in (2, 3)]
        mode = settings.get("mode", b"nearest")
        way = settings.get("coordinate_transformation_mode", b"half_pixel")
        if any(f < 1 or f != int(f) for f in factor) or mode not in (b"nearest", b"linear") or way == b"align_corners":
            raise self.builder.refuse(
                "Resize", f"{mode.decode()}, {way.decode()}, by {factor}: whole factors, nearest or linear are read"
            )
        name = "nearest" if mode == b"nearest" else "bilinear"
        return self.builder.add("upsample", hint, [self._value(inputs[0])], factor=[int(f) for f in factor], mode=name)

    def _pad(self, hint: str, inputs: list[str], settings: dict[str, Any]) -> str:
        mode = {b"constant": "constant", b"reflect": "reflect", b"edge": "replicate"}.get(
            settings.get("mode", b"constant")
        )
        sides, _, axes = self._settings(inputs, "Pad", settings, ("pads", "value", "axes"))
        filled = self._number(inputs, 2, "Pad", settings.get("value", 0.0))
        if axes is not None:
            count = len(axes)
            around = dict(zip([a % 4 for a in axes], zip(sides[:count], sides[count:], strict=True), strict=True))
            sides = [around.get(axis, (0, 0))[end] for end in (0, 1) for axis in range(4)]
        if mode is None or len(sides) != 8 or any(sides[i] for i in (0, 1, 4, 5)) or min(sides) < 0 or filled:
            raise self.builder.refuse("Pad", f"{sides}: zeros, reflection or the edge around height and width are read")
        pad = [sides[3], sides[7], sides[2], sides[6]]
        return self.builder.add("pad", hint, [self._value(inputs[0])], pad=pad, mode=mode)

    def _slice(self, hint: str, inputs: list[str], settings: dict[str, Any]) -> str:
        starts, stops, axes, steps = self._settings(inputs, "Slice", settings, ("starts", "ends", "axes", "steps"))
        if axes not in ([1], [-3]) or steps not in (None, [1]):
            raise self.builder.refuse("Slice", "a run of channels is read")
        count = self.shapes[inputs[0]][1]
        first, last = (min(n + count if n < 0 else n, count) for n in (starts[0], stops[0]))
        return self.builder.add("slice", hint, [self._value(inputs[0])], start=first, stop=last)

    def _expand(self, inputs: list[str], output: str) -> None:
        """A number an image, written over a map, which is as large as what it is joined with."""
        if len(self.shapes[output]) != 4 or math.prod(self.shapes[inputs[0]]) != 1:
            raise self.builder.refuse("Expand", "only the noise level is written over a map")
        self.maps[output] = self._value(inputs[0])

    def _concat(self, hint: str, inputs: list[str]) -> str:
        whole = next((self._value(name) for name in inputs if name not in self.maps), None)
        if whole is None:
            raise self.builder.refuse("Concat", "it joins nothing but noise levels")
        parts = [
            self.builder.add("expand", "level", [self.maps[name], whole]) if name in self.maps else self._value(name)
            for name in inputs
        ]
        return self.builder.add("concat", hint, parts)

    def _move(self, op: str, hint: str, node: Any, inputs: list[str], settings: dict[str, Any]) -> bool:
        """Follow pixels from reshape to transpose to reshape; True when they have arrived."""
        source, output = inputs[0], node.output[0]
        sizes = self.shapes[output]
        if op == "Reshape" and source in self.values and len(sizes) == 4 and sizes == self.shapes[source]:
            self.values[output] = self.values[source]
            return True
        if op == "Reshape" and source in self.values and len(sizes) == 6:
            self.moving[output] = (self.values[source], sizes, None)
            return False
        if op == "Transpose" and source in self.moving and self.moving[source][2] is None:
            first, shape, _ = self.moving[source]
            self.moving[output] = (first, shape, tuple(settings["perm"]))
            return False
        if op == "Reshape" and source in self.moving and len(sizes) == 4:
            first, shape, order = self.moving[source]
            if order in _SHUFFLES:
                kind, which, axis = _SHUFFLES[order]
                self.values[output] = self.builder.add(kind, hint, [first], block=shape[axis], order=which)
                return True
        raise self.builder.refuse(op, "only those that move pixels between space and channels are read")
