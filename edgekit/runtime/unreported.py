"""OpenVINO without the report of its use that importing it sends over the network."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

_REPORTER = "openvino_telemetry"


@contextmanager
def unreported() -> Iterator[None]:
    """Import OpenVINO in here: it does without its reporter where that cannot be imported.

    Importing `openvino` starts a process that reports the import to its makers, unless the user has opted out or `CI`
    is set. What runs on a user's device must not call anybody. Where OpenVINO was imported before, nothing changes.
    """
    if _REPORTER in sys.modules:
        yield
        return
    # None is the import system's word for a module that may not be imported.
    cast("dict[str, Any]", sys.modules)[_REPORTER] = None
    try:
        yield
    finally:
        sys.modules.pop(_REPORTER, None)


def openvino() -> Any:
    """The package `openvino`. Raises: ImportError."""
    with unreported():
        return importlib.import_module("openvino")
