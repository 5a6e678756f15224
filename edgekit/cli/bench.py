"""bench: bundles timed against each other and against their own float files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from edgekit.cli import show
from edgekit.runtime.verdict import percent

if TYPE_CHECKING:
    from edgekit.runtime.bench import Timed


def bench(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Folders or zips that `edgekit compress` wrote.")
    ],
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model file of each bundle; else its default one.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|none", help="Timed beside it; else fp32 where the bundle has it.", show_default=False
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads of all; else as many as there are, at most 4.")
    ] = None,
    runs: Annotated[int, typer.Option(metavar="N", help="Timed runs of each, at most.")] = 30,
    seconds: Annotated[float, typer.Option(metavar="S", help="No round of runs begins after that long.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
) -> None:
    """Time bundles here, in turns: milliseconds, throughput, memory, and where INT8 is slower than float."""
    from edgekit.runtime.bench import bench as measure

    found = measure(bundles, variant=variant, baseline=baseline, threads=threads, runs=runs, seconds=seconds)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    screen = show.console()
    screen.print(_table(found.timed))
    about = [*(f"{name} {version}" for name, version in found.versions.items()), found.machine["system"]]
    screen.print(Text(", ".join(about), style="dim"), soft_wrap=True)
    for note in found.notes:
        screen.print(Text(f"note: {note}", style="dim"), soft_wrap=True)
    screen.print(Text(found.line(), style="bold"), soft_wrap=True)


def _table(timed: Sequence[Timed]) -> Table:
    columns = [
        *("bundle", "target", "variant", "engine", "threads", "p50 ms", "p90 ms", "p99 ms", "ms/MP", "fastest", "MP/s"),
        *("times", "peak MB", "int8 MACs"),
    ]
    # Two builds of one model are told apart by their paths.
    places = {(entry.name, entry.target, entry.bundle) for entry in timed}
    unique = len({place[:2] for place in places}) == len(places)
    rows = [
        [
            entry.name if unique else entry.bundle,
            entry.target,
            entry.variant,
            f"{entry.library} ({entry.kernels})",
            entry.threads,
            *(f"{value:.2f}" for value in (entry.p50_ms, entry.p90_ms, entry.p99_ms)),
            *(f"{value:.1f}" for value in (entry.ms_per_megapixel, entry.fastest_ms_per_megapixel)),
            f"{entry.megapixels_per_second:.2f}",
            "" if entry.ratio is None else f"{entry.ratio:.2f}x {entry.baseline}",
            "" if entry.peak_memory is None else f"{entry.peak_memory / 1e6:.1f}",
            "" if entry.int8_share is None else percent(entry.int8_share),
        ]
        for entry in timed
    ]
    rounds = timed[0].runs
    title = f"{rounds} runs each, in turns; useful pixels of one tile; times: how many times faster than the baseline"
    return show.table(columns, rows, title=title, right=",".join(columns[4:]))
