"""evaluate: bundles and models measured on images of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from edgekit.cli import show
from edgekit.cli.progress import Bars
from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from edgekit.evaluation import Evaluation

_TOLD = {"rms": "told the root mean square of noisy - clean", "auto": 'told what sigma="auto" estimates'}


def evaluate(
    what: Annotated[
        list[str], typer.Argument(metavar="WHAT...", help="Bundles, shipped weights, weight files, or .onnx and such.")
    ],
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of clean images, or of pairs in noisy/ and clean/.")
    ],
    sigma: Annotated[
        str | None,
        typer.Option(
            metavar="LEVELS|auto",
            show_default="5,15,25,50",
            help="Noise added to clean images, in 8-bit units; for pairs what is told (default: as measured).",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What weight files are of that do not say so: a model, or net.py:make."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model file of each bundle; else its default one.")
    ] = None,
    unclipped: Annotated[
        bool, typer.Option("--unclipped", help="Noise neither clipped nor rounded, as papers measure; models alone.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads of bundles; else as many as there are, at most 4.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
) -> None:
    """Measure bundles and models on your images: PSNR and SSIM by noise level, all under the same noise."""
    from edgekit.api import evaluate as measure

    with Bars() as bars:
        found = measure(
            what,
            data,
            sigma=_levels(sigma),
            model=model,
            variant=variant,
            unclipped=unclipped,
            threads=threads,
            progress=bars,
        )
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    out = show.console()
    out.print(_table(found))
    for note in found.notes:
        out.print(Text(f"note: {note}", style="dim"), soft_wrap=True)


def _levels(text: str | None) -> list[float] | str | None:
    if text is None or text == "auto":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(
            f"--sigma {text}: expected noise levels in 8-bit units, separated by commas, e.g. 15,25; or auto"
        ) from None


def _table(found: Evaluation) -> object:
    columns = ["sigma", "noisy", *found.names]
    rows = [
        [
            "pairs" if found.paired else f"{level.sigma:g}",
            *(f"{score.psnr:.2f} ({score.ssim:.3f})" for score in (level.noisy, *level.found)),
        ]
        for level in found.levels
    ]
    notes = [f"dB (SSIM), means over {found.images} image{'s' * (found.images != 1)} of {found.data}"]
    if found.unclipped:
        notes.append("noise neither clipped nor rounded")
    if found.paired:
        notes.append(_TOLD.get(found.told, f"told sigma {found.levels[0].sigma}"))
    if found.skipped:
        notes.append(f"{len(found.skipped)} left out")
    return show.table(columns, rows, title="; ".join(notes), right=columns[1:])
