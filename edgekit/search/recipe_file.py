"""The training recipe that a search leaves, and whether a file still is one as it was left."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit._version import __version__
from edgekit.recipe import Recipe, SearchRecipe
from edgekit.search.yardstick import MODEL

_MARK = "# edgekit search"


def text(recipe: SearchRecipe, config: Mapping[str, Any], about: str, out: Path) -> str:
    """The file's text.

    Args:
        config: constructor arguments of the winner.
        about: where it comes from, a sentence.
        out: the file's place, for the lines that say what to do with it.
    """
    import yaml

    noise = recipe.train.noise
    flags = [f"--target {recipe.target}", f"--model {MODEL}", f"--weights runs/{MODEL}/model.safetensors", "--prune 0"]
    if noise.sigma != Recipe.model_fields["sigma"].default:
        flags.append(f"--sigma {noise.sigma[0]:g}:{noise.sigma[1]:g}")
    if recipe.tile != Recipe.model_fields["tile"].default:
        flags.append(f"--tile {recipe.tile}")
    if recipe.data is not None:
        flags.append(f"--data {recipe.data}")
    content = {
        "model": MODEL,
        "channels": recipe.channels,
        "config": dict(config),
        "data": None if recipe.data is None else str(recipe.data),
        "license_clean": recipe.license_clean or None,
        "train": recipe.train.model_dump(mode="json"),
    }
    body = f"# {about}\n# edgekit train --recipe {out}\n# edgekit compress {' '.join(flags)}\n"
    if noise.model != "gaussian":
        body += "# (compress with a --recipe that has this file's noise, too)\n"
    body += yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False)
    return f"{_MARK} {__version__} {_digest(body)}\n{body}"


def is_ours(content: str) -> bool:
    """Whether a file is as a search left it: one that its user changed is not."""
    first, _, body = content.partition("\n")
    return first.startswith(_MARK) and first.split()[-1] == _digest(body)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]
