"""evaluate: bundles and models measured on images of the user's own."""

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
from edgekit.cli.progress import Bars
from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from edgekit.evaluation import Evaluation, Level, Score

_SUFFIX = ".edgekit"
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
    screen = show.console()
    _show(screen, found, [*dict.fromkeys(what)])
    for note in found.notes:
        show.line(screen, Text(f"note: {note}", style="dim"))


def _levels(text: str | None) -> list[float] | str | None:
    if text is None or text == "auto":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(
            f"--sigma {text}: expected noise levels in 8-bit units, separated by commas, e.g. 15,25; or auto"
        ) from None


def _show(screen: Console, found: Evaluation, paths: Sequence[str]) -> None:
    """The table, in the first form that there is room for, and what its short names stand for."""
    short = _short(paths)
    variants = [_variant(name, path) for name, path in zip(found.names, paths, strict=True)]
    names = [name + variant for name, variant in zip(short, variants, strict=True)]
    numbers = [str(place) for place in range(1, len(names) + 1)]
    forms = [_by_level(found, names), _by_name(found, names), _by_level(found, numbers), _by_name(found, numbers)]
    chosen = next((number for number, form in enumerate(forms) if show.fits(screen, form)), len(forms) - 1)
    show.put(screen, forms[chosen])
    for place, path in enumerate(paths):
        if chosen > 1:
            show.line(screen, Text(f"{numbers[place]}: {path}{variants[place]}", style="dim"))
        elif path not in (short[place], f"{short[place]}{_SUFFIX}"):
            show.line(screen, Text(f"{names[place]}: {path}", style="dim"))


def _variant(name: str, path: str) -> str:
    """What a bundle's name in the figures adds to that of its file, e.g. " int8"."""
    own = Path(path).resolve().name
    return name.removeprefix(own) if name.startswith(f"{own} ") else ""


def _short(paths: Sequence[str]) -> list[str]:
    """File names; with the folders above where two are alike, as many as it takes."""
    parts = [Path(path).parts or (path,) for path in paths]
    parts = [(*above, name.removesuffix(_SUFFIX)) for *above, name in parts]

    def tail(place: int) -> str:
        own, others = parts[place], [*parts[:place], *parts[place + 1 :]]
        lengths = (n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        length = next(lengths, None)
        return paths[place] if length is None else str(Path(*own[-length:]))

    return [tail(place) for place in range(len(paths))]


def _by_level(found: Evaluation, names: Sequence[str]) -> Table:
    columns = ["sigma", "noisy", *names]
    rows = [[_level(found, level), *map(_cell, (level.noisy, *level.found))] for level in found.levels]
    return show.table(columns, rows, title=_title(found), right=columns[1:])


def _by_name(found: Evaluation, names: Sequence[str]) -> Table:
    columns = ["sigma", *(_level(found, level) for level in found.levels)]
    scores = zip(*((level.noisy, *level.found) for level in found.levels), strict=True)
    rows = [[name, *map(_cell, row)] for name, row in zip(["noisy", *names], scores, strict=True)]
    return show.table(columns, rows, title=_title(found), right=columns[1:])


def _level(found: Evaluation, level: Level) -> str:
    return "pairs" if found.paired else f"{level.sigma:g}"


def _cell(score: Score) -> str:
    return f"{score.psnr:.2f} ({score.ssim:.3f})"


def _title(found: Evaluation) -> str:
    notes = [f"dB (SSIM), means over {found.images} image{'s' * (found.images != 1)} of {found.data}"]
    if found.unclipped:
        notes.append("noise neither clipped nor rounded")
    if found.paired:
        notes.append(_TOLD.get(found.told, f"told sigma {found.levels[0].sigma}"))
    if found.skipped:
        notes.append(f"{len(found.skipped)} left out")
    return "; ".join(notes)
