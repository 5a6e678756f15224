"""Progress bars, one a stage, on stderr."""

from __future__ import annotations

import logging
import os
import sys
from time import monotonic
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from edgekit.cli.crowd import Crowd

_log = logging.getLogger(__name__)
_LOADING = "loading"
# Between the lines that a log gets, in seconds: a run of hours is no wall of text, and not silent either.
_LOG_EVERY = 30.0


class Bars:
    """Draws a bar for each stage that reports; a line every half a minute where stderr is no terminal.

    Call it as `bars(stage, done, total, text)`. Until the first call it shows `loading`: heavy libraries take seconds
    to import, and a terminal where nothing moves looks broken.

    Args:
        crowd: watches for other programs on the cores; None where that is no matter of hours.
    """

    def __init__(self, crowd: Crowd | None = None) -> None:
        self._crowd = crowd
        # A descriptor of its own: a converter's chatter is kept off stderr while the bars go on.
        self._screen = _copy(sys.stderr) if sys.stderr.isatty() else sys.stderr
        self._progress = Progress(
            TextColumn("{task.description:10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(file=self._screen, highlight=False),
            disable=not sys.stderr.isatty(),
        )
        self._told = monotonic()
        self._tasks: dict[str, TaskID] = {_LOADING: self._progress.add_task(_LOADING, total=None, note="")}

    def __call__(self, stage: str, done: int, total: int, text: str = "") -> None:
        if stage not in self._tasks:
            first = self._tasks.pop(_LOADING, None)
            self._tasks[stage] = self._progress.add_task(stage, note="") if first is None else first
        if self._crowd is not None and (told := self._crowd.note()):
            _log.warning("%s", told)
        self._progress.update(self._tasks[stage], description=stage, completed=done, total=total, note=text)
        if self._progress.disable and monotonic() - self._told >= _LOG_EVERY:
            self._told = monotonic()
            print(f"{stage} {done}/{total} {text}".rstrip(), file=self._screen, flush=True)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Where nothing has reported, there is nothing to keep: a bar that loads for ever above an error is a lie.
        self._progress.live.transient = _LOADING in self._tasks
        self._progress.stop()
        if self._screen is not sys.stderr:
            self._screen.close()


def _copy(stream: TextIO) -> TextIO:
    """A descriptor of its own; what a file's name cannot be written as is no reason to fail, as on stderr itself."""
    return os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="backslashreplace")
