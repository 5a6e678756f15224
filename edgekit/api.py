"""`edgekit.compress(...)` and `edgekit.train(...)` as Python sees them: the recipe's settings as keyword arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.extras import needed

if TYPE_CHECKING:
    from edgekit.bundle.reader import Bundle
    from edgekit.pipeline import StageProgress

    PathLike = str | os.PathLike[str]
    Nested = Mapping[str, Any]


def compress(
    *,
    recipe: PathLike | None = None,
    model: str | None = None,
    weights: PathLike | None = None,
    teacher: str | None = None,
    data: PathLike | None = None,
    sigma: tuple[float, float] | str | None = None,
    prune: float | None = None,
    steps: int | None = None,
    target: str | None = None,
    precision: str | None = None,
    max_drop: float | None = None,
    tile: int | None = None,
    seed: int | None = None,
    out: PathLike = "build",
    force: bool = False,
    resume: bool = False,
    progress: StageProgress | None = None,
) -> Bundle:
    """Compress a denoiser for a target: prune, distill, quantize, export, and write the bundle.

    Args:
        recipe: YAML file with any of these settings; those given here win. None (everywhere below): the recipe's value,
            or the default.
        model: name of a registered model; "dsunet-s".
        weights: its weights, a .safetensors file; the shipped ones.
        teacher: a registered model with shipped weights, or "none"; "unet".
        data: folder of clean images, or of pairs (`noisy/` and `clean/`); the built-in images, which need no download.
        sigma: noise levels in 8-bit units, (low, high) or "low:high" within 0..255; (0, 55).
        prune: share of the MACs to remove, 0..0.9; 0.25.
        steps: training steps of distillation and quantization together; the stages' own.
        target: what to export for, e.g. "tflite". It has no default.
        precision: "int8", "fp16" or "fp32"; "int8".
        max_drop: dB that may be lost in all, against the original FP32 model; 0.5.
        tile: height and width of the target's input in pixels; 512.
        seed: of every generator; 0.
        out: folder that the bundle `NAME-TARGET.edgekit` is written into.
        force: replace an existing bundle.
        resume: go on where an interrupted run with the same settings stopped.
        progress: called as progress(stage, done, total, text).
    Returns: the bundle, open. Whether it is good enough is what `edgekit.check(bundle.folder)` says.
    Raises: RecipeError, UnknownNameError, DataError, CheckpointError, TrainingError, ExportError, OutputExistsError,
        MissingExtraError.
    """
    settings = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
    with needed("compress", "train,tflite"):
        from edgekit.recipe import load_recipe

        loaded = load_recipe(Path(recipe) if recipe is not None else None, **settings)
        from edgekit import pipeline

        return pipeline.compress(loaded, out=Path(out), force=force, resume=resume, progress=progress)


_NOT_SETTINGS = {"recipe", "out", "force", "resume", "progress"}
