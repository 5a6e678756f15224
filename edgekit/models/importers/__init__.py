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
    """Whether a path names a network of another library: an .onnx or .keras file, a SavedModel folder."""
    return any(module.accepts(Path(source)) for module in _formats())


def load(source: str | Path) -> DenoiserModel:
    """The network of a file, with its weights, as a model that every stage and target takes.

    It was run beside the original, on the same input, before it is returned.

    Raises:
        MissingExtraError: the library that reads such files is not installed.
        CheckpointError: the file cannot be read, holds an operator that edgekit has no equal of, or is no denoiser.
    """
    path = Path(source)
    module = next((module for module in _formats() if module.accepts(path)), None)
    if module is None:
        raise CheckpointError(f"{path}: expected an .onnx, .keras or .h5 file, or a SavedModel folder")
    model: DenoiserModel = module.load(path)
    return model
