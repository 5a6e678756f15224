"""A tiny bundle of ONNX files, as a TensorRT target writes it: a blur whose strength follows sigma."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from golden_bundle import scenes
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import golden, reader, schema
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import Manifest, ModelFacts, TensorSpec, Thresholds, Variant
from edgekit.runtime import tiling

TILE, HALO, STRIDE = 32, 1, 4
NAME = "tiny-blur"
INPUTS = (
    TensorSpec("noisy", "image", (-1, 3, -1, -1), "NCHW", "float32"),
    TensorSpec("sigma", "sigma", (-1,), "N", "float32"),
)
OUTPUTS = (TensorSpec("clean", "clean", (-1, 3, -1, -1), "NCHW", "float32"),)
# MACs of one tile: the blur and the mix.
MACS = TILE * TILE * (3 * 3 * 9 + 3 * 3)


def onnx_bytes(precision: str) -> bytes:
    """The model: "fp32", "fp16" (float32 at its border) or "int8" (Q/DQ at both convolutions)."""
    row = np.array([1, 2, 1], np.float32)
    blur = np.einsum("oi,h,w->oihw", np.eye(3), row, row).astype(np.float32) / 16
    mix = np.eye(3, dtype=np.float32)[:, :, None, None]
    half = precision == "fp16"
    kind = np.float16 if half else np.float32
    nodes, constants = [], [_constant("shape", np.array([-1, 1, 1, 1], np.int64))]
    image, level = "noisy", "sigma"
    if half:
        nodes += [_cast("noisy", "noisy16", TensorProto.FLOAT16), _cast("sigma", "sigma16", TensorProto.FLOAT16)]
        image, level = "noisy16", "sigma16"
    source = image
    for name, weights, pads in (("blur", blur, 1), ("mix", mix, 0)):
        if precision == "int8":
            source = _quantized(nodes, constants, source, f"{name}.in", np.float32(1 / 127))
            _quantized_weights(nodes, constants, f"{name}.w", weights)
        else:
            constants.append(_constant(f"{name}.w", weights.astype(kind)))
        nodes.append(helper.make_node("Conv", [source, f"{name}.w"], [name], name=name, pads=[pads] * 4))
        source = name
    constants += [_constant(n, np.array(v, kind)) for n, v in (("eight", 8), ("zero", 0), ("one", 1))]
    result = "clean16" if half else "clean"
    nodes += [
        helper.make_node("Mul", [level, "eight"], ["steep"]),
        helper.make_node("Clip", ["steep", "zero", "one"], ["gate"]),
        helper.make_node("Reshape", ["gate", "shape"], ["gates"]),
        helper.make_node("Sub", ["mix", image], ["change"]),
        helper.make_node("Mul", ["change", "gates"], ["gated"]),
        helper.make_node("Add", [image, "gated"], [result]),
    ]
    if half:
        nodes.append(_cast("clean16", "clean", TensorProto.FLOAT))
    image_info, level_info, clean_info = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("noisy", ["n", 3, "h", "w"]), ("sigma", ["n"]), ("clean", ["n", 3, "h", "w"]))
    )
    graph = helper.make_graph(nodes, NAME, [image_info, level_info], [clean_info], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def run_onnx(model: bytes, feed: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """The model's output by ONNX Runtime, one thread."""
    output: NDArray[Any] = _session(model).run(None, feed)[0]
    return output


@functools.lru_cache
def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def denoise(model: bytes, image: NDArray[np.uint8], sigma: float) -> NDArray[np.float32]:
    """A uint8 image [H, W, C] through the model as `tiling` defines the result; float in 0..255."""

    def window(pixels: NDArray[Any]) -> NDArray[Any]:
        planes = pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
        clean = run_onnx(model, {"noisy": planes, "sigma": np.full(1, sigma / 255, np.float32)})
        return clean[0].transpose(1, 2, 0) * np.float32(255)

    return tiling.run_tiled(image.astype(np.float32), window, tile=TILE, halo=HALO, stride=STRIDE)


