"""What the scripts share on the command line: errors as one line, tables, a line of progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from edgekit.errors import EdgekitError


def leave(main: Callable[[Sequence[str]], int]) -> None:
    """Run a script's main and exit with its code; what is wrong with the input becomes one line and exit code 2."""
    try:
        code = main(sys.argv[1:])
    except (EdgekitError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: what is done is kept, the same command goes on from there", file=sys.stderr)
        code = 130
    sys.exit(code)


def say(text: str) -> None:
    """A line about what is under way, on stderr."""
    print(text, file=sys.stderr, flush=True)


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> None:
    """Print a table.

    Args:
        texts: how many columns, from the left, are text; the others are numbers.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < texts else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
