"""Whole models as a target's files, so that they run in the same runtime as a bundle: float, and INT8 by calibration.

What these figures are compared with is the bundle that `edgekit compress` makes: pruned, distilled, and quantized with
training (QAT). As a script: which architecture exports to which target (benchmarks/survey.py).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import edgekit
from benchmarks.contestants import Contestant
from benchmarks.results import versions
from benchmarks.sets import ROOT
from edgekit.bundle import reader, writer
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import Manifest, Thresholds
from edgekit.bundle.reader import Bundle
from edgekit.compress.quantize import quantize
from edgekit.compress.scheme import Scheme
from edgekit.models import DenoiserModel
from edgekit.pipeline import model_facts
from edgekit.recipe import QuantizeSettings, Recipe
from edgekit.runtime.denoiser import Denoiser
from edgekit.stage_data import GoldenImages, open_stage_data
from edgekit.targets import registry

FOLDER = ROOT / "build" / "benchmarks" / "exports"
TARGET = "tflite"
SIGMA = (0.0, 55.0)


def tile_for(model: DenoiserModel, side: int) -> int:
    """The smallest tile that covers an image of `side` pixels with its halo: one run an image."""
    border = -(-model.halo // model.stride) * model.stride
    return -(-(side + 2 * border) // model.stride) * model.stride


def export(
    contestant: Contestant,
    tile: int,
    folder: Path = FOLDER,
    target: str = TARGET,
    *,
    steps: int = 0,
    changes: Mapping[str, Any] | None = None,
    tiles: int = 1,
    precision: str = "int8",
) -> Bundle:
    """Export a model with nothing taken away, or open what an earlier run exported.

    Args:
        contestant: what to export.
        tile: height and width of the static input, a multiple of the model's stride.
        folder: where exports are kept.
        target: what to export for.
        steps: of QAT; 0 is calibration alone.
        changes: to the target's own scheme, by name.
        tiles: golden tiles to keep, of those that a bundle has.
        precision: "fp32" leaves the integers out.
    Returns: a bundle with the variants "fp32" and "int8" (ranges observed on the built-in images), its golden tile only
        there to make it whole: such a bundle is measured, not shipped.
    Raises: ExportError.
    """
    stamp = json.dumps([contestant.sha256, tile, steps, dict(changes or {}), tiles, precision, versions(), _code()])
    place = folder / f"{contestant.name}-{target}-{tile}-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}.edgekit"
    if not place.exists():
        with tempfile.TemporaryDirectory() as files:
            scheme = registry.get(target).scheme()
            scheme = replace(scheme, **(changes or {}))
            _write(contestant, tile, Path(files), place, target, scheme, steps, tiles, precision)
    return reader.read(place)


def _code() -> str:
    """sha256 of the code that makes an export: after an edit an earlier one is stale."""
    sources = sorted(Path(edgekit.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _write(
    contestant: Contestant,
    tile: int,
    files: Path,
    place: Path,
    name: str,
    scheme: Scheme,
    steps: int,
    tiles: int,
    precision: str,
) -> None:
    model = contestant.model
    target = registry.get(name)
    recipe = Recipe(
        model=contestant.name,
        teacher="none",
        target=name,
        prune=0,
        steps=0,
        tile=tile,
        sigma=SIGMA,
        # Simple calibration, the row that edgekit's own stages are held against: each weight to the nearest as default
        # tools do, one fit of the ranges.
        quantization=QuantizeSettings(rounding="nearest", range_fit="least-squares"),
    )
    images = open_stage_data(recipe, model.channels)
    program, records = None, ()
    if precision == "int8":
        program, record = quantize(
            model,
            scheme,
            recipe.quantization.model_copy(update={"steps": steps}),
            images.batches,
            images.tiles,
            sigma_range=(SIGMA[0] / 255, SIGMA[1] / 255),
        )
        records = (record.to_dict(),)
    lowered = target.lower(model, program, files, name=contestant.name, tile=tile, precision=precision)
    manifest = Manifest(
        name=contestant.name,
        target=name,
        precision=precision,
        default_variant=precision,
        variants=lowered.variants,
        model=model_facts(model, model),
        tile=tile,
        sigma=SIGMA,
        thresholds=Thresholds(max_drop=recipe.max_drop),
        layers=lowered.layers,
        stages=records,
        recipe=recipe.model_dump(mode="json"),
        versions=versions(),
    )
    written = {file: files / file for v in lowered.variants for file in v.files}
    golden = _golden(Bundle(replace(manifest, files=dict.fromkeys(written, "")), files, files), images.golden, tiles)
    writer.write(place, manifest, written, golden)


def _golden(files: Bundle, tiles: GoldenImages, count: int) -> Golden:
    """Golden tiles, from the files themselves."""
    noisy, sigma = tiles.noisy[:count], tiles.sigma[:count]
    pairs = list(zip(noisy, sigma.tolist(), strict=True))
    with Denoiser.from_bundle(files, "fp32") as denoiser:
        fp32 = np.stack([Golden.pack(denoiser(k.astype(np.float32) / 255, sigma=level)) for k, level in pairs])
    with Denoiser.from_bundle(files) as denoiser:
        host, kernels = np.stack([denoiser(k, sigma=level) for k, level in pairs]), denoiser.engine.kernels
    return Golden(
        noisy=noisy,
        clean=tiles.clean[:count],
        sigma=sigma,
        fp32_original=fp32,
        fp32_compressed=fp32,
        host=host,
        thresholds=files.manifest.thresholds,
        kernels=kernels,
    )


if __name__ == "__main__":
    from benchmarks import survey
    from benchmarks.console import leave

    leave(survey.main)
