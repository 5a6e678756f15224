"""compress and train: what runs on the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from edgekit import api
from edgekit.cli import show
from edgekit.cli.crowd import Crowd
from edgekit.cli.flags import Data, Flag, LicenseClean, RecipeFile, Seed, Sigma, check_resume, whole
from edgekit.cli.progress import Bars
from edgekit.errors import RecipeError
from edgekit.extras import needed
from edgekit.pair_folder import is_paired

if TYPE_CHECKING:
    from edgekit.recipe import Recipe
    from edgekit.runtime.verdict import Verdict


def compress(
    target: Annotated[
        Flag, typer.Option(metavar="NAME|all", help="What to export for: tflite, openvino, tensorrt.")
    ] = None,
    model: Annotated[
        Flag,
        typer.Option(
            metavar="NAME|FILE",
            show_default="dsunet-s",
            help="Model (`edgekit models` lists them), a model.safetensors, or your own: net.py:make, .pt2, .onnx ...",
        ),
    ] = None,
    weights: Annotated[
        Flag, typer.Option(metavar="FILE", show_default="shipped", help="Its weights, a .safetensors or .pth file.")
    ] = None,
    teacher: Annotated[
        Flag,
        typer.Option(
            metavar="NAME|FILE|none",
            show_default="original",
            help="Who teaches the pruned model: the original itself, or a better one.",
        ),
    ] = None,
    data: Data = None,
    sigma: Sigma = None,
    prune: Annotated[
        Flag,
        typer.Option(
            metavar="SHARE", show_default="0.25; 0 below 5 kMAC per pixel", help="Share of the MACs to remove."
        ),
    ] = None,
    steps: Annotated[
        Flag,
        typer.Option(metavar="N", show_default="the recipe's", help="Training steps, distill and quantize together."),
    ] = None,
    quantizer: Annotated[
        Flag,
        typer.Option(metavar="NAME", show_default="edgekit", help="Who makes the integers; nncf is for openvino."),
    ] = None,
    precision: Annotated[
        Flag, typer.Option(metavar="int8|fp16|fp32", show_default="int8", help="What the model computes in.")
    ] = None,
    license_clean: LicenseClean = False,
    max_drop: Annotated[
        Flag,
        typer.Option(
            metavar="DB",
            show_default="0.5",
            help="dB that may be lost to the FP32 original, mean over noise levels.",
        ),
    ] = None,
    tile: Annotated[
        Flag, typer.Option(metavar="PIXELS", show_default="512", help="Height and width of the model's input.")
    ] = None,
    recipe: RecipeFile = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the bundle into.")] = Path("build"),
    seed: Seed = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show stages, settings and time; write nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Prune, distill, quantize and export a denoiser; ends in a verdict."""
    check_resume(resume, force)
    settings: dict[str, Any] = {
        "model": model,
        "weights": weights,
        "teacher": teacher,
        "data": data,
        "sigma": sigma,
        "prune": prune,
        "steps": steps,
        "target": target,
        "quantizer": quantizer,
        "precision": precision,
        "license_clean": license_clean or None,
        "max_drop": max_drop,
        "tile": tile,
        "seed": seed,
    }
    with needed("compress", "train,tflite"):
        # Before the pipeline, which takes seconds to import: a mistyped flag is answered at once.
        from edgekit.recipe import load_recipe

        loaded = load_recipe(recipe, **settings)
        if dry_run:
            _show_plan(loaded, out, force)
            return
        with Bars(Crowd()) as bars:
            from edgekit import pipeline

            found: list[Verdict] = []
            bundles = pipeline.compress(
                loaded, out=out, force=force, resume=resume, progress=bars, on_verdict=found.append
            )
        screen = show.console()
        for bundle in bundles:
            show.stages(screen, bundle.manifest)
    for bundle, verdict in zip(bundles, found, strict=True):
        show.verdict(screen, verdict, str(bundle.source))
    raise typer.Exit(max(verdict.exit_code for verdict in found))


