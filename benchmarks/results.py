"""Results as JSON, and what they were measured with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.console import say
from benchmarks.sets import ROOT
from edgekit._version import __version__
from edgekit.errors import DataError

FOLDER = ROOT / "benchmarks" / "results"
_LIBRARIES = ("ai-edge-litert", "ai-edge-quantizer", "litert-torch", "numpy", "torch", "torchao")


def default(name: str, *, quick: bool) -> Path:
    """Where a benchmark's results go unless told otherwise: a quick look never replaces the committed ones."""
    return ROOT / "build" / "benchmarks" / f"{name}.json" if quick else FOLDER / f"{name}.json"


def load(path: Path) -> dict[str, Any]:
    """Read results.

    Raises: DataError: no such file, or no JSON object in it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no results at {path}: run `python -m benchmarks.{path.stem}`") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}): remove it, or restore it from git") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}: expected an object")
    return found


def kept(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier run left, if it was of the same settings and versions; else nothing, and that is said."""
    if not path.exists():
        return {}
    found = load(path)
    if found.get("settings") != settings or found.get("versions") != versions():
        say(f"{path} was measured with other settings or versions: starting over")
        return {}
    return found


def about(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What results begin with: how, where and with which versions they were measured."""
    return {"settings": settings, "machine": machine(), "versions": versions()}


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Write results, whole or not at all; each row of a list is one line, so that a change reads well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(key)}: {_value(value)}" for key, value in results.items()]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    partial.replace(path)


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]"
    return json.dumps(value)


def machine() -> dict[str, Any]:
    """The processor and how many cores of it may be used."""
    return {"processor": _processor(), "cores": cores(), "system": f"{platform.system()} {platform.machine()}"}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of everything that decides the figures."""
    found = {"edgekit": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
