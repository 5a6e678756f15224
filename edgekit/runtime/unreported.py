"""OpenVINO without the report of its use that importing it sends over the network."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

_REPORTER = "openvino_telemetry"
# One thread at a time: what stood in the place of the reporter is put back.
_LOCK = threading.RLock()
_MISSING = object()


@contextmanager
def unreported() -> Iterator[None]:
    """Import OpenVINO in here: it does without its reporter where that cannot be imported.

    Importing `openvino` starts a process that reports the import to its makers, unless the user has opted out or `CI`
    is set. What runs on a user's device must not call anybody. Where OpenVINO was imported before, nothing changes.
    """
    loaded = cast("dict[str, Any]", sys.modules)
    with _LOCK:
        before = loaded.get(_REPORTER, _MISSING)
        # None is the import system's word for a module that may not be imported.
        loaded[_REPORTER] = None
        try:
            yield
        finally:
            if before is _MISSING:
                loaded.pop(_REPORTER, None)
            else:
                loaded[_REPORTER] = before


def openvino() -> Any:
    """The package `openvino`. Raises: ImportError."""
    if "openvino" in sys.modules:
        return importlib.import_module("openvino")
    with unreported():
        return importlib.import_module("openvino")
