"""The settings of a recipe as a page of tables: names, defaults, and what the comments in edgekit/recipe.py say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from edgekit import recipe
from edgekit.recipe_errors import taken

# Where a class's settings stand in a recipe.
_SECTIONS = (
    (recipe.Recipe, "`edgekit compress`", "at the top"),
    (recipe.PruneSettings, "`edgekit compress`", "`pruning`"),
    (recipe.DistillSettings, "`edgekit compress`", "`distillation`"),
    (recipe.QuantizeSettings, "`edgekit compress`", "`quantization`"),
    (recipe.TrainRecipe, "`edgekit train`", "at the top"),
    (recipe.TrainSettings, "`edgekit train`", "`train`; in each of `parts` what differs, and `config`"),
    (recipe.NoiseSettings, "both", "`noise`, in `edgekit train` under `train`"),
    (recipe.AugmentSettings, "`edgekit train`", "`train.augment`"),
    (recipe.FinetuneRecipe, "`edgekit finetune`", "at the top; `train` and `quantization` as above"),
    (recipe.SearchRecipe, "`edgekit search`", "at the top; `train` as above"),
)
# What a run writes into the file.
_TOLD = {"images", "versions"}
_FIELD = re.compile(r"    (?P<name>[a-z]\w*): ")


def page(folder: Path) -> str:
    """All tables; `folder` of results is not read."""
    return "\n\n".join(_section(*section) for section in _SECTIONS)


def _section(cls: type[BaseModel], command: str, place: str) -> str:
    said = dict(_comments(cls))
    lines = [f"**{command}**, {place}: {(inspect.getdoc(cls) or '').splitlines()[0]}", ""]
    lines += ["| setting | default | takes | |", "| --- | --- | --- | --- |"]
    for name, field in cls.model_fields.items():
        if name in _TOLD:
            continue
        default = "needed" if field.is_required() else _default(field.get_default(call_default_factory=True))
        cells = (f"`{name}`", default, taken(cls, name), said.get(name, ""))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see its table"
    if value is None or value in ((), {}, ""):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(f'{part:g}' if isinstance(part, float) else str(part) for part in value)}]`"
    return f"`{value}`"


def _comments(cls: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """What stands above each setting; in a group it is said of the first one."""
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if line.startswith("    # "):
            above.append(line.strip().removeprefix("# "))
        elif found := _FIELD.match(line):
            yield found["name"], " ".join(above)
            above = []
        else:
            above = []
