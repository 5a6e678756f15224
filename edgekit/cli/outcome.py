"""From what a command raised to one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from edgekit.cli.wrap import say
from edgekit.errors import EdgekitError
from edgekit.extras import EXTRAS, pip_line

OK, FAIL, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
_NO_MEMORY = "error: out of memory: use a smaller --tile (compress) or --batch (train), or close other programs"


class _TerminatedError(BaseException):
    """SIGTERM came: no `Exception`, so that nothing on the way takes it for an error to answer."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; errors become one line on stderr."""
    from edgekit.cli.app import app

    try:
        with _told_of_sigterm():
            code = app(args=list(arguments), prog_name="edgekit", standalone_mode=False)
        # What it returns is the exit code of a `typer.Exit` inside; newer releases make one of Ctrl-C too.
        return _interrupted(arguments) if code == INTERRUPTED else code if isinstance(code, int) else OK
    except typer.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(arguments)
    except _TerminatedError:
        return _interrupted(arguments, "terminated", TERMINATED)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; whatever Python flushes on its way out must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except EdgekitError as error:
        return _say(f"error: {error}")
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        return _say(f"error: this command needs {library}, which is not installed: {pip_line(EXTRAS[library])}")
    except MemoryError:
        return _say(_NO_MEMORY)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            place = f" while writing {error.filename}" if error.filename else ""
            return _say(f"error: disk full{place}: free some space or choose another --out")
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"error: {where}{error.strerror or error}")
    except RuntimeError as error:
        # What torch raises when an allocation fails, on a CPU and on a GPU.
        if not any(words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")):
            raise
        return _say(_NO_MEMORY)
    except Exception as error:
        # Usage errors: their base class is click's in older releases of typer and typer's own in newer ones.
        if not hasattr(error, "format_message"):
            raise
        return _say(f"error: {_usage(error)}")


@contextmanager
def _told_of_sigterm() -> Iterator[None]:
    """Make SIGTERM an exception, as Ctrl-C is, where it would end the process without a word.

    Not where a launcher started several processes: one may wait for the others where no Python runs, and the training
    of several has a handler of its own (`train/processes.py`).
    """
    alone = "WORLD_SIZE" not in os.environ and threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _TerminatedError

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupted(arguments: Sequence[str], word: str = "interrupted", code: int = INTERRUPTED) -> int:
    resumable = bool({"compress", "train", "finetune"}.intersection(arguments[:1]))
    how = ": add --resume to go on from the last checkpoint, if there was one" if resumable else ""
    how = ": the same command goes on" if "search" in arguments[:1] else how
    return _say(f"{word}{how}", code)


def _say(line: str, code: int = BAD_INPUT) -> int:
    """Print one line, whatever a file name or a library's message may hold, and pass the exit code on."""
    say(" ".join(line.split()))
    return code


def _usage(error: Any) -> str:
    """What is wrong with the command line, the allowed commands where one is unknown, and where help is."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "edgekit"
    commands = getattr(context.command, "commands", None) if context else None
    known = (
        f": expected one of {', '.join(commands)}" if commands and "No such command" in error.format_message() else ""
    )
    return f"{error.format_message().rstrip('.')}{known}; see {path} --help"
