"""`edgekit.compress(...)` and `edgekit.train(...)` as Python sees them: the recipe's settings as keyword arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError
from edgekit.extras import needed

if TYPE_CHECKING:
    from edgekit.bundle.reader import Bundle
    from edgekit.evaluation import Evaluation
    from edgekit.pipeline import Progress
    from edgekit.runtime.verdict import Verdict
    from edgekit.search.study import Search
    from edgekit.train.loop import Progress as TrainingProgress
    from edgekit.train.run import Trained
    from edgekit.tuning import Tuned

    PathLike = str | os.PathLike[str]

_log = logging.getLogger(__name__)


def compress(
    *,
    recipe: PathLike | None = None,
    model: str | None = None,
    weights: PathLike | None = None,
    teacher: str | None = None,
    data: PathLike | None = None,
    sigma: tuple[float, float] | str | None = None,
    iso_sigma: Mapping[int, float] | None = None,
    prune: float | None = None,
    steps: int | None = None,
    target: str | None = None,
    quantizer: str | None = None,
    precision: str | None = None,
    license_clean: bool | None = None,
    max_drop: float | None = None,
    tile: int | None = None,
    seed: int | None = None,
    out: PathLike = "build",
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Compress a denoiser for a target: prune, distill, quantize, export, and write the bundle.

    For `target="all"` see `compress_all`.

    Args:
        recipe: YAML file with any of these settings; those given here win. None (everywhere below): the recipe's value,
            or the default.
        model: name of a registered model; "dsunet-s".
        weights: its weights, a .safetensors file; the shipped ones.
        teacher: "original" (the model before pruning), shipped weights, a weight file, or "none"; "original".
        data: folder of clean images, or of pairs (`noisy/` and `clean/`); the built-in images, which need no download.
        sigma: noise levels in 8-bit units, (low, high) or "low:high" within 0..255; (0, 55).
        iso_sigma: noise level by ISO setting, within `sigma`, which the bundle carries (`edgekit profile`); none.
        prune: share of the MACs to remove, 0..0.9; 0.25, or 0 of a network with less than 5,000 MACs per pixel.
        steps: training steps of distillation and quantization together; the stages' own.
        target: what to export for: "tflite", "openvino" or "tensorrt". It has no default.
        quantizer: "edgekit" (ranges learned by QAT), or "nncf" for OpenVINO (NNCF's post-training quantization).
        precision: "int8", "fp16" or "fp32"; "int8".
        license_clean: refuse weights, teachers and images that are not free for any use; no.
        max_drop: dB that may be lost in all, against the original FP32 model; 0.5.
        tile: height and width of the target's input in pixels; 512.
        seed: of every generator; 0.
        out: folder that the bundle `NAME-TARGET.edgekit` is written into.
        force: replace an existing bundle.
        resume: go on where an interrupted run with the same settings stopped.
        progress: called as progress(stage, done, total, text).
    Returns: the bundle, open. Whether it is good enough is what `edgekit.check(bundle.folder)` says.
    Raises: RecipeError, UnknownNameError, DataError, CheckpointError, LicenceError, TrainingError, ExportError,
        OutputExistsError, MissingExtraError.
    """
    settings = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
    with needed("compress", "train,tflite"):
        from edgekit.recipe import load_recipe

        loaded = load_recipe(Path(recipe) if recipe is not None else None, **settings)
        from edgekit import pipeline
        from edgekit.targets.registry import ALL

        if loaded.target == ALL:
            raise RecipeError("target is 'all': compress gives one bundle; call compress_all, or name one target")
        return pipeline.compress(loaded, out=Path(out), force=force, resume=resume, progress=progress)[0]


def compress_all(
    *,
    recipe: PathLike | None = None,
    out: PathLike = "build",
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Bundle]:
    """Compress a denoiser for every target: pruned and distilled once, quantized and exported for each.

    Args:
        recipe, out, force, resume, progress: as for `compress`.
        settings: the other settings of `compress`, but `target`.
    Returns: the bundles, open, by target.
    Raises: what `compress` raises.
    """
    with needed("compress", "all"):
        from edgekit.recipe import load_recipe

        loaded = load_recipe(Path(recipe) if recipe is not None else None, **{**settings, "target": "all"})
        from edgekit import pipeline

        bundles = pipeline.compress(loaded, out=Path(out), force=force, resume=resume, progress=progress)
        return {bundle.manifest.target: bundle for bundle in bundles}


_NOT_SETTINGS = {"recipe", "out", "force", "resume", "progress"}


