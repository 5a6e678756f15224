"""A recipe of several parts: training runs one after another, each from the weights of the one before."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from edgekit._version import __version__
from edgekit.errors import OutputExistsError
from edgekit.models.checkpoints import write_atomically
from edgekit.out_folder import check_out_folder
from edgekit.recipe import TrainSettings
from edgekit.train.images import ImageSource, open_images
from edgekit.train.journal import LOG, read_log
from edgekit.train.loop import Progress
from edgekit.train.processes import first
from edgekit.train.run import (
    OURS,
    PARTS,
    RECIPE,
    WEIGHTS,
    Trained,
    beginning,
    check_licences,
    ready,
    refuse_another_run,
    train,
)
from edgekit.train.state import FILE


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
    if (folder / FILE).exists() and not force:
        raise OutputExistsError(
            f"{folder} holds a training run of one part, the recipe has {len(parts)}: resume it with the recipe that "
            "it began with, start over (--force), or name another folder"
        )
    # Those of parts that the recipe no longer has, too.
    held = sorted({*folders, *folder.glob(PARTS.format("*"))})
    existing = [place / name for place in (folder, *held) for name in OURS if (place / name).exists()]
    refuse_another_run(existing, folder, allowed=resume or force)
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
    for part in parts:
        ready(model_name, source, part, weights=weights, **shape)  # type: ignore[arg-type]
    if force and not resume:
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
                force=force,
                progress=_shifted(progress, sum(each.steps for each in parts[: number - 1]), total, number, len(parts)),
                on_start=lambda: write_atomically(folder / RECIPE, recipe),
                **shape,  # type: ignore[arg-type]
            )
        )
        if dist.is_available() and dist.is_initialized():
            # The others begin with what the first process wrote.
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
    data: str | os.PathLike[str] | ImageSource | None,
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
    return {
        name: _own(value, common[name])
        if isinstance(value, Mapping) and isinstance(common.get(name), Mapping)
        else value
        for name, value in differing.items()
    }
