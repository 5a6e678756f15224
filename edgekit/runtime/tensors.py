"""Holding an open model to what the manifest says of its tensors, for engines whose libraries tell names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.manifest import TensorSpec
from edgekit.errors import EngineError

# (dtype as numpy names it, shape with -1 for an axis of any size), by tensor name.
Found = Mapping[str, tuple[str, tuple[int, ...]]]


def match(path: Path, kind: str, specs: Sequence[TensorSpec], found: Found) -> None:
    """Compare a file's inputs or outputs with the manifest's.

    Args:
        path: the file, for the message.
        kind: "input" or "output".
        specs: what the manifest says.
        found: what the file holds.
    Raises: EngineError: a tensor is missing or another one, or differs in dtype or shape.
    """
    names = [spec.name for spec in specs]
    if sorted(names) != sorted(found):
        raise EngineError(
            f"{path.name} has the {kind}s {', '.join(sorted(found)) or 'none'}, the manifest names "
            f"{', '.join(sorted(names))}: they are not of one export"
        )
    for spec in specs:
        dtype, shape = found[spec.name]
        if (dtype, shape) != (spec.dtype, spec.shape):
            raise EngineError(
                f"{kind} {spec.name!r} of {path.name} is {dtype} {list(shape)}, the manifest says {spec.dtype} "
                f"{list(spec.shape)}: they are not of one export"
            )


def check_feed(path: Path, specs: Sequence[TensorSpec], inputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a batch that does not fit. Raises: EngineError: an input is missing, unknown or of another kind."""
    if inputs.keys() != {spec.name for spec in specs}:
        raise EngineError(
            f"{path.name} was given the inputs {sorted(inputs)}: expected {sorted(spec.name for spec in specs)}"
        )
    for spec in specs:
        array = inputs[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype != np.dtype(spec.dtype) or not fits:
            raise EngineError(
                f"input {spec.name!r} of {path.name} was given {array.dtype} {list(array.shape)}: "
                f"expected {spec.dtype} {list(spec.shape)} (-1: any size)"
            )


def line(error: BaseException) -> str:
    """What a library's error says, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
