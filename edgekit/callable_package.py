"""Packages that are functions too: `edgekit.compress(...)` beside `edgekit.compress.prune`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that, when called, calls the function of its own name in `edgekit.api`.

    The function is looked up by name and late, so that a package does not depend on what stands above it.
    """

    def _function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(importlib.import_module("edgekit.api"), self.__name__.rpartition(".")[2])
        return function

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)


def make_callable(package: str) -> None:
    """Make an imported package callable; a package says so in its `__init__`: `make_callable(__name__)`."""
    sys.modules[package].__class__ = CallablePackage
