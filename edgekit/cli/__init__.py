"""The command line: it parses, calls and prints; every other module works without it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process.

    Exit codes: 0 done, 1 a FAIL verdict, 2 bad input (one line on stderr), 130 interrupted.

    Args:
        arguments: without the program's name; None takes the process's own.
    """
    from edgekit.cli.messages import set_up
    from edgekit.cli.outcome import run

    set_up()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))
