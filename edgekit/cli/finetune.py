"""finetune: a model or a bundle learns a new noise and keeps the old one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit import api
from edgekit.cli import show
from edgekit.cli.crowd import Crowd
from edgekit.cli.flags import Flag, LicenseClean, RecipeFile, Seed, check_resume
from edgekit.cli.progress import Bars
from edgekit.errors import RecipeError
from edgekit.pair_folder import is_paired

if TYPE_CHECKING:
    from edgekit.runtime.verdict import Verdict


def finetune(
    model: Annotated[
        str | None, typer.Argument(metavar="BUNDLE|MODEL", help="Bundle to renew, or a model. May stand in the recipe.")
    ] = None,
    data: Annotated[
        Flag, typer.Option(metavar="DIR", help="New images: clean ones, or pairs in noisy/ and clean/.")
    ] = None,
    noise: Annotated[
        Flag, typer.Option(metavar="NAME", show_default="gaussian", help="Noise that is added to new clean images.")
    ] = None,
    sigma: Annotated[
        Flag, typer.Option(metavar="LOW:HIGH", show_default="0:55", help="Its levels, if it is gaussian, 0 to 255.")
    ] = None,
    replay: Annotated[
        Flag, typer.Option(metavar="DIR", show_default="built in", help="Old images, or ones that stand for them.")
    ] = None,
    replay_share: Annotated[
        Flag, typer.Option(metavar="SHARE", show_default="0.5", help="Share of old images in a batch; 0 for none.")
    ] = None,
    weights: Annotated[Flag, typer.Option(metavar="FILE", show_default="shipped", help="Weights of a model.")] = None,
    license_clean: LicenseClean = False,
    steps: Annotated[Flag, typer.Option(metavar="N", show_default="2000", help="Optimiser steps.")] = None,
    batch: Annotated[Flag, typer.Option(metavar="N", show_default="8", help="Crops a step, on each device.")] = None,
    patch: Annotated[Flag, typer.Option(metavar="PIXELS", show_default="96", help="Side of a crop.")] = None,
    learning_rate: Annotated[Flag, typer.Option(metavar="RATE", show_default="0.0005", help="At its peak.")] = None,
    recipe: RecipeFile = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="runs/NAME-tuned", help="Folder of the run.")
    ] = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start over where --out holds a run.")] = False,
) -> None:
    """Teach a deployed model a new noise, with the old one replayed; a bundle becomes a new bundle."""
    check_resume(resume, force)
    if recipe is None and (model is None or data is None):
        raise RecipeError(
            "finetune what, on which images? Give both: edgekit finetune build/dsunet-s-tflite.edgekit --data photos"
        )
    if noise not in (None, "gaussian") and sigma is not None:
        raise RecipeError(f"--sigma {sigma} means nothing to {noise} noise: leave it out, or --noise")
    if is_paired(data) and (noise is not None or sigma is not None):
        raise RecipeError(
            f"--noise and --sigma mean nothing to {data}: its pairs bring their own noise; leave them out"
        )
    settings = {"steps": steps, "batch": batch, "patch": patch, "learning_rate": learning_rate, "seed": seed}
    added = {name: value for name, value in (("model", noise), ("sigma", sigma)) if value is not None}
    found: list[Verdict] = []
    with Bars(Crowd()) as bars:
        tuned = api.finetune(
            model,
            recipe=recipe,
            data=data,
            replay=replay,
            replay_share=replay_share,
            weights=weights,
            license_clean=license_clean or None,
            settings={**{k: v for k, v in settings.items() if v is not None}, **({"noise": added} if added else {})},
            out=out,
            force=force,
            resume=resume,
            progress=bars,
            on_verdict=found.append,
        )
    if not tuned.first:
        return
    rows = [
        [row.which, row.noise, f"{row.before:.2f}", f"{row.after:.2f}", f"{row.after - row.before:+.2f}"]
        for row in tuned.table
    ]
    columns = ["images", "noise", "before", "after", "change"]
    screen = show.console()
    show.put(screen, show.table(columns, rows, title="dB on held-out images, FP32", right="before,after,change"))
    show.line(screen, "", str(tuned.path))
    if tuned.bundle is not None:
        show.verdict(screen, found[-1], str(tuned.bundle.source))
        raise typer.Exit(found[-1].exit_code)
