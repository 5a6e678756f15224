"""bench: bundles timed against each other and against their own float files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
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
    _show(screen, found.timed)
    about = [*(f"{name} {version}" for name, version in found.versions.items()), found.machine["system"]]
    show.line(screen, Text(", ".join(about), style="dim"))
    for note in found.notes:
        show.line(screen, Text(f"note: {note}", style="dim"))
    show.line(screen, Text(found.line(), style="bold"))


def _show(screen: Console, timed: Sequence[Timed]) -> None:
    """All of it as a table; where there is no room, the times, and of each row a line below with the rest."""
    wide = _table(timed)
    if show.fits(screen, wide):
        show.put(screen, wide)
        return
    *named, labels = (
        [f"{entry.name} {entry.variant}" for entry in timed],
        [f"{entry.name} {entry.target} {entry.variant}" for entry in timed],
        # Two builds of one model, or a name that leaves no room.
        [f"{place}: {entry.variant}" for place, entry in enumerate(timed, 1)],
    )
    good = (some for some in named if len({*some}) == len(some) and show.fits(screen, _times(some, timed)))
    labels = next(good, labels)
    show.put(screen, _times(labels, timed))
    for label, entry in zip(labels, timed, strict=True):
        show.line(screen, Text(f"{label}: {_rest(entry)}", style="dim"))


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
            _engine(entry),
            entry.threads,
            *(f"{value:.2f}" for value in (entry.p50_ms, entry.p90_ms, entry.p99_ms)),
            *(f"{value:.1f}" for value in (entry.ms_per_megapixel, entry.fastest_ms_per_megapixel)),
            f"{entry.megapixels_per_second:.2f}",
            _times_faster(entry),
            _megabytes(entry),
            "" if entry.int8_share is None else percent(entry.int8_share),
        ]
        for entry in timed
    ]
    return show.table(columns, rows, title=_title(timed), right=",".join(columns[4:]))


def _times(labels: Sequence[str], timed: Sequence[Timed]) -> Table:
    """A table that 80 columns hold: what a bundle is chosen by."""
    columns = ["", "p50 ms", "p90 ms", "p99 ms", "ms/MP", "times", "peak MB"]
    rows = [
        [
            label,
            *(f"{value:.2f}" for value in (entry.p50_ms, entry.p90_ms, entry.p99_ms)),
            f"{entry.ms_per_megapixel:.1f}",
            *(_times_faster(entry), _megabytes(entry)),
        ]
        for label, entry in zip(labels, timed, strict=True)
    ]
    return show.table(columns, rows, title=_title(timed), right=columns[1:])


def _rest(entry: Timed) -> str:
    """What the narrow table has no room for."""
    threads = f"{entry.threads} thread{'s' * (entry.threads != 1)}"
    speed = f"{entry.megapixels_per_second:.2f} MP/s, fastest {entry.fastest_ms_per_megapixel:.1f} ms/MP"
    share = "" if entry.int8_share is None else f", {percent(entry.int8_share)} of MACs in int8"
    return f"{entry.bundle}, {entry.target}, {_engine(entry)}, {threads}, {speed}{share}"


def _engine(entry: Timed) -> str:
    return f"{entry.library} ({entry.kernels})"


def _times_faster(entry: Timed) -> str:
    return "" if entry.ratio is None else f"{entry.ratio:.2f}x {entry.baseline}"


def _megabytes(entry: Timed) -> str:
    return "" if entry.peak_memory is None else f"{entry.peak_memory / 1e6:.1f}"


def _title(timed: Sequence[Timed]) -> str:
    return (
        f"{timed[0].runs} runs each, in turns; useful pixels of one tile; times: how many times faster than the "
        "baseline"
    )
