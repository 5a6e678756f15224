"""Finding engines. A new engine is one new file in this folder; no list is edited."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import cast

import edgekit.runtime.engines as package
from edgekit.bundle.manifest import Variant
from edgekit.errors import RecipeError, UnknownNameError
from edgekit.runtime.engines.base import DEFAULTS, HINTS, Availability, Engine, EngineModule, EngineOptions

_NOT_ENGINES = {"base", "registry"}


def names() -> list[str]:
    """Every engine's name, installed or not."""
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _NOT_ENGINES)


def open_engine(
    variant: Variant, path: Path, threads: int, *, portable: bool = False, options: EngineOptions = DEFAULTS
) -> Engine:
    """Open a model file with the engine that the manifest names.

    Args:
        variant: what the manifest says of the file; `variant.engine` chooses the engine.
        path: the model file.
        threads: CPU threads, at least 1.
        portable: slow kernels with the same bits on every machine.
        options: device, hint, cache.
    Raises: UnknownNameError: no such engine; RecipeError: threads; and what the engine's `open` raises.
    """
    if variant.engine not in names():
        raise UnknownNameError.unknown("engine", variant.engine, names())
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise RecipeError(f"threads is {threads!r}: expected a whole number of at least 1")
    if options.hint not in HINTS:
        raise RecipeError(f"hint is {options.hint!r}: expected {' or '.join(HINTS)}")
    return _module(variant.engine).open(path, variant, threads=threads, portable=portable, options=options)


def available() -> dict[str, Availability]:
    """What `edgekit doctor` shows of each engine, by name."""
    return {name: _module(name).available() for name in names()}


def _module(name: str) -> EngineModule:
    return cast("EngineModule", importlib.import_module(f"edgekit.runtime.engines.{name}"))
