"""The noise that weights were trained on, in the header of their file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgekit.errors import CheckpointError
from edgekit.models import checkpoints
from edgekit.recipe import NoiseSettings

_KEY, _ALL = "noise", "known_noises"
# A device sees 8 bits.
_DEVICE = {"device_share"}
# The levels are the matter of whoever compresses the weights.
_NOT_KEPT = {"sigma", *_DEVICE}
_LIST = TypeAdapter(tuple[NoiseSettings, ...])


def write(noise: NoiseSettings, known: Sequence[NoiseSettings] | None = None) -> dict[str, str]:
    """What the header says of a noise: every setting that its model reads, to mean the same when a default has changed.

    White noise is what weights without a word know: nothing is said of it.

    Args:
        noise: what the weights learned last, which compression takes, too.
        known: all that they know, if it is not this noise alone; with levels. None of it has a name: an empty list.
    """
    found = {} if noise.model == "gaussian" else {_KEY: noise.model_dump_json(exclude=_NOT_KEPT)}
    if known is None:
        return found
    return found | {_ALL: f"[{', '.join(item.model_dump_json(exclude=_DEVICE) for item in merged(known))}]"}


def merged(noises: Iterable[NoiseSettings]) -> tuple[NoiseSettings, ...]:
    """Each noise once, where it came first: Gaussian noises are one with the range of all, others know no range."""
    found: dict[str, NoiseSettings] = {}
    for noise in noises:
        key = noise.model if noise.model == "gaussian" else noise.model_dump_json(exclude=_NOT_KEPT)
        first = found.setdefault(key, noise)
        low, high = zip(first.sigma, noise.sigma, strict=True)
        found[key] = first.model_copy(update={"sigma": (min(low), max(high))})
    return tuple(found.values())


def read(source: str | Path) -> NoiseSettings | None:
    """The noise that the header of shipped weights or of a file names; None if it names none.

    Raises: CheckpointError: no such file, or a noise that this edgekit does not know.
    """
    text = checkpoints.metadata(source).get(_KEY)
    try:
        return None if text is None else NoiseSettings.model_validate_json(text)
    except ValidationError as error:
        raise _unknown(source, str(text), error, "noise") from error


def known(source: str | Path) -> tuple[NoiseSettings, ...] | None:
    """All that the weights were shown, the last first, empty if nothing of it has a name; None if the header says
    nothing but `noise`.

    Raises: CheckpointError: no such file, or a noise that this edgekit does not know.
    """
    text = checkpoints.metadata(source).get(_ALL)
    try:
        return None if text is None else _LIST.validate_json(text)
    except ValidationError as error:
        raise _unknown(source, str(text), error, "replay_noise") from error


def _unknown(source: str | Path, text: str, error: ValidationError, setting: str) -> CheckpointError:
    return CheckpointError(
        f"{source} says that it was trained on the noise {text}, which this edgekit does not know "
        f"({error.errors()[0]['msg']}): give {setting} in a recipe (--recipe)"
    )
