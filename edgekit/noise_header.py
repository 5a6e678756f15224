"""The noise that weights were trained on, in the header of their file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgekit.errors import CheckpointError
from edgekit.models import checkpoints
from edgekit.recipe import NoiseSettings

_KEY, _OLDER = "noise", "older_noise"
# A device sees 8 bits; and the levels are the matter of whoever uses the weights.
_DEVICE = {"device_share"}
_NOT_KEPT = {"sigma", *_DEVICE}
_LIST = TypeAdapter(tuple[NoiseSettings, ...])


def write(noise: NoiseSettings, older: Sequence[NoiseSettings] = ()) -> dict[str, str]:
    """What the header says of a noise: every setting that its model reads, to mean the same when a default has changed.

    White noise is what weights without a word know: nothing is said of it.

    Args:
        noise: what the weights learned last.
        older: what they knew before that and were shown again; the levels of Gaussian noise are kept.
    """
    found = {} if noise.model == "gaussian" else {_KEY: noise.model_dump_json(exclude=_NOT_KEPT)}
    # Once each: white noise tuned on white noise is one noise.
    fresh = dict.fromkeys(item.model_dump_json(exclude=_DEVICE) for item in older)
    fresh.pop(noise.model_dump_json(exclude=_DEVICE), None)
    return found | ({_OLDER: f"[{', '.join(fresh)}]"} if fresh else {})


def read(source: str | Path) -> NoiseSettings | None:
    """The noise that the header of shipped weights or of a file names; None if it names none.

    Raises: CheckpointError: no such file, or a noise that this edgekit does not know.
    """
    text = checkpoints.metadata(source).get(_KEY)
    return None if text is None else _parsed(source, f"[{text}]")[0]


def older(source: str | Path) -> tuple[NoiseSettings, ...]:
    """What weights knew before the noise that they learned last, and were shown again then. Raises: as `read`."""
    return _parsed(source, checkpoints.metadata(source).get(_OLDER, "[]"))


def _parsed(source: str | Path, text: str) -> tuple[NoiseSettings, ...]:
    try:
        return _LIST.validate_json(text)
    except ValidationError as error:
        raise CheckpointError(
            f"{source} says that it was trained on the noise {text[1:-1]}, which this edgekit does not know "
            f"({error.errors()[0]['msg']}): give noise in a recipe (--recipe)"
        ) from error
