"""A recipe of several parts: training runs one after another, each from the weights of the one before."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from edgekit import models
from edgekit.errors import CheckpointError, EdgekitError, OutputExistsError
from edgekit.models.base import DenoiserModel
from edgekit.models.checkpoints import write_atomically
from edgekit.models.grow import grow
from edgekit.out_folder import check_out_folder
from edgekit.recipe import TrainRecipe, load
from edgekit.train.journal import LOG, read_log
from edgekit.train.loop import FREE, Progress, check, check_devices
from edgekit.train.processes import first, together
from edgekit.train.run import (
    PARTS,
    RECIPE,
    Trained,
    beginning,
    check_licences,
    check_outside,
    held,
    images,
    recipe_file,
    refuse_another_run,
    train,
)
from edgekit.train.state import FILE, WEIGHTS, check_same

_log = logging.getLogger(__name__)


def train_parts(
    recipe: TrainRecipe,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train in parts; `out` has a folder for each (`part-1`, ...), and what the last one ended in.

    All parts see the same images and hold out the same ones: those that the largest crop fits into. `log.jsonl` holds
    the logs of all, each record with its `part`, whose steps it counts. Everything is checked for every part before the
    first one begins.

    Args:
        recipe: with its `parts`; `weights` are what the first one starts from. Where a part's `config` names a larger
            network than the part before had, it grows out of that one.
        out, force, progress: as `train` takes them.
        resume: parts that are complete are passed over, the one that was interrupted goes on.
    Returns: the last part's model and scores, the steps and seconds of all.
    Raises: what `train` and `grow` raise.
    """
    parts = recipe.parts
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
        check_outside(existing, {"weights": recipe.weights, "teacher": recipe.teacher, **features})
    if recipe.license_clean:
        for part in parts:
            check_licences(recipe.data, recipe.weights, recipe.teacher, part.feature_weights)
    shapes = _shapes(recipe)
    networks = _networks(recipe, shapes)
    model = networks[0]
    if not anew and (folder / RECIPE).exists():
        _check_begun(folder, load(TrainRecipe, folder / RECIPE, {}), recipe, networks)
    tutor = None if recipe.teacher is None else models.load(recipe.teacher)
    source = images(recipe.data, model, recipe.train, max(part.crop for part in parts))
    # With a weight of 0 a part learns without the teacher; where all have it, `check` says that nobody would use one.
    idle = not any(part.teacher_weight for part in parts)
    taught = [idle or part.teacher_weight > 0 for part in parts]
    for number, part in enumerate(parts, 1):
        try:
            check(networks[number - 1], source, part.run, tutor if taught[number - 1] else None)
            check_devices(part)
        except EdgekitError as error:
            raise type(error)(f"part {number}: {error}") from error
    if anew:
        for path in existing:
            path.unlink(missing_ok=True)
    written = recipe_file({**recipe.content(), "channels": model.channels})
    done: list[Trained] = []
    total = sum(part.steps for part in parts)
    for number, (part, place) in enumerate(zip(parts, folders, strict=True), 1):
        begun = any((later / FILE).exists() for later in folders[number:])
        if resume and begun and (ended := _tidied(place)) is not None:
            _log.warning("%s is gone: part %d is taken as it ended", place / FILE, number)
            done.append(ended)
            continue
        done.append(
            train(
                recipe.model,
                source,
                part.run,
                place,
                channels=recipe.channels,
                config=shapes[number - 1],
                weights=done[-1].path if done else recipe.weights,
                grow=networks[number - 1].config() != networks[number - 2].config() if done else recipe.grow,
                teacher=recipe.teacher if taught[number - 1] else None,
                resume=resume,
                progress=_shifted(progress, sum(each.steps for each in parts[: number - 1]), total, number, len(parts)),
                on_start=partial(_begin, folder, place, written),
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


def _shapes(recipe: TrainRecipe) -> list[dict[str, Any]]:
    """The architecture's own arguments in each part."""
    return [{**recipe.config, **(part.config or {})} for part in recipe.parts]


def _networks(recipe: TrainRecipe, shapes: Sequence[Mapping[str, Any]]) -> list[DenoiserModel]:
    """The network of each part: what the recipe begins with, what grows out of it. Raises: as `beginning`, `grow`."""
    begin = partial(beginning, recipe.model, recipe.train.seed, channels=recipe.channels)
    networks: list[DenoiserModel] = []
    for number, shape in enumerate(shapes, 1):
        try:
            if networks:
                model = begin(config=shape)
                if model.config() != networks[-1].config():
                    _grow(networks[-1], model)
            else:
                model = begin(config=shape, weights=recipe.weights, grow=recipe.grow)
        except EdgekitError as error:
            own = recipe.parts[number - 1].config
            if number == 1 and own is None:
                # Of the whole run.
                raise
            raise type(error)(f"part {number}{f', of config {own}' if own else ''}: {error}") from error
        networks.append(model)
    return networks


def _grow(smaller: DenoiserModel, larger: DenoiserModel) -> None:
    try:
        grow(_stirred(smaller), larger)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; a part's network may be larger than that of the part before, not smaller"
        ) from error


def _stirred(model: DenoiserModel) -> DenoiserModel:
    """A copy none of whose weights is zero, as after training: fresh blocks that are the identity would hide a layer
    that cannot grow, as a norm over channels, until the part before has been trained.
    """
    stirred = copy.deepcopy(model)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in stirred.parameters():
            value.copy_(torch.where(value == 0, 0.05 * torch.randn(value.shape, generator=noise), value))
    return stirred


def _tidied(place: Path) -> Trained | None:
    """What a part ended in whose checkpoint somebody has deleted: all that the next part needs, whose checkpoint knows
    what it began with. None where there is a checkpoint, or no end.
    """
    weights, log = place / WEIGHTS, read_log(place / LOG)
    if (place / FILE).exists() or not weights.exists() or not log:
        return None
    return Trained(models.load(weights), weights, log[-1]["step"], log[-1]["seconds"], {}, first())


def _begin(folder: Path, place: Path, recipe: bytes) -> None:
    write_atomically(folder / RECIPE, recipe)
    if not (place / WEIGHTS).exists():
        # What stands there is the end of fewer parts, which the last one's folder has, too.
        (folder / WEIGHTS).unlink(missing_ok=True)


def _check_begun(folder: Path, before: TrainRecipe, now: TrainRecipe, networks: Sequence[DenoiserModel]) -> None:
    """Raises: OutputExistsError, RecipeError: the folder holds a run of other parts than those to resume it with."""
    fix = f"resume it with the recipe that it began with ({folder / RECIPE}), start over (--force), or change --out"
    if len(now.parts) < len(before.parts) or not before.parts:
        count = f"{len(before.parts)} parts" if before.parts else "one part"
        raise OutputExistsError(f"{folder} holds a training run of {count}, the recipe has {len(now.parts)}: {fix}")
    # There may be more now.
    shapes = _shapes(before)
    for number, pair in enumerate(zip(before.parts, now.parts, strict=False), 1):
        was, given = (part.run.model_dump(mode="json", exclude=FREE) for part in pair)
        # The same network, whoever names its size: the part or the whole run.
        channels = {"channels": networks[0].channels}
        was["config"] = models.create(before.model, **{**shapes[number - 1], **channels}).config()
        given["config"] = networks[number - 1].config()
        check_same(was, given, f"part {number} of {folder} has", fix)


def _shifted(progress: Progress | None, before: int, whole: int, number: int, parts: int) -> Progress | None:
    """Progress of a part, told as that of the whole."""
    if progress is None:
        return None

    def told(done: int, total: int, text: str = "") -> None:
        progress(before + done, whole, f"part {number}/{parts}, {text}")

    return told