def write_bundle(
    folder: Path,
    *,
    precisions: tuple[str, ...] = ("int8", "fp32"),
    max_drop: float = 0.5,
    profile: dict[str, Any] | None = None,
) -> Path:
    """Write manifest, golden tiles and ONNX files; every hash is right."""
    folder.mkdir(parents=True)
    models = {precision: onnx_bytes(precision) for precision in precisions}
    for precision, data in models.items():
        (folder / f"{NAME}.{precision}.onnx").write_bytes(data)
    levels = np.array([25, 50], np.float32)
    clean = scenes(len(levels), 40, seed=3)
    noise = np.random.default_rng(4).normal(0, 1, clean.shape) * levels[:, None, None, None]
    noisy = np.rint(np.clip(clean + noise, 0, 255)).astype(np.uint8)
    exact = np.stack([denoise(onnx_bytes("fp32"), t, float(s)) for t, s in zip(noisy, levels, strict=True)])
    packed = Golden.pack(exact / np.float32(255))
    limits = Thresholds(max_drop)
    tiles = Golden(
        noisy,
        clean,
        levels,
        packed,
        packed.copy(),
        Golden.to_uint8(packed),
        limits,
        "onnxruntime",
        models={f"{NAME}.{p}.onnx": reader.sha256(folder / f"{NAME}.{p}.onnx") for p in precisions},
    )
    golden.save(tiles, folder / "golden.npz")
    made = manifest(precisions, max_drop, profile)
    names = [v.file for v in made.variants] + ["golden.npz"]
    made = replace(made, files={name: reader.sha256(folder / name) for name in names})
    (folder / "manifest.json").write_text(schema.dumps(made))
    return folder


def manifest(
    precisions: tuple[str, ...] = ("int8", "fp32"), max_drop: float = 0.5, profile: dict[str, Any] | None = None
) -> Manifest:
    """The bundle's manifest, with hashes of nothing."""
    variants = tuple(Variant(p, f"{NAME}.{p}.onnx", "tensorrt", INPUTS, OUTPUTS) for p in precisions)
    recipe: dict[str, Any] = {"max_drop": max_drop}
    if profile is not None:
        recipe["shape_profile"] = profile
    return Manifest(
        name=NAME,
        target="tensorrt",
        precision="int8",
        default_variant=precisions[0],
        variants=variants,
        model=ModelFacts("blur", 3, STRIDE, HALO, False, 90.0, 90, 90.0, 90, 360),
        tile=TILE,
        sigma=(0.0, 55.0),
        thresholds=Thresholds(max_drop),
        recipe=recipe,
        files={**{v.file: "0" * 64 for v in variants}, "golden.npz": "0" * 64},
    )


def _constant(name: str, values: NDArray[Any]) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def _cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], to=kind)


def _quantized(nodes: list[Any], constants: list[Any], source: str, name: str, scale: np.float32) -> str:
    """Q and DQ of an activation, symmetric, one scale."""
    constants += [_constant(f"{name}.scale", np.array(scale)), _constant(f"{name}.zero", np.array(0, np.int8))]
    parameters = [f"{name}.scale", f"{name}.zero"]
    nodes.append(helper.make_node("QuantizeLinear", [source, *parameters], [f"{name}.q"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *parameters], [name]))
    return name


def _quantized_weights(nodes: list[Any], constants: list[Any], name: str, weights: NDArray[Any]) -> None:
    """Int8 weights, one scale an output channel."""
    scale = np.abs(weights).max(axis=(1, 2, 3)) / np.float32(127)
    integers = np.rint(weights / scale[:, None, None, None]).astype(np.int8)
    zeros = np.zeros(len(scale), np.int8)
    parts = {f"{name}.q": integers, f"{name}.scale": scale.astype(np.float32), f"{name}.zero": zeros}
    constants += [_constant(part, values) for part, values in parts.items()]
    nodes.append(helper.make_node("DequantizeLinear", list(parts), [name], axis=0))
