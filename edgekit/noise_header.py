"""The noise that weights were trained on, in the header of their file."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from edgekit.errors import CheckpointError
from edgekit.models import checkpoints
from edgekit.recipe import NoiseSettings

_KEY = "noise"
# The levels are the matter of whoever uses the weights, and a device sees 8 bits.
_NOT_KEPT = {"sigma", "device_share"}


def write(noise: NoiseSettings) -> dict[str, str]:
    """What the header says of a noise: every setting that its model reads, to mean the same when a default has changed.

    White noise is what weights without a word know: nothing is said of it.
    """
    return {} if noise.model == "gaussian" else {_KEY: noise.model_dump_json(exclude=_NOT_KEPT)}


def read(source: str | Path) -> NoiseSettings | None:
    """The noise that the header of shipped weights or of a file names; None if it names none.

    Raises: CheckpointError: no such file, or a noise that this edgekit does not know.
    """
    text = checkpoints.metadata(source).get(_KEY)
    if text is None:
        return None
    try:
        return NoiseSettings.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(
            f"{source} says that it was trained on the noise {text}, which this edgekit does not know "
            f"({error.errors()[0]['msg']}): give noise in a recipe (--recipe)"
        ) from error
