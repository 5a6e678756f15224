"""Lines as a terminal shows them: broken between words; a pipe and a file get each as one."""

from __future__ import annotations

import sys
import textwrap


def wrap(line: str, width: int) -> list[str]:
    """The parts of a line, each of which is in it as it stands; a path or a name that is longer stays whole."""
    return textwrap.wrap(
        line, width, break_long_words=False, break_on_hyphens=False, expand_tabs=False, replace_whitespace=False
    )


def say(line: str) -> None:
    """Print a line on stderr: above a progress bar, if there is one."""
    # Looked up now: rich puts its own stream there while a bar is drawn. `typer.echo` writes past that.
    stream = sys.stderr
    if stream.isatty():
        from rich.console import Console

        line = "\n".join(wrap(line, Console(stderr=True).width))
    # In one write: several processes of a training may say something at once.
    print(line + "\n", end="", file=stream, flush=True)
