"""What native libraries write to stderr past Python."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOCK = threading.Lock()


@contextmanager
def without_lines(start: str) -> Iterator[None]:
    """Drop the lines that begin with `start` and are written to stderr in the block; the others come after it.

    LiteRT announces every model it opens so, in the midst of a progress bar, and has no setting against it. Where
    stderr cannot be redirected (closed, or no place for a temporary file) everything passes.
    """
    with _LOCK:
        try:
            held = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        except OSError:
            yield
            return
        with held:
            try:
                saved = os.dup(2)
            except OSError:
                yield
                return
            if sys.stderr is not None:
                with suppress(OSError, ValueError):
                    sys.stderr.flush()
            os.dup2(held.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(saved, 2)
                os.close(saved)
                held.seek(0)
                rest = b"".join(line for line in held if not line.startswith(start.encode()))
                with suppress(OSError):
                    os.write(2, rest)
