"""TensorFlow: a .keras or .h5 file or a SavedModel folder of a denoiser, [N, H, W, C] in and out.

TensorFlow's own converter turns it into TFLite operators, whose meaning is fixed and whose weights are folded; those
are read. A file of fixed size (28x28, as tutorials have it) gives a model of any size, for convolutions know none.
"""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import CheckpointError, MissingExtraError, first_line
from edgekit.models.graph import IMAGE, LEVEL, GraphModel
from edgekit.models.importers.builder import Array, Builder, hold_against, names_level
from edgekit.quiet import quietly

# Height and width that a model of free sizes is read at: a multiple of every stride in use.
_SIDE = 64
_SIMPLE = {"RELU": "relu", "LOGISTIC": "sigmoid", "TANH": "tanh", "HARD_SWISH": "hardswish"}
_CLIPS = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}
_ARITHMETIC = {"ADD": "add", "SUB": "sub", "MUL": "mul", "DIV": "div"}
_SHUFFLES = {"DEPTH_TO_SPACE": "depth_to_space", "SPACE_TO_DEPTH": "space_to_depth"}
# ActivationFunctionType and Padding of the TFLite schema.
_FUSED = {0: None, 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6", 4: "TANH"}
_SAME = 0
_NUMPY = {0: np.float32, 1: np.float16, 2: np.int32, 4: np.int64}


def accepts(path: Path) -> bool:
    """Whether this is such a file or folder."""
    return path.suffix in (".keras", ".h5") or (path / "saved_model.pb").is_file()


def load(path: Path) -> GraphModel:
    """Read it, and hold it against what TensorFlow computes from it.

    Keras' safe mode is on: a .keras file that holds Python code is refused. A SavedModel is a program that TensorFlow
    runs: open those you trust.

    Raises: MissingExtraError; CheckpointError.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    # Before its first import: nothing but errors from its C++ part.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    first = "tensorflow" not in sys.modules
    with quietly(descriptors=True):
        try:
            import tensorflow
        except ModuleNotFoundError:
            raise MissingExtraError.needs(f"reading {path}", "tensorflow", "tensorflow") from None
        if first:
            # It would take the whole memory of a GPU, which training is to have.
            tensorflow.config.set_visible_devices([], "GPU")
        function, inputs, shape = _function(tensorflow, path)
        try:
            converter = tensorflow.lite.TFLiteConverter.from_concrete_functions([function])
            content = converter.convert()
        except Exception as error:  # the converter raises whatever its passes raise
            raise CheckpointError(f"{path}: TensorFlow's converter to TFLite failed ({first_line(error)})") from error
    image, level, kind = _roles(inputs, path)
    from tensorflow.lite.python import schema_py_generated as schema

    file = schema.ModelT.InitFromPackedBuf(bytes(content), 0)
    builder = Builder(path)
    _Walk(builder, file, schema, {image: IMAGE, **({} if level is None else {level: LEVEL})}).run()
    model = builder.model(shape[3] - (kind == "channel"), kind, path.name)

    def original(noisy: Array, sigma: float) -> Array:
        pixels = noisy.transpose(0, 2, 3, 1)
        if kind == "channel":
            pixels = np.concatenate([pixels, np.full((*pixels.shape[:3], 1), sigma, np.float32)], 3)
        feed = [
            tensorflow.constant(pixels if i == image else np.full(inputs[i], sigma, np.float32))
            for i in range(len(inputs))
        ]
        (result, *_) = tensorflow.nest.flatten(function(*feed))
        clean: Array = result.numpy()
        return clean.transpose(0, 3, 1, 2) if clean.ndim == 4 else clean

    hold_against(model, original, (shape[1], shape[2]), path)
    return model


def _function(tensorflow: Any, path: Path) -> tuple[Any, list[tuple[int, ...]], tuple[int, ...]]:
    """The network as one function of fixed sizes with its weights inside, its inputs' shapes, the image's shape."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    call, specs = _saved(tensorflow, path) if path.is_dir() else _keras(path)
    shapes = [tuple(_SIDE if size is None else int(size) for size in (1, *shape[1:])) for shape in specs]
    if not shapes or any(len(shape) not in (1, 2, 4) for shape in shapes):
        raise CheckpointError(f"{path} has inputs of the shapes {_told(specs)}: expected an image [N, H, W, C]")
    try:
        signature = [
            tensorflow.TensorSpec(shape, tensorflow.float32, name=f"input_{i}") for i, shape in enumerate(shapes)
        ]
        traced = tensorflow.function(lambda *tensors: call(tensors), autograph=False).get_concrete_function(*signature)
        function = convert_variables_to_constants_v2(traced)
    except Exception as error:  # Keras' layers raise what they like
        raise CheckpointError(f"{path} cannot be run on {_told(shapes)} ({first_line(error)})") from error
    image = next((shape for shape in shapes if len(shape) == 4 and shape[3] != 1), None)
    image = image or next((shape for shape in shapes if len(shape) == 4), None)
    if image is None or image[3] not in (1, 2, 3, 4):
        raise CheckpointError(
            f"{path} has inputs of the shapes {_told(specs)}: expected an image [N, H, W, C] with C 1 or 3, or 2 or 4 "
            "where the last is a map of the noise level"
        )
    return function, shapes, image


def _keras(path: Path) -> tuple[Callable[..., Any], list[Sequence[int | None]]]:
    import keras

    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no .keras file, which is a zip: write it with model.save('denoiser.keras')")
    try:
        model = keras.models.load_model(str(path), compile=False)
    except Exception as error:  # zip, HDF5, JSON, unknown layers, code that safe mode refuses
        raise CheckpointError(f"{path}: Keras cannot read it ({first_line(error)})") from error
    many = len(model.inputs) > 1
    return lambda tensors: model(list(tensors) if many else tensors[0], training=False), [t.shape for t in model.inputs]


def _saved(tensorflow: Any, path: Path) -> tuple[Callable[..., Any], list[Sequence[int | None]]]:
    try:
        loaded = tensorflow.saved_model.load(str(path))
        signature = loaded.signatures["serving_default"]
    except Exception as error:  # damaged files, and folders without that signature
        raise CheckpointError(
            f"{path}: no SavedModel with the signature serving_default ({first_line(error)}); write it with "
            "model.export(...)"
        ) from error
    given = signature.structured_input_signature[1]
    # The image first, where shapes do not tell.
    names = sorted(given, key=lambda name: (names_level(name), name))

    def call(tensors: Sequence[Any]) -> Any:
        assert loaded  # its variables live as long as it does
        return signature(**dict(zip(names, tensors, strict=True)))

    return call, [given[name].shape.as_list() for name in names]


def _told(shapes: Sequence[Sequence[int | None]]) -> str:
    return ", ".join("x".join("?" if size is None else str(size) for size in shape) for shape in shapes)


def _roles(shapes: Sequence[tuple[int, ...]], path: Path) -> tuple[int, int | None, str]:
    """Which input is the image, which the noise level, and how the level enters."""
    if any(len(shape) == 4 and shape[3] not in (1, 2, 3, 4) for shape in shapes):
        raise CheckpointError(f"{path} has inputs of the shapes {_told(shapes)}: expected an image and a noise level")
    images = [i for i, shape in enumerate(shapes) if len(shape) == 4 and shape[3] != 1]
    image = (images or [i for i, shape in enumerate(shapes) if len(shape) == 4])[0]
    others = [i for i in range(len(shapes)) if i != image]
    combined = shapes[image][3] in (2, 4)
    if len(others) > 1 or (others and combined):
        raise CheckpointError(f"{path} has inputs of the shapes {_told(shapes)}: expected an image and a noise level")
    if not others:
        return image, None, "channel" if combined else "none"
    return image, others[0], "scalar" if math.prod(shapes[others[0]]) == 1 else "map"


class _Walk:
    """One pass over the operators of a TFLite graph; values are known by the numbers of their tensors."""

    def __init__(self, builder: Builder, file: Any, schema: Any, names: dict[int, str]) -> None:
        self.builder = builder
        self.graph = file.subgraphs[0]
        kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        codes = [max(int(c.builtinCode), int(c.deprecatedBuiltinCode)) for c in file.operatorCodes]
        self.operators = [(kinds.get(codes[node.opcodeIndex], "?"), node) for node in self.graph.operators]
        # The inputs in the order of the function's arguments, whatever order the converter put them in.
        self.values: dict[int, str] = {}
        for index in self.graph.inputs:
            number = int(
                _text(self.graph.tensors[index].name).rpartition("input_")[2].partition(":")[0].partition("_")[0]
            )
            self.values[int(index)] = names[number]
        self.maps: dict[int, str] = {}
        # Nearest-neighbour upsampling under way: the four-axis tensor that it began with, and its name.
        self.tiling: dict[int, int] = {}
        self.constants: dict[int, Array] = {}
        for index, tensor in enumerate(self.graph.tensors):
            data = file.buffers[tensor.buffer].data
            if data is not None and len(data) and tensor.type in _NUMPY:
                self.constants[index] = np.frombuffer(bytes(data), _NUMPY[tensor.type]).reshape(self._shape(index))

    def run(self) -> None:
        """Take over every operator."""
        for op, node in self.operators:
            inputs = [int(i) for i in node.inputs]
            output = int(node.outputs[0])
            result = self._take(op, node, inputs, output)
            if result is not None:
                fused = _FUSED.get(getattr(node.builtinOptions, "fusedActivationFunction", 0), "?")
                self.values[output] = result if fused is None else self._activation(fused, "", result)
        last = self._value(int(self.graph.outputs[0]))
        if not self.builder.nodes or self.builder.nodes[-1]["name"] != last:
            raise self.builder.refuse("output", "the image that leaves is not made by the last operator")

    def _take(self, op: str, node: Any, inputs: list[int], output: int) -> str | None:
        settings, hint = node.builtinOptions, self._hint(output)
        if op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            return self._convolution(op, hint, inputs, settings)
        if op == "TRANSPOSE_CONV":
            return self._transposed(hint, inputs, output, settings)
        if op in _SIMPLE or op in _CLIPS:
            return self._activation(op, hint, self._value(inputs[0]))
        if op in _ARITHMETIC:
            if op == "DIV" and inputs[1] in self.constants:
                # A factor, which integers know; no tensor has a negative number.
                self.constants[~inputs[1]] = (1 / self.constants[inputs[1]].astype(np.float64)).astype(np.float32)
                op, inputs = "MUL", [inputs[0], ~inputs[1]]
            return self.builder.add(_ARITHMETIC[op], hint, [self._operand(i) for i in inputs])
        if op == "LEAKY_RELU":
            return self.builder.add("leaky_relu", hint, [self._value(inputs[0])], slope=float(settings.alpha))
        if op == "ELU":
            return self.builder.add("elu", hint, [self._value(inputs[0])], alpha=1.0)
        if op == "PRELU":
            return self.builder.slopes(hint, self._value(inputs[0]), self._channels(inputs[1], op))
        if op == "CONCATENATION" and settings.axis in (3, -1):
            return self._concat(hint, inputs)
        if op in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
            return self._pool(op, hint, inputs, settings)
        if op in ("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"):
            if settings.alignCorners:
                raise self.builder.refuse(op, "align_corners is not read")
            return self._upsample(op, hint, inputs[0], output, "nearest" if "NEAREST" in op else "bilinear")
        if op in _SHUFFLES:
            return self.builder.add(
                _SHUFFLES[op], hint, [self._value(inputs[0])], block=int(settings.blockSize), order="depth"
            )
        if op in ("PAD", "PADV2", "MIRROR_PAD"):
            return self._pad(op, hint, inputs, settings)
        if op in ("RESHAPE", "EXPAND_DIMS", "SQUEEZE") and math.prod(self._shape(output)) == 1:
            return self._value(inputs[0])
        if op in ("TILE", "BROADCAST_TO") and math.prod(self._shape(inputs[0])) == 1:
            self.maps[output] = self._value(inputs[0])
            return None
        if op in ("RESHAPE", "TILE"):
            return self._tile(op, hint, inputs[0], output)
        raise self.builder.refuse(op)

    def _shape(self, index: int) -> tuple[int, ...]:
        shape = self.graph.tensors[index].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def _hint(self, index: int) -> str:
        """The layer's name: of functional_1/conv2d_2/Relu;..., conv2d_2."""
        parts = _text(self.graph.tensors[index].name).partition(";")[0].split("/")
        return parts[-2] if len(parts) > 1 else parts[0]

    def _value(self, index: int) -> str:
        if index not in self.values:
            raise self.builder.refuse(
                f"that makes {_text(self.graph.tensors[index].name)}", "it is no image-like tensor [N, H, W, C]"
            )
        return self.values[index]

    def _constant(self, index: int, op: str) -> Array:
        if index not in self.constants:
            raise self.builder.refuse(op, "its weights or settings are computed while it runs")
        return self.constants[index]

    def _channels(self, index: int, op: str) -> Array:
        """A constant with one number a channel."""
        value = self._constant(index, op)
        if value.size != value.shape[-1]:
            raise self.builder.refuse(op, f"a constant of shape {list(value.shape)}: one number a channel is allowed")
        return value.reshape(-1)

    def _operand(self, index: int) -> str:
        """A tensor, or a constant with one number or one a channel."""
        if index not in self.constants:
            return self._value(index)
        if self.constants[index].size == 1:
            return self.builder.constant(self.constants[index].reshape(()))
        return self.builder.constant(self._channels(index, "arithmetic").reshape(1, -1, 1, 1))

    def _activation(self, op: str, hint: str, source: str) -> str:
        if op in _CLIPS:
            low, high = _CLIPS[op]
            return self.builder.add("clip", hint, [source], low=low, high=high)
        if op not in _SIMPLE:
            raise self.builder.refuse(f"activation {op}")
        return self.builder.add(_SIMPLE[op], hint, [source])

    def _same(self, source: int, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
        """[left, right, top, bottom] of TensorFlow's padding "same": the odd pixel goes after."""
        sides = []
        for axis in (1, 0):
            size, step = self._shape(source)[1 + axis], stride[axis]
            reach = (kernel[axis] - 1) * dilation[axis] + 1
            total = max((-(-size // step) - 1) * step + reach - size, 0)
            sides += [total // 2, total - total // 2]
        return sides

    def _convolution(self, op: str, hint: str, inputs: list[int], settings: Any) -> str:
        weight = self._constant(inputs[1], op).astype(np.float32)
        # [out, H, W, in/groups], depthwise [1, H, W, out] -> torch's [out, in/groups, H, W].
        weight = weight.transpose(3, 0, 1, 2) if op == "DEPTHWISE_CONV_2D" else weight.transpose(0, 3, 1, 2)
        bias = self._constant(inputs[2], op) if len(inputs) > 2 and inputs[2] >= 0 else None
        stride = [int(settings.strideH), int(settings.strideW)]
        dilation = [int(settings.dilationHFactor), int(settings.dilationWFactor)]
        same = settings.padding == _SAME
        return self.builder.convolution(
            "conv",
            hint,
            self._value(inputs[0]),
            weight,
            bias,
            stride=stride,
            pad=self._same(inputs[0], weight.shape[2:], stride, dilation) if same else [0, 0, 0, 0],
            dilation=dilation,
            groups=self._shape(inputs[0])[3] // weight.shape[1],
        )

    def _transposed(self, hint: str, inputs: list[int], output: int, settings: Any) -> str:
        op = "TRANSPOSE_CONV"
        weight = self._constant(inputs[1], op).astype(np.float32).transpose(3, 0, 1, 2)
        bias = self._constant(inputs[3], op) if len(inputs) > 3 and inputs[3] >= 0 else None
        stride = [int(settings.strideH), int(settings.strideW)]
        sides = []
        for axis in (1, 0):
            # What the transposed convolution makes, over what leaves: cut off before and after, the odd pixel after.
            size = (self._shape(inputs[2])[1 + axis] - 1) * stride[axis] + weight.shape[2 + axis]
            total = size - self._shape(output)[1 + axis]
            if total < 0:
                raise self.builder.refuse(op, "its kernel is smaller than its stride")
            before = total // 2 if settings.padding == _SAME else 0
            sides += [before, total - before]
        source = self._value(inputs[2])
        return self.builder.convolution("conv_transpose", hint, source, weight, bias, stride=stride, pad=sides)

    def _concat(self, hint: str, inputs: list[int]) -> str:
        whole = next((self._value(i) for i in inputs if i not in self.maps), None)
        if whole is None:
            raise self.builder.refuse("CONCATENATION", "it joins nothing but noise levels")
        parts = [
            self.builder.add("expand", "level", [self.maps[i], whole]) if i in self.maps else self._value(i)
            for i in inputs
        ]
        return self.builder.add("concat", hint, parts)

    def _pool(self, op: str, hint: str, inputs: list[int], settings: Any) -> str:
        kernel = [int(settings.filterHeight), int(settings.filterWidth)]
        stride = [int(settings.strideH), int(settings.strideW)]
        pad = self._same(inputs[0], kernel, stride, (1, 1)) if settings.padding == _SAME else [0, 0, 0, 0]
        if op == "AVERAGE_POOL_2D" and any(pad):
            raise self.builder.refuse(op, "its padding does not count in the mean: only pools without padding are read")
        kind = "max_pool" if op == "MAX_POOL_2D" else "avg_pool"
        return self.builder.add(kind, hint, [self._value(inputs[0])], kernel=kernel, stride=stride, pad=pad)

    def _upsample(self, op: str, hint: str, source: int, output: int, mode: str) -> str:
        before, after = self._shape(source), self._shape(output)
        factor = [after[axis] // before[axis] for axis in (1, 2)]
        if min(factor) < 1 or any(before[axis] * factor[axis - 1] != after[axis] for axis in (1, 2)):
            raise self.builder.refuse(op, f"{before} to {after}: whole factors are read")
        return self.builder.add("upsample", hint, [self._value(source)], factor=factor, mode=mode)

    def _pad(self, op: str, hint: str, inputs: list[int], settings: Any) -> str:
        sides = self._constant(inputs[1], op)
        mode = "constant"
        if op == "MIRROR_PAD":
            if settings.mode:
                raise self.builder.refuse(op, "symmetric reflection repeats the edge: only reflection is read")
            mode = "reflect"
        if sides.shape != (4, 2) or sides[[0, 3]].any() or (len(inputs) > 2 and self._constant(inputs[2], op).any()):
            raise self.builder.refuse(op, "zeros or reflection around height and width are read")
        pad = [int(side) for side in (*sides[2], *sides[1])]
        return self.builder.add("pad", hint, [self._value(inputs[0])], pad=pad, mode=mode)

    def _tile(self, op: str, hint: str, source: int, output: int) -> str | None:
        """Keras' nearest-neighbour upsampling: reshape to five axes, tile the new one, and back, for each side."""
        first = self.tiling.get(source, source)
        before, after = self._shape(first), self._shape(output)
        if first not in self.values or len(before) != 4:
            raise self.builder.refuse(op, "only those that repeat pixels are read")
        if op == "RESHAPE" and len(after) == 4:
            grown = [after[axis] / before[axis] for axis in (1, 2)]
            if after[3] != before[3] or any(g != int(g) for g in grown) or source not in self.tiling:
                raise self.builder.refuse(op, f"{before} to {after}: only those that repeat pixels are read")
            if self._is_last(output):
                return self._upsample(op, hint, first, output, "nearest")
        self.tiling[output] = first
        return None

    def _is_last(self, index: int) -> bool:
        """Whether the pixels that were repeated go no further round."""
        readers = [(op, node) for op, node in self.operators if index in [int(i) for i in node.inputs]]
        return not (
            len(readers) == 1 and readers[0][0] == "RESHAPE" and len(self._shape(int(readers[0][1].outputs[0]))) == 5
        )


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
