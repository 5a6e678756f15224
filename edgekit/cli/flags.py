"""Flags that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from edgekit.errors import RecipeError

# Flags are passed on as text: the recipe checks them, so that a flag and a line of a recipe file get the same answer.
Flag: TypeAlias = str | None

Data: TypeAlias = Annotated[
    Flag,
    typer.Option(
        metavar="DIR", show_default="built in", help="Folder of clean images, or of pairs in noisy/ and clean/."
    ),
]
Sigma: TypeAlias = Annotated[
    Flag, typer.Option(metavar="LOW:HIGH", show_default="0:55", help="Noise levels in 8-bit units, 0 to 255.")
]
Seed: TypeAlias = Annotated[Flag, typer.Option(metavar="N", show_default="0", help="Seed of every generator.")]
LicenseClean: TypeAlias = Annotated[
    bool, typer.Option("--license-clean", help="Refuse weights, teachers and images that are not free for any use.")
]
RecipeFile: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML file of settings with these names; flags win.")
]


def check_resume(resume: bool, force: bool) -> None:
    """Raises: RecipeError: both."""
    if resume and force:
        raise RecipeError("--resume goes on with what is there, --force starts over: give one of them")


def whole(text: str | None) -> Any:
    """A flag whose setting allows only certain whole numbers; what is none is left for the recipe to refuse."""
    return int(text) if text is not None and text.isdigit() else text