def train(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Model; `edgekit models` lists them. May stand in the recipe.")
    ] = None,
    data: Data = None,
    weights: Annotated[
        Flag, typer.Option(metavar="NAME|FILE", show_default="random", help="Weights to start from: fine-tune.")
    ] = None,
    grow: Annotated[
        bool, typer.Option("--grow", help="--weights are of a smaller network: begin as the same function.")
    ] = False,
    teacher: Annotated[
        Flag, typer.Option(metavar="NAME|FILE", show_default="none", help="Better model that is imitated too.")
    ] = None,
    license_clean: LicenseClean = False,
    self_supervised: Annotated[
        bool, typer.Option("--self-supervised", help="--data holds noisy images alone: learn from neighbouring pixels.")
    ] = False,
    channels: Annotated[Flag, typer.Option(metavar="1|3", show_default="the model's", help="Gray or RGB.")] = None,
    sigma: Sigma = None,
    steps: Annotated[Flag, typer.Option(metavar="N", show_default="35000", help="Optimiser steps.")] = None,
    batch: Annotated[Flag, typer.Option(metavar="N", show_default="8", help="Crops a step, on each device.")] = None,
    patch: Annotated[Flag, typer.Option(metavar="PIXELS", show_default="96", help="Side of a crop.")] = None,
    learning_rate: Annotated[Flag, typer.Option(metavar="RATE", show_default="0.002", help="At its peak.")] = None,
    precision: Annotated[
        Flag, typer.Option(metavar="NAME", show_default="auto", help="auto, bf16-mixed, 16-mixed or 32-true.")
    ] = None,
    accelerator: Annotated[Flag, typer.Option(metavar="NAME", show_default="auto", help="cpu, cuda, mps.")] = None,
    devices: Annotated[Flag, typer.Option(metavar="N", show_default="1", help="Devices on each node.")] = None,
    num_nodes: Annotated[Flag, typer.Option(metavar="N", show_default="1", help="Nodes.")] = None,
    strategy: Annotated[
        Flag, typer.Option(metavar="NAME", show_default="auto", help="As Lightning names it, e.g. ddp.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write scalars and images for TensorBoard.")
    ] = False,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="recipe.yaml of a run, with every other setting; flags win.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default="runs/MODEL", help="Folder of the run.")
    ] = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start over where --out holds a run.")] = False,
) -> None:
    """Train a model, or fine-tune one; writes weights, recipe and log."""
    check_resume(resume, force)
    if model is None and recipe is None:
        raise RecipeError(
            "which model? Name one (edgekit train dsunet-s; edgekit models lists them) or give --recipe FILE"
        )
    if sigma is not None and is_paired(data):
        raise RecipeError(f"--sigma {sigma} means nothing to {data}: its pairs bring their own noise; leave it out")
    settings = {
        "batch": batch,
        "patch": patch,
        "learning_rate": learning_rate,
        "precision": precision,
        "accelerator": accelerator,
        "devices": whole(devices),
        "num_nodes": num_nodes,
        "strategy": strategy,
        "tensorboard": tensorboard or None,
        "steps": steps,
        "seed": seed,
        "noise": None if sigma is None else {"sigma": sigma},
        "self_supervised": "neighbor2neighbor" if self_supervised else None,
    }
    with Bars(Crowd()) as bars:
        trained = api.train(
            model,
            recipe=recipe,
            channels=whole(channels),
            data=data,
            weights=weights,
            grow=grow or None,
            teacher=teacher,
            license_clean=license_clean or None,
            settings={name: value for name, value in settings.items() if value is not None},
            out=out,
            force=force,
            resume=resume,
            progress=lambda done, total, text="": bars("train", done, total, text),
        )
    if not trained.first:
        return
    screen = show.console()
    if trained.scores:
        show.put(screen, _scores(trained.scores))
    show.line(screen, f"{trained.steps} steps in {trained.seconds / 60:.1f} min", str(trained.path))


def _scores(scores: Mapping[str, float]) -> Table:
    """A row a noise level of what is named psnr_25, ssim_25 and so on; psnr and ssim are of noise without levels."""
    levels = dict.fromkeys(name.partition("_")[2] for name in scores)
    kinds = [kind for kind in ("psnr", "ssim") if any(name.startswith(kind) for name in scores)]
    digits = {"psnr": 2, "ssim": 4}
    rows = [
        [level or "its own", *(f"{scores[f'{kind}_{level}'.rstrip('_')]:.{digits[kind]}f}" for kind in kinds)]
        for level in levels
    ]
    columns = ["sigma", *(kind.upper() for kind in kinds)]
    return show.table(columns, rows, title="Held-out images, unseen in training", right=columns)


def _show_plan(loaded: Recipe, out: Path, force: bool) -> None:
    from edgekit import pipeline

    stages = pipeline.plan(loaded, out=out, force=force)
    rows = [
        [stage.stage, ", ".join(f"{name} {value}" for name, value in stage.settings.items()), f"{stage.seconds:.0f}"]
        for stage in stages
    ]
    screen = show.console()
    show.put(screen, show.table(["stage", "settings", "seconds"], rows, title="What would run", right="seconds"))
    total = sum(stage.seconds for stage in stages)
    screen.print(Text(f"about {total / 60:.1f} min on two cores; nothing was written"))
