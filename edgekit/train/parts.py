"""A recipe of several parts: training runs one after another, each from the weights of the one before."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from edgekit._version import __version__
from edgekit.errors import EdgekitError, OutputExistsError, RecipeError
from edgekit.models.checkpoints import write_atomically
from edgekit.out_folder import check_out_folder
from edgekit.recipe import TrainRecipe, TrainSettings, load
from edgekit.train.images import open_images
from edgekit.train.journal import LOG, read_log
from edgekit.train.loop import FREE, Progress, check_devices
from edgekit.train.processes import first, together
from edgekit.train.run import (
    PARTS,
    RECIPE,
    WEIGHTS,
    Trained,
    beginning,
    check_licences,
    check_outside,
    held,
    ready,
    refuse_another_run,
    train,
)

# Settings of settings: of these a part names what is its own.
_NESTED = ("noise", "augment")


def train_parts(
    model_name: str,
    data: str | os.PathLike[str] | None,
    settings: TrainSettings,
    parts: Sequence[TrainSettings],
    out: str | os.PathLike[str],
    *,
    channels: int | None = None,
    config: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | None = None,
    license_clean: bool = False,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train in parts; `out` has a folder for each (`part-1`, ...), and what the last one ended in.

    All parts see the same images and hold out the same ones: those that the largest crop fits into. `log.jsonl` holds
    the logs of all, each record with its `part`, whose steps it counts. Everything is checked for every part before the
    first one begins.

    Args:
        settings: what the parts have in common; images and processes are opened by these.
        parts: of each, all its settings.
        weights: what the first part starts from.
        resume: parts that are complete are passed over, the one that was interrupted goes on.
        Others: as `train` takes them.
    Returns: the last part's model and scores, the steps and seconds of all.
    Raises: what `train` raises.
    """
    folder = Path(out)
    check_out_folder(folder)
    folders = [folder / PARTS.format(number) for number in range(1, len(parts) + 1)]
    for place in folders:
        check_out_folder(place)
    existing = held(folder)
    anew = force and not resume
    refuse_another_run(existing, folder, allowed=resume or force)
    if anew:
        features = {f"feature_weights of part {i}": part.feature_weights for i, part in enumerate(parts, 1)}
        check_outside(existing, {"weights": weights, "teacher": teacher, **features})
    elif (folder / RECIPE).exists():
        _check_same(folder, load(TrainRecipe, folder / RECIPE, {}).parts, parts)
    if license_clean:
        for part in parts:
            check_licences(data, weights, teacher, part.feature_weights)
    model = beginning(model_name, settings.seed, channels=channels, config=config, weights=weights)
    source = open_images(
        data,
        channels=model.channels,
        patch=max(part.crop for part in parts),
        validation_share=settings.validation_share,
        seed=settings.seed,
        leaves=settings.leaves,
    )
    shape = {"channels": channels, "config": config, "teacher": teacher}
    for number, part in enumerate(parts, 1):
        try:
            ready(model_name, source, part, weights=weights, **shape)  # type: ignore[arg-type]
            check_devices(part)
        except EdgekitError as error:
            raise type(error)(f"part {number}: {error}") from error
    if anew:
        for path in existing:
            path.unlink(missing_ok=True)
    recipe = _recipe(model_name, model.channels, config, data, weights, teacher, settings, parts)
    done: list[Trained] = []
    total = sum(part.steps for part in parts)
    for number, (part, place) in enumerate(zip(parts, folders, strict=True), 1):
        done.append(
            train(
                model_name,
                source,
                part,
                place,
                weights=done[-1].path if done else weights,
                resume=resume,
                progress=_shifted(progress, sum(each.steps for each in parts[: number - 1]), total, number, len(parts)),
                on_start=partial(_begin, folder, place, recipe),
                **shape,  # type: ignore[arg-type]
            )
        )
        if dist.is_available() and dist.is_initialized():
            # The others begin with what the first process wrote.
            with together(place):
                dist.barrier()
    last = done[-1]
    if first():
        records = [{"part": i, **record} for i, place in enumerate(folders, 1) for record in read_log(place / LOG)]
        write_atomically(folder / LOG, "".join(f"{json.dumps(record)}\n" for record in records).encode())
        write_atomically(folder / WEIGHTS, last.path.read_bytes())
    return replace(
        last,
        path=folder / WEIGHTS,
        steps=sum(each.steps for each in done),
        seconds=sum(each.seconds for each in done),
    )


def _begin(folder: Path, place: Path, recipe: bytes) -> None:
    write_atomically(folder / RECIPE, recipe)
    if not (place / WEIGHTS).exists():
        # What stands there is the end of fewer parts, which the last one's folder has, too.
        (folder / WEIGHTS).unlink(missing_ok=True)


def _check_same(folder: Path, before: Sequence[TrainSettings], now: Sequence[TrainSettings]) -> None:
    """Raises: OutputExistsError, RecipeError: the folder holds a run of other parts than those to resume it with."""
    fix = f"resume it with the recipe that it began with ({folder / RECIPE}), start over (--force), or change --out"
    if len(now) < len(before) or not before:
        count = f"{len(before)} parts" if before else "one part"
        raise OutputExistsError(f"{folder} holds a training run of {count}, the recipe has {len(now)}: {fix}")
    # There may be more now.
    for number, (old, new) in enumerate(zip(before, now, strict=False), 1):
        was, given = (part.model_dump(mode="json", exclude=FREE) for part in (old, new))
        for name, value in given.items():
            if value != was.get(name):
                raise RecipeError(f"part {number} of {folder} has another {name}: {was.get(name)}, now {value}; {fix}")


def _shifted(progress: Progress | None, before: int, whole: int, number: int, parts: int) -> Progress | None:
    """Progress of a part, told as that of the whole."""
    if progress is None:
        return None

    def told(done: int, total: int, text: str = "") -> None:
        progress(before + done, whole, f"part {number}/{parts}, {text}")

    return told


def _recipe(
    model_name: str,
    channels: int,
    config: Mapping[str, Any] | None,
    data: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str] | None,
    teacher: str | os.PathLike[str] | None,
    settings: TrainSettings,
    parts: Sequence[TrainSettings],
) -> bytes:
    import torch
    import yaml

    common = settings.model_dump(mode="json")
    content = {
        "model": model_name,
        "config": dict(config or {}),
        "channels": channels,
        "data": None if data is None else str(data),
        "weights": None if weights is None else str(weights),
        "teacher": None if teacher is None else str(teacher),
        "train": common,
        "parts": [_own(part.model_dump(mode="json"), common) for part in parts],
        "versions": {"edgekit": __version__, "torch": str(torch.__version__)},
    }
    text: str = yaml.safe_dump(content, sort_keys=False)
    return text.encode()


def _own(part: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a part that are not those of all."""
    if part.get("model") != common.get("model"):
        return dict(part)  # another noise is told whole
    differing = {name: value for name, value in part.items() if value != common.get(name)}
    return {name: _own(value, common[name]) if name in _NESTED else value for name, value in differing.items()}
