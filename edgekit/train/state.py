"""The state of a run on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgekit.errors import CheckpointError, RecipeError
from edgekit.models.base import DenoiserModel
from edgekit.models.checkpoints import write_atomically

FILE = "last.ckpt"
WEIGHTS = "model.safetensors"


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `last.ckpt`, whole or not at all. Raises: CheckpointError: it cannot be written; the old one stands."""
    # To memory first: torch's own writer reports a full disk without saying so.
    content = io.BytesIO()
    torch.save(dict(state), content)
    write_atomically(folder / FILE, content.getvalue())


def load_state(folder: Path, run: Mapping[str, str]) -> dict[str, Any] | None:
    """Read `last.ckpt`; None where there is none.

    Args:
        run: what defines the run, by name; it is compared with what the checkpoint was saved with.
    Raises:
        CheckpointError: the file is damaged, or gone from a run that has ended.
        RecipeError: it belongs to a run with other settings.
    """
    path = folder / FILE
    weights = folder / WEIGHTS
    ways = "begin another run with them in another folder (--out), or start over (--force in place of --resume)"
    if not path.exists():
        if weights.exists():
            raise CheckpointError(f"{weights} is what a run ended in, and there is no {FILE} to go on from: {ways}")
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved: Mapping[str, str] = state["run"]
    except Exception as error:  # torch raises whatever its zip reader and unpickler do, with advice to unpickle
        fix = f"{weights}, what the run ended in, is another file: {ways}"
        if not weights.exists():
            fix = "delete it, and --resume begins this run, or this part of one, anew"
        raise CheckpointError(f"{path} cannot be read, it was cut short or altered: {fix}") from error
    check_same(
        saved,
        run,
        f"{folder} holds a run with",
        "resume it with the settings it began with, or write to another folder",
    )
    return state


def check_same(saved: Mapping[str, Any], run: Mapping[str, Any], whose: str, fix: str) -> None:
    """Raises: RecipeError: what defines a run differs from what it was begun with; it names the first by name."""
    for name in sorted(run.keys() | saved.keys()):
        if run.get(name) != saved.get(name):
            raise RecipeError(f"{whose} another {name}: {saved.get(name)}, now {run.get(name)}; {fix}")


def weights_digest(model: DenoiserModel) -> str:
    """The first 12 digits of the sha256 of a model's weights, for the comparison of runs."""
    values = b"".join(value.cpu().float().numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(values).hexdigest()[:12]
