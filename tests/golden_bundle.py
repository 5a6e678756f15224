"""A small real bundle for the tests of the bundle and of the check: test scenes, specs, and the writing of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle import golden, reader, writer
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import LayerReport, Manifest, ModelFacts, TensorSpec, Thresholds, Variant
from edgekit.bundle.reader import Bundle
from edgekit.runtime.denoiser import Denoiser

DATA = Path(__file__).with_name("data")
TILE = 64


def scenes(count: int, side: int, seed: int) -> NDArray[np.uint8]:
    """Images [count, side, side, 3] of overlapping flat and shaded shapes: edges, corners, ramps, some texture."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side]
    images = np.empty((count, side, side, 3), np.float64)
    for image in images:
        image[:] = random.uniform(0, 255, 3)
        for _ in range(30):
            cy, cx = random.uniform(0, side, 2)
            radius = side * random.uniform(0.04, 0.4)
            angle = random.uniform(0, np.pi)
            across = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
            along = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
            inside = (
                across**2 + along**2 < radius**2
                if random.random() < 0.5
                else np.maximum(abs(across), abs(along) * 2) < radius
            )
            shade = random.uniform(-1, 1) * across / radius * 60
            if random.random() < 0.3:
                shade = shade + 25 * np.sin(along * random.uniform(0.5, 2))
            image[inside] = (random.uniform(0, 255, 3) + shade[..., None])[inside]
    return np.rint(np.clip(images, 0, 255)).astype(np.uint8)


def run_host(
    folder: Path, manifest: Manifest, variant: str, noisy: NDArray[np.uint8], sigma: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], str]:
    """What a variant whose file lies in `folder` gives for the tiles, and the kernels that computed it."""
    with Denoiser.from_bundle(Bundle(manifest, folder, folder), variant, 1) as denoiser:
        return np.stack(
            [denoiser(t, sigma=float(s)) for t, s in zip(noisy, sigma, strict=True)]
        ), denoiser.engine.kernels


def tiny_manifest(**changes: Any) -> Manifest:
    """The manifest of the tiny model, as a pipeline would make it."""
    facts = json.loads((DATA / "golden-tiny.json").read_text())

    def spec(values: dict[str, Any]) -> TensorSpec:
        return TensorSpec(**{**values, "shape": tuple(values["shape"])})

    variants = tuple(
        Variant(v["name"], v["file"], v["engine"], tuple(map(spec, v["inputs"])), tuple(map(spec, v["outputs"])))
        for v in facts["variants"]
    )
    size = {"macs_per_pixel": 564.2, "parameters": 3424}
    before = {"macs_per_pixel": 800.0, "parameters": 5000}
    db = {"5": 34.38, "15": 26.08, "25": 22.80, "50": 18.19}
    manifest = Manifest(
        name="golden-tiny",
        target="tflite",
        precision="int8",
        default_variant="int8",
        variants=variants,
        model=ModelFacts("dsunet", 3, 4, 15, False, 564.2, 3424, 800.0, 5000, 20_000, "made for the tests"),
        tile=TILE,
        sigma=(0.0, 55.0),
        thresholds=Thresholds(0.5, 1.0),
        layers=tuple(LayerReport(**layer) for layer in facts["layers"]),
        stages=(
            {
                "stage": "prune",
                "what": "removed 29% of MACs",
                "before": before,
                "after": size,
                "db_before": db,
                "db_after": {**db, "5": 34.2},
                "seconds": 3.0,
                "details": {},
            },
        ),
        recipe={"model": "dsunet-n", "max_drop": 0.5, "noise": {"model": "gaussian", "sigma": [0.0, 55.0]}},
        licences={"weights": "MIT", "training data": "made by the tests"},
        versions={"edgekit": "0"},
        files={v.file: "0" * 64 for v in variants},
    )
    return replace(manifest, **changes)


def tiny_golden(manifest: Manifest, **changes: Any) -> Golden:
    """Golden tiles of the tiny model: two a level, larger than the tile, so that tiling takes part."""
    levels = np.repeat(np.array([5, 15, 25, 50], np.float32), 2)
    clean = scenes(len(levels), 72, seed=77)
    random = np.random.default_rng(78)
    noise = random.normal(0, 1, clean.shape) * levels[:, None, None, None]
    noisy = np.rint(np.clip(clean + noise, 0, 255)).astype(np.uint8)
    host, kernels = run_host(DATA, manifest, "int8", noisy, levels)
    exact, _ = run_host(DATA, manifest, "fp32", noisy, levels)
    packed = Golden.pack(exact / np.float32(255))
    tiles = Golden(noisy, clean, levels, packed, packed.copy(), host, manifest.thresholds, kernels)
    return replace(tiles, **changes)


def write_tiny(folder: Path, **options: Any) -> Path:
    """Write the tiny bundle to `folder`; options as `writer.write`."""
    manifest = tiny_manifest()
    files = {v.file: DATA / v.file for v in manifest.variants}
    return writer.write(folder, manifest, files, tiny_golden(manifest), **options)


def rehash(folder: Path) -> None:
    """Rewrite every hash in a bundle, the golden tiles' own too, as one who wants to fool the check would."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    models = {v["file"]: reader.sha256(folder / v["file"]) for v in data["variants"]}
    edit_golden(folder, models=models)
    data["files"] = {name: reader.sha256(folder / name) for name in data["files"]}
    path.write_text(json.dumps(data))


def edit_golden(folder: Path, **changes: Any) -> None:
    """Rewrite fields of the golden tiles; the manifest's hash is left as it was."""
    tiles = golden.load(folder / "golden.npz")
    golden.save(replace(tiles, **changes), folder / "golden.npz")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` alter the manifest's JSON in place."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def double_scale(path: Path, layer: int, channel: int) -> None:
    """Double the weight scale of one output channel of the `layer`-th convolution of a .tflite, in place."""
    import ai_edge_litert.schema_py_generated as schema

    # Not packed anew: the accessors are views into this buffer, so four bytes change and nothing else.
    buffer = bytearray(path.read_bytes())
    graph = schema.Model.GetRootAs(buffer, 0).Subgraphs(0)
    scales = []
    for i in range(graph.TensorsLength()):
        quantization = graph.Tensors(i).Quantization()
        scale = quantization.ScaleAsNumpy() if quantization is not None else 0
        if graph.Tensors(i).Type() == schema.TensorType.INT8 and isinstance(scale, np.ndarray) and len(scale) > 1:
            scales.append(scale)
    scales[layer][channel] *= 2
    path.write_bytes(buffer)
