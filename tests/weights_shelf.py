"""Shipped weights, and in place of the free ones some with a header of the test's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from edgekit import models
from edgekit.models import checkpoints


def with_free_weights(folder: Path, monkeypatch: pytest.MonkeyPatch, header: Mapping[str, str]) -> Path:
    """Make `folder` the place of shipped weights, "dsunet-s-free" with this header among them."""
    folder.mkdir()
    for name, path in models.shipped().items():
        if name != "dsunet-s-free":
            (folder / path.name).symlink_to(path)
    torch.manual_seed(0)
    models.save(folder / "dsunet-s-free.safetensors", models.create("dsunet-s"), header)
    monkeypatch.setattr(checkpoints, "_FOLDER", folder)
    return folder
