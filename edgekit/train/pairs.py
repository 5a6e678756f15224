"""Pairs of a noisy and a clean image of the same scene, as real-noise sets come."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edgekit.errors import DataError
from edgekit.shortened import shortened
from edgekit.train.images import image_files

# What distinguishes the two names of a pair in SIDD (0001_NOISY_SRGB_010 and 0001_GT_SRGB_010) and its like; "_" is no
# word boundary to a regular expression, but it is one in a file name.
_ROLE = re.compile(r"(?<![a-z0-9])(noisy|clean|gt|mean|real|ref|reference|groundtruth)(?![a-z0-9])")


def pairs(folder: Path) -> list[tuple[str, Path, Path]]:
    """(name, clean file, noisy file) for every image below `noisy/` and `clean/`.

    Two files belong together when their paths below those folders are the same but for the suffix and a word like NOISY
    or GT in the name.

    Raises: DataError: there is no `clean/`, a file has no partner, or two files claim the same one.
    """
    if not (folder / "clean").is_dir():
        raise DataError(f"{folder} holds noisy/ but no clean/: pairs need both, with the same file names")
    noisy, clean = (_by_key(folder / side, _stem) for side in ("noisy", "clean"))
    if noisy.keys() != clean.keys():
        noisy, clean = (_by_key(folder / side, _scene) for side in ("noisy", "clean"))
    alone = [f"noisy/{noisy[k].name}" for k in noisy if k not in clean]
    alone += [f"clean/{clean[k].name}" for k in clean if k not in noisy]
    if alone:
        raise DataError(
            f"{len(alone)} images in {folder} have no partner: {shortened(alone)}; "
            "give the noisy and the clean image of a scene the same name, or remove the single ones"
        )
    return [(key, clean[key], noisy[key]) for key in noisy]


def _by_key(folder: Path, key_of: Callable[[Path], str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in image_files(folder):
        key = key_of(path.relative_to(folder))
        if key in found:
            raise DataError(
                f"{found[key].name} and {path.name} in {folder} go by the same name {key!r}: "
                "pairs are matched by name, so each must be unique"
            )
        found[key] = path
    return found


def _stem(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _scene(path: Path) -> str:
    stem = _stem(path).lower()
    return _ROLE.sub("", stem).replace("__", "_").strip("_-. ") or stem
