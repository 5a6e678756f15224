"""Whether a data folder holds pairs; asked by the command line, too, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path


def is_paired(folder: str | Path | None) -> bool:
    """Whether a folder holds pairs of noisy and clean images: it has a `noisy/`. The built-in set, None, has none."""
    return folder is not None and (Path(folder) / "noisy").is_dir()
