"""A whole training run: images in, a folder with weights, recipe and log out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgekit import models, noise_header
from edgekit._version import __version__
from edgekit.errors import CheckpointError, EdgekitError, OutputExistsError, RecipeError
from edgekit.models import licences
from edgekit.models.base import DenoiserModel
from edgekit.models.checkpoints import write_atomically
from edgekit.models.grow import grow as grow_into
from edgekit.out_folder import check_out_folder
from edgekit.recipe import TrainSettings
from edgekit.train.images import ImageSource, open_images
from edgekit.train.journal import LOG, read_log
from edgekit.train.loop import Progress, check, fit
from edgekit.train.processes import as_launched, first
from edgekit.train.state import FILE, WEIGHTS, weights_digest

RECIPE = "recipe.yaml"
OURS = (FILE, WEIGHTS, RECIPE, LOG)
# Folders of a run in parts, which `parts` trains.
PARTS = "part-{}"


@dataclass(frozen=True)
class Trained:
    """What a run ended in.

    Attributes:
        model: the trained model, in eval mode on the CPU.
        path: its weight file; `recipe.yaml` and `log.jsonl` stand beside it.
        steps: optimiser steps taken; fewer than asked for when it stopped early.
        seconds: time spent, resumed parts together.
        scores: the last validation, e.g. {"psnr_25": 30.9, "ssim_25": 0.87}; empty when no image is held out.
        first: whether this process wrote the files: of several that train together, one does.
    """

    model: DenoiserModel
    path: Path
    steps: int
    seconds: float
    scores: Mapping[str, float]
    first: bool = True


def train(
    model_name: str,
    data: str | os.PathLike[str] | ImageSource | None,
    settings: TrainSettings,
    out: str | os.PathLike[str],
    *,
    channels: int | None = None,
    config: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
    grow: bool = False,
    teacher: str | os.PathLike[str] | None = None,
    license_clean: bool = False,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    on_start: Callable[[], None] | None = None,
) -> Trained:
    """Train a model by name and write `model.safetensors`, `recipe.yaml` and `log.jsonl` into a folder.

    Args:
        model_name: one of `models.names()`.
        data: a folder of clean images or of pairs; None for the built-in set. See `open_images`.
        settings: see `TrainSettings`.
        out: the run's folder.
        channels: 1 or 3; None is the model's own default.
        config: the architecture's own arguments where they are not the preset's, e.g. {"middle": [96, 96]}.
        weights: start from these (a shipped name or a file) instead of random weights.
        grow: `weights` are of a smaller network of this architecture, whose function this one begins with.
        teacher: a shipped name or a weight file of a better model, which is imitated too.
        license_clean: refuse weights, a teacher and images that are not free for any use.
        resume: go on with the run that `out` holds; an `out` without one starts it.
        force: start over where `out` holds a run.
        progress: told after every step.
        on_start: called on the process that writes, once all have found that the run can begin.
    Raises: LicenceError: see `license_clean`. OutputExistsError: `out` holds a run, and neither `resume` nor `force` is
        given. What `open_images`, `models.load` and `fit` raise.
    """
    folder = Path(out)
    check_out_folder(folder)
    existing = held(folder)
    anew = force and not resume
    if any(path.parent != folder for path in existing) and not anew:
        raise OutputExistsError(
            f"{folder} holds a training run in parts: resume it with its recipe (--recipe {folder / RECIPE} --resume), "
            "start over (--force), or name another folder"
        )
    refuse_another_run(existing, folder, allowed=resume or force)
    if anew:
        check_outside(existing, {"weights": weights, "teacher": teacher, "feature_weights": settings.feature_weights})
    if license_clean:
        check_licences(data, weights, teacher, settings.feature_weights)
    model = beginning(model_name, settings.seed, channels=channels, config=config, weights=weights, grow=grow)
    tutor = None if teacher is None else models.load(os.fspath(teacher))
    source = data if isinstance(data, ImageSource) else images(data, model, settings, settings.crop)
    check(model, source, settings, tutor)
    settings = as_launched(settings)
    if anew:
        for path in existing:
            path.unlink(missing_ok=True)
    identity = {"starting weights": weights_digest(model) if weights is not None else "random"}
    recipe = _recipe(model_name, model, dict(config or {}), source, settings, weights, grow, teacher)

    def begin() -> None:
        # Now, so that a run that is killed can be resumed by it.
        write_atomically(folder / RECIPE, recipe)
        if on_start:
            on_start()

    trained = fit(
        model,
        source,
        settings,
        folder,
        teacher=tutor,
        progress=progress,
        identity=identity,
        on_start=begin,
    )
    records = read_log(folder / LOG)
    scores = _scores(records, best=settings.patience > 0)
    if first():
        taught = [_terms(origin) for origin in (weights, teacher, settings.feature_weights) if origin is not None]
        began = "" if weights is None else _terms(weights).trained_on
        header = licences.header((licences.Terms(source.licence, source.use), *taught), (began, source.name))
        added = not source.paired and settings.self_supervised == "none"
        if added:
            # So that compression takes the same.
            header.update(noise_header.write(settings.noise))
        models.save(folder / WEIGHTS, trained, header)
    last: dict[str, Any] = records[-1] if records else {"step": settings.steps, "seconds": 0.0}
    return Trained(trained, folder / WEIGHTS, last["step"], last["seconds"], scores, first())


def images(
    data: str | os.PathLike[str] | None, model: DenoiserModel, settings: TrainSettings, crop: int
) -> ImageSource:
    """The images of a run, those that a crop of so many pixels fits into. Raises: what `open_images` raises."""
    return open_images(
        data,
        channels=model.channels,
        patch=crop,
        validation_share=settings.validation_share,
        seed=settings.seed,
        leaves=settings.leaves,
    )


def beginning(
    model_name: str,
    seed: int,
    *,
    channels: int | None = None,
    config: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
    grow: bool = False,
) -> DenoiserModel:
    """The model that a run starts from: random weights by the seed, or those given, or what grows out of them."""
    if grow and weights is None:
        raise RecipeError(
            "grow needs the weights of a smaller network to begin as: name them (weights, --weights), or leave grow out"
        )
    torch.manual_seed(seed)
    if model_name not in models.names() and (known := models.checkpoints.preset(model_name)) != model_name:
        raise RecipeError(
            f"{model_name} is a set of weights of the model {known}: edgekit train {known} --weights {model_name} goes "
            f"on from them, edgekit train {known} begins anew"
        )
    model = models.create(model_name, **{**(config or {}), **({} if channels is None else {"channels": channels})})
    if weights is not None and grow:
        _check_says_its_size(os.fspath(weights))
        grow_into(models.load(os.fspath(weights)), model)
    elif weights is not None:
        try:
            models.load(os.fspath(weights), model)
        except CheckpointError as error:
            if not _grows(os.fspath(weights), model):
                raise
            raise CheckpointError(
                f"{error}; or begin as the same function, with room to learn more: grow (--grow)"
            ) from error
    return model


def _grows(weights: str, model: DenoiserModel) -> bool:
    """Whether weights that do not fit are of a network that the model could begin as."""
    try:
        grow_into(models.load(weights), model)
    except EdgekitError:
        return False
    return True


def _check_says_its_size(weights: str) -> None:
    if Path(weights).exists() and "config" not in models.checkpoints.metadata(weights):
        raise CheckpointError(
            f"grow: {weights} does not say of what size its network is; write it once as a file that does: "
            f"{models.checkpoints.named_line(weights, 'smaller.safetensors')}, and give that"
        )


def held(folder: Path) -> list[Path]:
    """The files of a run that a folder holds, those of its parts, too."""
    parts = (path for path in folder.glob(PARTS.format("*")) if path.name.removeprefix(PARTS.format("")).isdecimal())
    return [place / name for place in (folder, *sorted(parts)) for name in OURS if (place / name).exists()]


def check_outside(existing: Sequence[Path], origins: Mapping[str, str | os.PathLike[str] | None]) -> None:
    """Raises: RecipeError: what a new run needs is among the files that starting over would delete."""
    doomed = {path.resolve() for path in existing}
    for role, origin in origins.items():
        if origin is not None and Path(origin).resolve() in doomed:
            raise RecipeError(
                f"{role} {os.fspath(origin)} belongs to the run that starting over (--force) would delete: "
                "name another folder (--out)"
            )


def refuse_another_run(existing: Sequence[Path], folder: Path, *, allowed: bool) -> None:
    """Raises: OutputExistsError: the folder holds a run's files, and nobody said what to do with it."""
    if existing and not allowed:
        raise OutputExistsError(
            f"{folder} already holds a training run ({existing[0].name}): "
            "resume it (--resume), start over (--force), or name another folder"
        )


