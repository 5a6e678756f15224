"""What a run says of its progress, on a terminal and where nobody watches one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from edgekit.cli import progress
from edgekit.cli.wrap import wrap


def test_a_log_gets_a_line_now_and_then(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 62.0, 62.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    with progress.Bars() as bars:
        bars("distill", 1, 9, "loss 0.0100")
        bars("distill", 4, 9, "loss 0.0090")
        bars("distill", 9, 9)
        bars("quantize", 2, 3)
    assert capfd.readouterr().err == "distill 4/9 loss 0.0090\nquantize 2/3\n"


def _screen(child: str, width: int = 80) -> str:
    """What a terminal shows of a Python program, escape sequences played back as far as bars and notes use them."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", child], stdin=slave, stdout=slave, stderr=slave, env=environment):
        os.close(slave)
        said = b""
        with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
            while chunk := os.read(master, 4096):
                said += chunk
    os.close(master)
    return _played(said.decode())


def _played(said: str) -> str:
    lines, row, column = [""], 0, 0
    for code, text in re.findall(r"\x1b\[([0-9;?]*[A-Za-z])|([^\x1b])", said):
        if code.endswith("A"):
            row -= int(code[:-1] or 1)
        elif code.endswith("K"):
            lines[row] = ""
        elif text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif text:
            lines[row] = lines[row].ljust(column)[:column] + text + lines[row][column + 1 :]
            column += 1
    return "\n".join(line.rstrip() for line in lines).rstrip("\n")


_BARS = """
from edgekit.cli import outcome, progress, wrap
from edgekit.errors import DataError
with progress.Bars() as bars:
    {}
"""


def test_notes_stand_above_the_bar_on_lines_of_their_own() -> None:
    note = "note: in/a.png: sigma 2.0, estimated; correlated between neighbours, as a camera leaves it"
    lines = _screen(_BARS.format(f"bars('denoise', 0, 2); wrap.say({note!r}); bars('denoise', 2, 2)")).splitlines()
    assert lines[:2] == [note[: note.index(" leaves")], "leaves it"]
    assert lines[2].startswith("denoise ")
    assert "2/2" in lines[2]
    assert len(lines) == 3


def test_nothing_stays_of_loading_above_an_error() -> None:
    child = "import time\ntry:" + _BARS.replace("\n", "\n    ").format("time.sleep(0.3); raise DataError('no images')")
    assert _screen(f"{child}\nexcept DataError as error:\n    outcome._say(f'error: {{error}}')") == "error: no images"


def test_wrapping_keeps_words_and_all_of_them() -> None:
    path = "/a/long-path/" + "x" * 30
    assert wrap(f"error: no bundle at {path}: expected  one", 20) == [
        "error: no bundle at",
        f"{path}:",
        "expected  one",
    ]
