"""profile: the noise of a camera from its own noisy images."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import show
from edgekit.cli.progress import Bars
from edgekit.cli.wrap import say
from edgekit.errors import OutputExistsError
from edgekit.extras import needed
from edgekit.out_folder import check_out_folder
from edgekit.shortened import shortened

_CHART, _RECIPE = "profile.html", "profile.yaml"
_USUAL = "tflite"


def profile(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Noisy images, or folders of them named ISO100, ISO1600, ...")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the chart and the recipe.")] = Path("profile"),
    target: Annotated[
        str, typer.Option(metavar="NAME|all", help="What the recipe exports for: tflite, openvino, tensorrt.")
    ] = _USUAL,
    force: Annotated[bool, typer.Option("--force", help="Replace a chart and a recipe that are there.")] = False,
) -> None:
    """Fit the noise of noisy images, by ISO; writes a chart and a recipe."""
    with needed("profile"), Bars() as bars:
        from edgekit.profile import chart, iso_folders, measure, recipe_file
        from edgekit.recipe import Recipe, make

        folders, left = iso_folders(folder)
        _check_free(out, force)
        _check_target(target)
        skipped: list[str] = []
        found = measure(folders, lambda stage, done, total: bars(stage, done, total), skipped.append)
        recipe = recipe_file.text(found, folder.resolve().name, target)
        import yaml

        make(Recipe, yaml.safe_load(recipe), _RECIPE)
    notes = [f"skipped: {why}" for why in skipped]
    if left:
        notes.append(f"left out, no ISO in the name: {shortened(left)}")
    if any(p.correlated for p in found):
        which = ", ".join(chart.name(p) for p in found if p.correlated)
        notes.append(f"correlated noise ({which}): the line is too low there; sigma is the estimate of --sigma auto")
    camera, shown = recipe_file.correlated(found), recipe_file.basis(found)
    if qualities := [quality for p in shown for quality in p.qualities]:
        low, high = min(qualities), max(qualities)
        levels = f"quality {low}" if low == high else f"qualities {low} to {high}"
        count = f"{len(qualities)} of the {sum(p.images for p in shown)} images that the recipe is from"
        taken = (
            "as its jpeg_share and quality say" if camera else "of which its noise knows nothing: rather profile PNGs"
        )
        notes.append(f"{count} are JPEG, of libjpeg's {levels} or like it, {taken}")
    if len(shown) < len(found):
        others = ", ".join(chart.name(p) for p in found if p not in shown)
        kind = "a camera's correlated noise" if camera else "white noise"
        notes.append(f"the recipe is for {kind}; profile the others apart: {others}")
    out.mkdir(parents=True, exist_ok=True)
    (out / _CHART).write_text(chart.render(found, folder.resolve().name, notes), encoding="utf-8")
    (out / _RECIPE).write_text(recipe, encoding="utf-8")
    rows = [
        [
            chart.name(p),
            str(p.images),
            f"{p.line.shot:.3g}",
            f"{p.line.read:.2f}",
            f"{p.sigma:.1f}",
            "correlated" if p.correlated else "white",
        ]
        for p in found
    ]
    screen = show.console()
    columns = ["", "images", "shot", "read", "sigma", "noise"]
    show.put(screen, show.table(columns, rows, title="Variance = shot * x + read²", right="images,shot,read,sigma"))
    show.line(screen, "", f"{out / _CHART}, {out / _RECIPE}")
    for note in notes:
        say(f"note: {note}")


def _check_target(target: str) -> None:
    # A device profiles without torch, which targets need to be known; there a wrong name is told by `compress`.
    if target != _USUAL and importlib.util.find_spec("torch") is not None:
        from edgekit.targets import registry

        registry.chosen(target)


def _check_free(out: Path, force: bool) -> None:
    check_out_folder(out)
    for path in (out / _CHART, out / _RECIPE):
        if path.exists() and not force:
            raise OutputExistsError(f"{path} exists: use --force to replace it, or name another folder with --out")
