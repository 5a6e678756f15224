"""Reading a user's own network from a file of another library. A new format is one new file in this folder."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from typing import Any

from edgekit.errors import CheckpointError
from edgekit.models.base import DenoiserModel


@functools.cache
def _formats() -> tuple[Any, ...]:
    """The modules of this folder that say what they accept."""
    found = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return tuple(module for module in found if hasattr(module, "accepts"))


def accepts(source: str | Path) -> bool:
    """Whether this names a network of another kind than edgekit's own.

    An .onnx, .keras, .h5 or .pt2 file, a SavedModel folder, or FILE.py:FACTORY.
    """
    return any(module.accepts(Path(source)) for module in _formats())


def takes_weights(source: str | Path) -> bool:
    """Whether a network that `accepts` knows has its weights in a file of their own."""
    module = _format(Path(source))
    return module is not None and hasattr(module, "takes_weights") and module.takes_weights(Path(source))


def load(source: str | Path, weights: Path | None = None) -> DenoiserModel:
    """The network of a file, with its weights, as a model that every stage and target takes.

    It was run beside the original, on the same input, before it is returned.

    Args:
        weights: a weight file, for networks that `takes_weights` is true of.
    Raises:
        MissingExtraError: the library that reads such files is not installed.
        CheckpointError: the file cannot be read, holds an operator that edgekit has no equal of, or is no denoiser.
    """
    path = Path(source)
    module = _format(path)
    if module is None:
        raise CheckpointError(
            f"{path}: expected an .onnx, .keras, .h5 or .pt2 file, a SavedModel folder, or FILE.py:FACTORY"
        )
    model: DenoiserModel = module.load(path) if weights is None else module.load(path, weights)
    return model


def _format(path: Path) -> Any:
    return next((module for module in _formats() if module.accepts(path)), None)