def train(
    model: str | None = None,
    *,
    recipe: PathLike | None = None,
    channels: int | None = None,
    data: PathLike | None = None,
    weights: PathLike | None = None,
    grow: bool | None = None,
    teacher: PathLike | None = None,
    license_clean: bool | None = None,
    sigma: tuple[float, float] | str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    out: PathLike | None = None,
    force: bool = False,
    resume: bool = False,
    progress: TrainingProgress | None = None,
) -> Trained:
    """Train a model, or fine-tune it.

    Args:
        model: name of a registered model; may be left to the recipe.
        recipe: YAML file as a run leaves it (`recipe.yaml`); what is given here wins. It may have `parts`: runs one
            after another, each from the weights of the one before. None (everywhere below): the recipe's value, or the
            default.
        channels: 1 (gray) or 3 (RGB); the model's own.
        data: folder of clean images, or of pairs (`noisy/` and `clean/`); the built-in images.
        weights: shipped name or file to start from; random weights.
        grow: `weights` are of a smaller network of the same architecture: begin as the same function; no.
        teacher: shipped name or file of a better model that is imitated too; none.
        license_clean: refuse weights, a teacher and images that are not free for any use; no.
        sigma: noise levels in 8-bit units, (low, high) or "low:high" within 0..255; (0, 55).
        steps: optimiser steps; 35000.
        seed: of every generator; 0.
        settings: any other setting of `edgekit.recipe.TrainSettings` by name, e.g. {"batch": 16, "devices": 2}.
        out: the run's folder; "runs/MODEL".
        force: start over where `out` holds a run.
        resume: go on with the run that `out` holds.
        progress: called as progress(done, total, text).
    Returns: the trained model, where its weights lie, and the last validation.
    Raises: RecipeError, UnknownNameError, DataError, CheckpointError, LicenceError, TrainingError, OutputExistsError,
        MissingExtraError.
    """
    with needed("train", "train"):
        from edgekit.recipe import TrainRecipe, load, merge

        short = {"steps": steps, "seed": seed, "noise": None if sigma is None else {"sigma": sigma}}
        given = {name: value for name, value in short.items() if value is not None}
        overrides = {
            "model": model,
            "channels": channels,
            "data": data,
            "weights": None if weights is None else str(weights),
            "grow": grow,
            "teacher": None if teacher is None else str(teacher),
            "license_clean": license_clean,
            "train": (chosen := merge(settings or {}, given)),
        }
        loaded = load(TrainRecipe, None if recipe is None else Path(recipe), overrides)
        loaded.check_given(chosen)
        if unread := loaded.unread():
            _log.warning("%s", unread)
        from edgekit.train import parts, run

        folder = Path("runs", loaded.model) if out is None else out
        if loaded.parts:
            return parts.train_parts(loaded, folder, resume=resume, force=force, progress=progress)
        return run.train(
            loaded.model,
            loaded.data,
            loaded.train,
            folder,
            channels=loaded.channels,
            config=loaded.config,
            weights=loaded.weights,
            grow=loaded.grow,
            teacher=loaded.teacher,
            license_clean=loaded.license_clean,
            resume=resume,
            force=force,
            progress=progress,
        )


def finetune(
    model: PathLike | None = None,
    *,
    recipe: PathLike | None = None,
    data: PathLike | None = None,
    replay: PathLike | None = None,
    replay_share: float | str | None = None,
    weights: PathLike | None = None,
    license_clean: bool | None = None,
    settings: Mapping[str, Any] | None = None,
    out: PathLike | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    on_verdict: Callable[[Verdict], None] | None = None,
) -> Tuned:
    """Teach a model a new noise, with those that it knows replayed, and measure both; a bundle becomes a new bundle.

    Args:
        model: a bundle, or the name of a model; may be left to the recipe.
        recipe: YAML file with settings of `edgekit.recipe.FinetuneRecipe`; what is given here wins. None (everywhere
            below): the recipe's value, or the default.
        data: folder of new images: clean ones, to which `settings["noise"]` is added, or pairs.
        replay: folder of old images, or of ones that stand for them; the built-in images.
        replay_share: of each batch, 0..1; 0.5.
        weights: of a model, a shipped name or a file; its shipped ones.
        license_clean: refuse weights and images that are not free for any use; no.
        settings: of the training, by name: {"steps": 2000, "noise": {"model": "salt-and-pepper"}}.
        out: the run's folder, the new bundle's, too; "runs/NAME-tuned".
        force: start over where `out` holds a run.
        resume: go on with the run that `out` holds.
        progress: called as progress(stage, done, total, text).
        on_verdict: told the verdict on the new bundle.
    Returns: the model, where it lies, dB before and after on new and old noise, and the new bundle, if one was tuned.
    Raises: RecipeError, UnknownNameError, BundleError, DataError, CheckpointError, LicenceError, TrainingError,
        ExportError, OutputExistsError, MissingExtraError.
    """
    with needed("finetune", "train,tflite"):
        from edgekit.recipe import FinetuneRecipe, load

        given: dict[str, Any] = {
            "model": None if model is None else os.fspath(model), "data": data, "replay": replay,
            "replay_share": replay_share, "weights": None if weights is None else os.fspath(weights),
            "license_clean": license_clean, "train": settings,
        }  # fmt: skip
        loaded = load(FinetuneRecipe, None if recipe is None else Path(recipe), given)
        from edgekit.tuning import finetune as run

        return run(
            loaded,
            out=None if out is None else Path(out),
            force=force,
            resume=resume,
            progress=progress,
            on_verdict=on_verdict,
        )


