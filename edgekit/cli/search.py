"""search: a student's widths and depth for a latency budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from edgekit import api
from edgekit.cli import show
from edgekit.cli.flags import Data, Flag, LicenseClean, RecipeFile, Seed, Sigma, whole
from edgekit.cli.progress import Bars
from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from edgekit.search.study import Search

# Lines of the table: the best ones.
_SHOWN = 12


def search(
    budget: Annotated[
        Flag, typer.Option(metavar="MS", help="Milliseconds per megapixel of INT8 on this machine, e.g. 80ms/MP.")
    ] = None,
    target: Annotated[
        Flag, typer.Option(metavar="NAME", show_default="tflite", help="What candidates are exported to and timed as.")
    ] = None,
    data: Data = None,
    license_clean: LicenseClean = False,
    channels: Annotated[Flag, typer.Option(metavar="1|3", show_default="3", help="Gray or RGB.")] = None,
    sigma: Sigma = None,
    trials: Annotated[Flag, typer.Option(metavar="N", show_default="20", help="Candidates in all.")] = None,
    steps: Annotated[Flag, typer.Option(metavar="N", show_default="1500", help="Training steps of each.")] = None,
    threads: Annotated[
        Flag, typer.Option(metavar="N", show_default="1", help="CPU threads they are timed with.")
    ] = None,
    tile: Annotated[
        Flag, typer.Option(metavar="PIXELS", show_default="512", help="Height and width of the input.")
    ] = None,
    storage: Annotated[
        Flag,
        typer.Option(
            metavar="FILE|URL",
            show_default="beside --out",
            help="Where the study lives; machines that name the same one work together.",
        ),
    ] = None,
    recipe: RecipeFile = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Training recipe to write.")] = Path("student.yaml"),
    seed: Seed = None,
) -> None:
    """Find a student's widths and depth within a latency budget; writes a recipe."""
    if budget is None and recipe is None:
        raise RecipeError(
            "which budget? Give milliseconds per megapixel, e.g. --budget 80ms/MP; `edgekit bench --threads 1 BUNDLE` "
            "says what a bundle takes"
        )
    with Bars() as bars:
        found = api.search(
            budget,
            recipe=recipe,
            target=target,
            data=data,
            license_clean=license_clean or None,
            channels=whole(channels),
            sigma=sigma,
            trials=whole(trials),
            steps=whole(steps),
            threads=whole(threads),
            tile=whole(tile),
            storage=storage,
            seed=whole(seed),
            out=out,
            progress=bars,
        )
    screen = show.console()
    show.put(screen, _table(found))
    best = found.best
    line = f"best: {best.mean:.2f} dB INT8 at {best.ms_per_megapixel:.1f} ms/MP"
    show.line(screen, Text(line, style="bold"), str(found.recipe))
    screen.print(Text(f"train it: edgekit train --recipe {found.recipe}"), soft_wrap=True)


def _table(found: Search) -> Table:
    order = sorted(found.candidates, key=lambda candidate: (-candidate.mean, candidate.ms_per_megapixel))
    shape = list(found.best.shape)
    levels = list(found.best.psnr or {})
    rows = [
        [
            *(str(candidate.shape[name]) for name in shape),
            f"{candidate.ms_per_megapixel:.1f}",
            *("" if candidate.psnr is None else f"{candidate.psnr[level]:.2f}" for level in levels),
        ]
        for candidate in order[:_SHOWN]
    ]
    columns = [*(name.replace("_", " ") for name in shape), "ms/MP", *(f"sigma {level}" for level in levels)]
    title = f"Best of {len(order)} candidates: dB of INT8 after the search's short training; without, over the budget"
    return show.table(columns, rows, title=title, right=",".join(columns))