def _scores(records: Sequence[Mapping[str, Any]], *, best: bool) -> dict[str, float]:
    """What a log says of the weights that were written: the last validation, or the best one, as `fit` ranks them."""
    found = [{k: v for k, v in record.items() if k.startswith(("psnr", "ssim"))} for record in records]
    validated = [scores for scores in found if scores]
    if not validated:
        return {}

    def psnr(scores: Mapping[str, float]) -> float:
        return sum(value for name, value in scores.items() if name.startswith("psnr"))

    return max(validated, key=psnr) if best else validated[-1]


def _terms(origin: str | os.PathLike[str]) -> licences.Terms:
    """The terms of weights that a run started from, or learned from."""
    terms = licences.of_weights(os.fspath(origin))
    unsaid = terms.licence == licences.NOT_STATED
    return replace(terms, licence=f"{os.fspath(origin)}: not stated") if unsaid else terms


def check_licences(
    data: str | os.PathLike[str] | ImageSource | None,
    weights: str | os.PathLike[str] | None,
    teacher: str | os.PathLike[str] | None,
    features: Path | None,
) -> None:
    """Raises: LicenceError: weights, images or features that are not free for any use."""
    roles = (("weights", weights), ("teacher", teacher), ("feature_weights", features))
    origins = {role: os.fspath(o) for role, o in roles if o is not None}
    parts = {role: (origin, licences.of_weights(origin)) for role, origin in origins.items()}
    if isinstance(data, ImageSource):
        parts["data"] = (data.name, licences.Terms(data.licence, data.use))
    else:
        parts["data"] = (str(data or "built-in"), licences.of_images(None if data is None else Path(data)))
    licences.check_clean(parts)


def _recipe(
    model_name: str,
    model: DenoiserModel,
    shape: dict[str, Any],
    source: ImageSource,
    settings: TrainSettings,
    weights: str | os.PathLike[str] | None,
    grow: bool,
    teacher: str | os.PathLike[str] | None,
) -> bytes:
    content: dict[str, Any] = {
        "model": model_name,
        "config": shape,
        "channels": model.channels,
        "data": None if source.name == "built-in" else source.name,
        "images": len(source.training),
        "weights": None if weights is None else str(weights),
        "grow": grow,
        "teacher": None if teacher is None else str(teacher),
        "train": settings.model_dump(mode="json"),
    }
    return recipe_file(content)


def recipe_file(content: Mapping[str, Any]) -> bytes:
    """The text of a recipe, with the versions that it is run by."""
    import yaml

    versions = {"edgekit": __version__, "torch": str(torch.__version__)}
    text: str = yaml.safe_dump({**content, "versions": versions}, sort_keys=False)
    return text.encode()
