"""Names of models, and building them. A new model is one new file in this folder with `@register`."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from edgekit.errors import RecipeError, UnknownNameError
from edgekit.models.base import DenoiserModel

_M = TypeVar("_M", bound=type[DenoiserModel])
_ARCHITECTURES: dict[str, type[DenoiserModel]] = {}
_PRESETS: dict[str, tuple[type[DenoiserModel], dict[str, Any]]] = {}


def register(presets: Mapping[str, Mapping[str, Any]]) -> Callable[[_M], _M]:
    """Class decorator: make an architecture known, with the named sizes (constructor arguments) it comes in."""

    def decorate(cls: _M) -> _M:
        _ARCHITECTURES[cls.arch] = cls
        for name, config in presets.items():
            _PRESETS[name] = (cls, dict(config))
        return cls

    return decorate


@functools.cache
def _discover() -> None:
    package = importlib.import_module("edgekit.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"edgekit.models.{module.name}")


def names() -> list[str]:
    """Every model name that `create` takes."""
    _discover()
    return sorted(_PRESETS)


def create(name: str, **overrides: Any) -> DenoiserModel:
    """Build a model with fresh (random) weights.

    Args:
        name: one of `names()`, e.g. "dsunet-s".
        overrides: constructor arguments that replace the preset's, e.g. channels=1.
    Raises: UnknownNameError: of the model or of an override. RecipeError: an override's value the architecture does not
        take.
    """
    _discover()
    if name not in _PRESETS:
        raise UnknownNameError.unknown("model", name, _PRESETS)
    cls, preset = _PRESETS[name]
    for argument, value in overrides.items():
        if argument in preset and not _alike(value, preset[argument]):
            raise RecipeError(
                f"{argument} is {value!r}: expected what {cls.arch} takes, as in {name}: {argument}: {preset[argument]}"
            )
    return _build(cls, {**preset, **overrides})


def _alike(value: Any, usual: Any) -> bool:
    """Whether a value has the form of a preset's: lists where it has lists, numbers where it has numbers."""
    if isinstance(usual, list | tuple):
        return isinstance(value, list | tuple) and all(_alike(each, usual[0]) for each in value if usual)
    return isinstance(value, int | float) or not isinstance(usual, int | float)


def build(arch: str, config: Mapping[str, Any]) -> DenoiserModel:
    """Rebuild a module from `model.arch` and `model.config()`, as a weight file's header stores them."""
    _discover()
    if arch not in _ARCHITECTURES:
        raise UnknownNameError.unknown("architecture", arch, _ARCHITECTURES)
    return _build(_ARCHITECTURES[arch], config)


def _build(cls: type[DenoiserModel], config: Mapping[str, Any]) -> DenoiserModel:
    known = _arguments(cls)
    for name in config if known else ():
        if name not in known:
            raise UnknownNameError.unknown(f"argument of {cls.arch}", name, known)
    try:
        return cls(**config)
    # Whatever torch makes of a negative or a fractional size.
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{cls.arch} cannot be built from {dict(config)}: {error}") from error


def _arguments(cls: type[DenoiserModel]) -> list[str]:
    """The names of an architecture's arguments, those of the classes that **config is passed on to among them.

    Empty where a class reads **config itself: nobody can tell.
    """
    found: list[str] = []
    for each in cls.__mro__[: cls.__mro__.index(DenoiserModel)]:
        if "__init__" not in vars(each):
            continue
        _, *own = inspect.signature(vars(each)["__init__"]).parameters.values()
        found += [a.name for a in own if a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)]
        if not any(argument.kind is argument.VAR_KEYWORD for argument in own):
            return found
    return []