def evaluate(
    what: PathLike | Sequence[PathLike],
    data: PathLike,
    *,
    sigma: float | Sequence[float] | str | None = None,
    model: str | None = None,
    variant: str | None = None,
    unclipped: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure bundles and models on a folder of images, all under the same noise.

    Args:
        what: one or several bundles, shipped weights, weight files, and networks of your own (.onnx, .keras, .pt2, or
            net.py:make as its factory returns it).
        data: folder of clean images, or of pairs in noisy/ and clean/.
        sigma: noise levels in 8-bit units, for clean images: 25, or (15, 25); 5, 15, 25 and 50. For pairs one level
            that all are told, or "auto", which estimates it; the root mean square of noisy - clean.
        model: what weight files are of that do not say so themselves: a model's name, or net.py:make.
        variant: of bundles, which model file; their default one.
        unclipped: noise neither clipped nor rounded, as papers measure; for models alone.
        threads: CPU threads of bundles; as many as there are, at most 4.
        progress: called as progress(stage, done, total, text).
    Returns: PSNR and SSIM of the noisy images and of each result, by noise level.
    Raises: RecipeError, ShapeError, DataError, UnknownNameError, CheckpointError, BundleError, EngineError,
        MissingExtraError.
    """
    with needed("evaluate", "train"):
        from edgekit.evaluation import evaluate as run

        several = [what] if isinstance(what, str | os.PathLike) else what
        levels = sigma if sigma is None or isinstance(sigma, str | Sequence) else (float(sigma),)
        return run(
            several, data, sigma=levels, model=model, variant=variant, unclipped=unclipped, threads=threads,
            progress=progress,
        )  # fmt: skip


def search(
    budget: float | str | None = None,
    *,
    recipe: PathLike | None = None,
    target: str | None = None,
    data: PathLike | None = None,
    license_clean: bool | None = None,
    channels: int | None = None,
    sigma: tuple[float, float] | str | None = None,
    trials: int | None = None,
    steps: int | None = None,
    threads: int | None = None,
    tile: int | None = None,
    storage: PathLike | None = None,
    seed: int | None = None,
    out: PathLike = "student.yaml",
    progress: Progress | None = None,
) -> Search:
    """Find the widths and depth of a student within a latency budget on this machine; write the recipe that trains it.

    Args:
        budget: milliseconds per megapixel of useful pixels, 40 or "40ms/MP"; may be left to the recipe.
        recipe: YAML file with settings of `edgekit.recipe.SearchRecipe`; what is given here wins. None (everywhere
            below): the recipe's value, or the default.
        target: what candidates are exported to and timed as; "tflite".
        data: folder of clean images, or of pairs; the built-in images.
        license_clean: refuse images that are not free for any use; no.
        channels: 1 (gray) or 3 (RGB); 3.
        sigma: noise levels in 8-bit units, (low, high) or "low:high"; (0, 55).
        trials: candidates in all; 20.
        steps: training steps of each candidate; 1500.
        threads: CPU threads that candidates are timed with; 1.
        tile: height and width of the input they are timed on; 512.
        storage: a file (on a shared disk, if several machines work on it) or a database's URL; beside `out`.
        seed: of every generator; 0.
        out: the recipe file to write.
        progress: called as progress(stage, done, total, text).
    Returns: all candidates, the best within the budget, and where the recipe lies.
    Raises: RecipeError (no candidate within the budget among others), DataError, CheckpointError, TrainingError,
        OutputExistsError, MissingExtraError.
    """
    with needed("search", "train,tflite,search"):
        from edgekit.recipe import SearchRecipe, load

        given: dict[str, Any] = {
            "budget": budget, "target": target, "data": data, "channels": channels, "trials": trials, "steps": steps,
            "threads": threads, "tile": tile, "storage": None if storage is None else str(storage), "seed": seed,
            "license_clean": license_clean,
        }  # fmt: skip
        if sigma is not None:
            given["train"] = {"noise": {"sigma": sigma}}
        loaded = load(SearchRecipe, None if recipe is None else Path(recipe), given)
        from edgekit.search.study import search as run

        return run(loaded, out=Path(out), progress=progress)
