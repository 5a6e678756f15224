"""Where an unfinished run keeps its stages, so that it can be resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from edgekit.compress.record import Size, StageRecord
from edgekit.errors import OutputExistsError, RecipeError
from edgekit.models import DenoiserModel, checkpoints
from edgekit.recipe import Recipe

_RECIPE = "recipe.json"


class Workspace:
    """The folder of one run: a weight file and a record for each finished stage, a checkpoint for the one under way.

    Args:
        folder: created if it is not there.
        recipe: what the run does; a folder that belongs to another recipe is not resumed.
        inputs: digests of what the recipe only names, e.g. {"images": "..."}; they count as settings.
        resume: go on with what is there; otherwise start over.
        force: throw away what an unfinished run left, when it is not resumed.
    Raises:
        RecipeError: resume, but the folder belongs to other settings, weights or images.
        OutputExistsError: an unfinished run is there, and neither `resume` nor `force` is given.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, inputs: Mapping[str, str], *, resume: bool, force: bool = False
    ) -> None:
        self.folder = folder
        text = json.dumps({**recipe.model_dump(mode="json"), "inputs": dict(inputs)}, indent=1)
        stated = folder / _RECIPE
        if resume and stated.exists():
            if stated.read_text() != text:
                changed = _differences(json.loads(stated.read_text()), json.loads(text))
                raise RecipeError(
                    f"cannot resume {folder}: it was begun with other settings ({changed}); "
                    "use the same settings, or start over with --force"
                )
            return
        if not (resume or force) and self.holds_stages():
            raise OutputExistsError(
                f"{folder} holds an unfinished run: go on with --resume, or throw it away with --force"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        checkpoints.write_atomically(stated, text.encode())

    def holds_stages(self) -> bool:
        """Whether there is something to go on from: a finished stage, or a checkpoint of one."""
        return any(self.folder.glob("*.safetensors")) or any(self.folder.glob("*.ckpt"))

    def finished(self, stage: str) -> tuple[DenoiserModel, StageRecord] | None:
        """The model and record of a stage that was finished before; None when it was not."""
        weights, record = self.folder / f"{stage}.safetensors", self.folder / f"{stage}.json"
        if not (weights.exists() and record.exists()):
            return None
        return checkpoints.load(weights), read_record(json.loads(record.read_text()))

    def finish(self, stage: str, model: DenoiserModel, record: StageRecord) -> None:
        """Keep a finished stage; what it kept for a resumed run is no longer needed."""
        checkpoints.save(self.folder / f"{stage}.safetensors", model)
        checkpoints.write_atomically(self.folder / f"{stage}.json", json.dumps(record.to_dict(), indent=1).encode())
        self.checkpoint(stage).unlink(missing_ok=True)
        self.teachings(stage).unlink(missing_ok=True)

    def checkpoint(self, stage: str) -> Path:
        """The checkpoint of the stage under way."""
        return self.folder / f"{stage}.ckpt"

    def teachings(self, stage: str) -> Path:
        """What a stage's teacher made of its batches, so that a resumed run need not ask it again."""
        return self.folder / f"{stage}-teacher.safetensors"

    def remove(self) -> None:
        """Remove the folder: the run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read_record(stored: dict[str, object]) -> StageRecord:
    """A record from what `StageRecord.to_dict` made of it."""
    fields = dict(stored)
    for key in ("db_before", "db_after"):
        fields[key] = {float(s): db for s, db in fields[key].items()}  # type: ignore[attr-defined]
    for key in ("before", "after"):
        fields[key] = Size(**fields[key])  # type: ignore[arg-type]
    return StageRecord(**fields)  # type: ignore[arg-type]


def _differences(before: dict[str, object], now: dict[str, object]) -> str:
    before, now = _flat(before), _flat(now)
    names = [n for n in now if before.get(n) != now[n]]
    return ", ".join(f"{n}: {before.get(n)} then, {now[n]} now" for n in names[:3]) or "an older edgekit"


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings under dotted names, which a message can name one by one."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
