"""How tables and verdicts look."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgekit.bundle.manifest import Manifest
from edgekit.cli.wrap import wrap
from edgekit.runtime.verdict import Verdict

# A table that is cut to 80 columns because nobody looks at it helps nobody.
_PIPED_WIDTH = 160
_ENDLESS = 10_000
# The longest name, in characters, that a table keeps on one line however narrow it is.
_NAME = 24
# Where the heading of a column that is kept whole is wrapped, in characters, if its cells are no wider.
_HEADING = 9


def console() -> Console:
    """The console for results: stdout, wide when it goes to a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)


def line(out: Console, text: str | Text, place: str = "") -> None:
    """Print a line; a terminal gets it wrapped between words, a pipe or a file as it is.

    Args:
        place: what `->` points to after it, a path; never broken, on a line of its own where there is no room.
    """
    told = Text(text) if isinstance(text, str) else text
    arrow = Text(f"-> {place}" if place else "")
    whole = Text("  " if told and arrow else "").join([told, arrow])
    if not out.file.isatty() or whole.cell_len <= out.width:
        parts = [whole]
    else:
        parts = [*_wrapped(told, out.width), *([arrow] if place else [])]
    for part in parts:
        # Not by rich, which breaks words that are longer than a line.
        out.print(part, soft_wrap=True)


def _wrapped(text: Text, width: int) -> Iterable[Text]:
    at = 0
    for part in wrap(text.plain, width):
        at = text.plain.index(part, at)
        yield text[at : at + len(part)]
        at += len(part)


def put(out: Console, shown: Table) -> None:
    """Print a table under its title, which is a line like others: in it a path is whole, however narrow the table."""
    heading, shown.title = shown.title, None
    if isinstance(heading, Text):
        line(out, heading)
    out.print(shown)


def fits(out: Console, wide: Table) -> bool:
    """Whether there is room for a table without wrapping a cell."""
    # Asked where there is room for all of it: no measure exceeds the width that it is given.
    return out.measure(wide, options=out.options.update_width(_ENDLESS)).maximum <= out.width


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    right: str | Sequence[str] = "",
) -> Table:
    """A table for `put`; all of it is plain text, never markup.

    Args:
        columns: their headings.
        rows: their cells.
        title: a line above it.
        right: headings of the columns of numbers, in one text separated by commas.
    """
    numbers = {name.strip() for name in (right.split(",") if isinstance(right, str) else right)} - {""}
    result = Table(
        box=box.SIMPLE_HEAD,
        title=Text(title, style="bold") if title else None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    result.show_header = any(columns)
    lines = [[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row] for row in rows]
    for place, column in enumerate(columns):
        widest = max((line[place].cell_len for line in lines), default=0)
        # Text is wrapped; a number or a name that is broken over two lines is no number and no name.
        whole = column in numbers or (place == 0 and widest <= _NAME)
        justify: Literal["left", "right"] = "right" if column in numbers else "left"
        # Rich wraps headings too, but not of a column that keeps its width, and it cuts off what a least width pushes
        # over the edge.
        heading = "\n".join(wrap(column, max(widest, _HEADING))) if whole else column
        result.add_column(Text(heading), justify=justify, overflow="fold", no_wrap=whole)
    for line in lines:
        result.add_row(*line)
    return result


def stages(out: Console, manifest: Manifest) -> None:
    """Print what each stage did to the model: size and dB at each noise level, and what it was, a line each."""
    levels = sorted({s for stage in manifest.stages for s in stage.get("db_after", {})}, key=float)
    columns = ["stage", "kMAC/px", "parameters", *(f"sigma {s}" for s in levels), "seconds"]
    rows = [[*_stage(stage, levels)] for stage in manifest.stages]
    measured = "dB on held-out tiles at each sigma" if levels else "no noise level measured"
    title = f"{manifest.name} for {manifest.target}, after each stage: {measured}"
    put(out, table(columns, rows, title=title, right=columns[1:]))
    for stage in manifest.stages:
        line(out, Text(f"{stage['stage']}: {stage['what']}", style="dim"))
    out.print()


def _stage(stage: Mapping[str, Any], levels: Sequence[str]) -> Iterable[str]:
    yield stage["stage"]
    yield f"{stage['after']['macs_per_pixel'] / 1e3:.2f}"
    yield f"{stage['after']['parameters']:,}"
    for level in levels:
        value = stage["db_after"].get(level)
        yield "" if value is None else f"{value:.2f}"
    yield f"{stage['seconds']:.0f}"


def verdict(out: Console, found: Verdict, place: str = "") -> None:
    """Print a verdict: why it fails and what is to be noted, then the one line."""
    for reason in found.reasons:
        line(out, Text(f"- {reason}", style="red"))
    for note in found.notes:
        line(out, Text(f"note: {note}", style="dim"))
    text = Text(found.line())
    text.stylize("bold green" if found.passed else "bold red", 0, 4)
    line(out, text, place)


def levels(found: Verdict) -> Table:
    """The verdict's figures, one row a noise level."""
    columns = ["sigma", "noisy", "FP32 original", "FP32 compressed", "this device", "total", "quantization"]
    rows = [
        [
            "mean" if row.sigma is None else f"{row.sigma:g}",
            *(f"{value:.2f}" for value in (row.noisy, row.fp32_original, row.fp32_compressed, row.device)),
            f"{-row.total_drop:+.2f}",
            f"{-row.quantization_drop:+.2f}",
        ]
        for row in (*found.rows, found.total)
    ]
    return table(columns, rows, title=f"{found.name}: dB against the clean golden tiles", right=",".join(columns))
