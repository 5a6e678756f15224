"""The folder that a command writes into."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import OutputExistsError


def check_out_folder(folder: Path) -> None:
    """Raises: OutputExistsError: a file is where a run's folder is to be."""
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file: name a folder for the run (--out)")
