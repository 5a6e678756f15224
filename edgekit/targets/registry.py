"""Names of targets. A new target is one new file in this folder with a `TARGET` object."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from edgekit.errors import UnknownNameError
from edgekit.targets.base import Target

# The word for every target at once.
ALL = "all"


@functools.cache
def _discover() -> dict[str, Target]:
    package = importlib.import_module("edgekit.targets")
    modules = (importlib.import_module(f"edgekit.targets.{m.name}") for m in pkgutil.iter_modules(package.__path__))
    return {m.TARGET.name: m.TARGET for m in modules if hasattr(m, "TARGET")}


def names() -> list[str]:
    """Every target name that `get` takes."""
    return sorted(_discover())


def get(name: str) -> Target:
    """The target of that name.

    Raises: UnknownNameError.
    """
    if name not in _discover():
        raise UnknownNameError.unknown("target", name, _discover())
    return _discover()[name]


def chosen(name: str) -> list[Target]:
    """The targets that a recipe asks for: the one of that name, or every one for "all".

    Raises: UnknownNameError.
    """
    if name not in (*names(), ALL):
        raise UnknownNameError.unknown("target", name, [*names(), ALL])
    return [get(each) for each in (names() if name == ALL else [name])]
