"""Writes a tiny denoiser as a .tflite, operator by operator, for the runtime's tests: no torch, a few KB, any tile.

    out = image - sigma * depth_to_space(conv3x3(relu(conv_stride4(image))))

in int8 (with int8 or uint8 image tensors) or float32. Stride 4, halo 7: a pixel sees its 4x4 cell and the cells around.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl
from numpy.typing import NDArray

from edgekit.bundle.manifest import Manifest, ModelFacts, TensorSpec, Thresholds, Variant

STRIDE, HALO, SIGMA = 4, 7, (0.0, 55.0)
_HIDDEN = 8
# Activations between the layers reach from -2 to 2, nearly.
_INNER = 4 / 255


class _Graph:
    """A model of one subgraph, in the order that things are added."""

    def __init__(self) -> None:
        self.model = tfl.ModelT()
        self.model.version = 3
        self.model.buffers = [tfl.BufferT()]
        self.model.operatorCodes = []
        self.graph = tfl.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(
        self,
        name: str,
        shape: Any,
        dtype: str,
        scale: Any = None,
        zero_point: int = 0,
        data: NDArray[Any] | None = None,
        axis: int = 0,
    ) -> int:
        tensor = tfl.TensorT()
        tensor.name, tensor.shape = name, list(shape)
        kinds = {"int8": "INT8", "uint8": "UINT8", "float32": "FLOAT32", "int32": "INT32"}
        tensor.type = getattr(tfl.TensorType, kinds[dtype])
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            tensor.quantization = tfl.QuantizationParametersT()
            tensor.quantization.scale = scales
            tensor.quantization.zeroPoint = np.full(scales.shape, zero_point, np.int64)
            tensor.quantization.quantizedDimension = axis
        if data is not None:
            buffer = tfl.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, kind: str, inputs: list[int], outputs: list[int], **options: Any) -> None:
        code = tfl.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(tfl.BuiltinOperator, kind)
        code.version = {"DEPTH_TO_SPACE": 1, "QUANTIZE": 1, "RESHAPE": 1}.get(kind, 2)
        self.model.operatorCodes.append(code)
        names = {"CONV_2D": "Conv2D", "DEPTH_TO_SPACE": "DepthToSpace"}
        stem = names.get(kind, kind.title()) + "Options"
        operator = tfl.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, outputs
        operator.builtinOptionsType = getattr(tfl.BuiltinOptions, stem)
        operator.builtinOptions = getattr(tfl, stem + "T")()
        for key, value in options.items():
            setattr(operator.builtinOptions, key, value)
        self.graph.operators.append(operator)

    def write(self, path: Path, inputs: list[int], outputs: list[int]) -> None:
        self.graph.inputs, self.graph.outputs = inputs, outputs
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))


def write(folder: Path, name: str, *, tile: int, channels: int = 3, blind: bool = False) -> Variant:
    """Write a model file.

    Args:
        folder: where to.
        name: the variant: "int8", "int8-uint8io" or "fp32".
        tile: side of the input, a multiple of 4.
        channels: of the image.
        blind: without a sigma input.
    Returns: what a manifest says of it.
    """
    random = np.random.default_rng(7)
    integer = name != "fp32"
    inner, outer = ("int8", "uint8" if "uint8" in name else "int8") if integer else ("float32", "float32")
    cells, image_shape = tile // STRIDE, (1, tile, tile, channels)
    byte = (1 / 255, 0 if outer == "uint8" else -128) if integer else (None, 0)
    sigma_scale = (SIGMA[1] / 255 / 255, -128) if integer else (None, 0)
    g = _Graph()
    image = g.tensor("image", image_shape, outer, *byte)
    level = g.tensor("sigma", (1,), inner, *sigma_scale) if not blind else None
    inside = image
    if outer == "uint8":
        inside = g.tensor("image_int8", image_shape, "int8", 1 / 255, -128)
        g.operator("QUANTIZE", [image], [inside])

    def conv(source: int, source_scale: float, count: tuple[int, int], kernel: int, stride: int, relu: bool) -> int:
        out, into = count
        weights = random.uniform(-1, 1, (out, kernel, kernel, into)) * 2 / np.sqrt(kernel * kernel * into)
        bias = random.uniform(-0.2, 0.2, out)
        label = f"conv{kernel}"
        if integer:
            scales = np.abs(weights).max(axis=(1, 2, 3)) / 127
            quantized = np.rint(weights / scales[:, None, None, None]).astype(np.int8)
            w = g.tensor(label + "_w", weights.shape, "int8", scales, 0, quantized)
            sums = scales * source_scale
            b = g.tensor(label + "_b", (out,), "int32", sums, 0, np.rint(bias / sums).astype(np.int32))
            y = g.tensor(label, (1, cells, cells, out), "int8", _INNER, 0)
        else:
            w = g.tensor(label + "_w", weights.shape, "float32", data=weights.astype(np.float32))
            b = g.tensor(label + "_b", (out,), "float32", data=bias.astype(np.float32))
            y = g.tensor(label, (1, cells, cells, out), "float32")
        g.operator(
            "CONV_2D", [source, w, b], [y], padding=tfl.Padding.SAME, strideH=stride, strideW=stride,
            dilationHFactor=1, dilationWFactor=1,
            fusedActivationFunction=tfl.ActivationFunctionType.RELU if relu else tfl.ActivationFunctionType.NONE,
        )  # fmt: skip
        return y

    inner_scale = (_INNER, 0) if integer else (None, 0)
    hidden = conv(inside, 1 / 255, (_HIDDEN, channels), 4, 4, relu=True)
    residual = conv(hidden, _INNER, (STRIDE * STRIDE * channels, _HIDDEN), 3, 1, relu=False)
    plane = g.tensor("plane", image_shape, inner, *inner_scale)
    g.operator("DEPTH_TO_SPACE", [residual], [plane], blockSize=STRIDE)
    if level is None:
        fixed = np.full((1,), 0 if integer else 0.1)
        level = g.tensor("level", (1,), inner, *sigma_scale, data=fixed.astype(inner))
    noise = g.tensor("noise", image_shape, inner, *((1 / 255, 0) if integer else (None, 0)))
    g.operator("MUL", [plane, level], [noise])
    clean = g.tensor(
        "clean_int8" if outer == "uint8" else "clean", image_shape, inner, *((1 / 255, -128) if integer else (None, 0))
    )
    g.operator("SUB", [inside, noise], [clean])
    result = clean
    if outer == "uint8":
        result = g.tensor("clean", image_shape, "uint8", 1 / 255, 0)
        g.operator("QUANTIZE", [clean], [result])
    file = f"tiny.{name}.tflite"
    g.write(folder / file, [image] if blind else [image, level], [result])

    def spec(tensor: str, role: str, shape: tuple[int, ...], layout: str, dtype: str, q: Any) -> TensorSpec:
        return TensorSpec(tensor, role, shape, layout, dtype, q[0], q[1] if q[0] is not None else None)

    inputs = [spec("image", "image", image_shape, "NHWC", outer, byte)]
    if not blind:
        inputs.append(spec("sigma", "sigma", (1,), "N", inner, sigma_scale))
    return Variant(name, file, "litert", tuple(inputs), (spec("clean", "clean", image_shape, "NHWC", outer, byte),))


def manifest(variants: tuple[Variant, ...], *, tile: int, channels: int = 3, blind: bool = False) -> Manifest:
    """The manifest of a bundle of these files, as far as the runtime reads it."""
    facts = ModelFacts("tiny", channels, STRIDE, HALO, blind, 1.0, 1, 1.0, 1, 4)
    return Manifest("tiny", "tflite", "int8", variants[0].name, variants, facts, tile, SIGMA, Thresholds(0.5))


@dataclasses.dataclass
class Stand:
    """What the denoiser needs of a bundle, without hashes and golden tiles."""

    manifest: Manifest
    folder: Path
    closed: int = 0

    def path(self, relative: str) -> Path:
        return self.folder / relative

    def close(self) -> None:
        self.closed += 1


def stand(folder: Path, *names: str, tile: int, channels: int = 3, blind: bool = False) -> Stand:
    """Write files and the manifest of them."""
    variants = tuple(write(folder, name, tile=tile, channels=channels, blind=blind) for name in names)
    return Stand(manifest(variants, tile=tile, channels=channels, blind=blind), folder)
