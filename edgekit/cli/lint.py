"""lint: whether a delegate takes every operator of a network, before it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from edgekit.bundle import reader
from edgekit.cli import show
from edgekit.errors import RecipeError, UnknownNameError
from edgekit.extras import needed

# What each delegate is called on the command line, and in words.
_DELEGATES = {"gpu": "LiteRT's GPU delegate"}


def lint(
    model: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A model (`edgekit models` lists them), or a file of your own.")
    ],
    delegate: Annotated[str, typer.Option(metavar="NAME", help="Whose list: gpu (phones).")] = "gpu",
) -> None:
    """Name the operators that a delegate refuses, the module that makes each and the fix: exit 0 if none, 1 if any.

    Weights do not matter: ask before you train.
    """
    if _exported(Path(model)):
        raise RecipeError(
            f"{model} is exported already: lint takes models and networks of your own, before training; "
            "`edgekit inspect BUNDLE` shows a bundle's layers"
        )
    if delegate not in _DELEGATES:
        raise UnknownNameError.unknown("delegate", delegate, _DELEGATES)
    with needed("lint", "all"):
        from edgekit.models import checkpoints, create, importers, names
        from edgekit.targets.gpu_delegate import refusals

        # Shipped weights may have a name beside the model's.
        name = checkpoints.preset(model)
        if name not in names() and not importers.accepts(model):
            raise UnknownNameError.unknown("model", model, [*names(), "a network's file (net.py:make, .pt2, .onnx)"])
        network = importers.load(model, None) if importers.accepts(model) else create(name)
        found = refusals(network)
    screen = show.console()
    if found:
        rows = {(item.operator, item.module, item.why, item.fix): None for item in found}
        show.put(screen, show.table(["operator", "made by", "why", "build instead"], rows))
    words = (
        f"{len(found)} operators that {_DELEGATES[delegate]} leaves to the CPU"
        if found
        else f"every operator is on the list of {_DELEGATES[delegate]}"
    )
    line = Text(f"{'FAIL' if found else 'PASS'}  {model}: {words}")
    line.stylize("bold red" if found else "bold green", 0, 4)
    show.line(screen, line)
    raise typer.Exit(int(bool(found)))


def _exported(path: Path) -> bool:
    """Whether this names a bundle, or a file out of one."""
    return path.suffix in (*reader.SUFFIXES, ".tflite", ".xml") or (path / reader.MANIFEST).is_file()
