"""Shipped weights with one more among them that is free for any use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from edgekit import models
from edgekit.models import checkpoints


def with_free_weights(folder: Path, monkeypatch: pytest.MonkeyPatch, header: Mapping[str, str]) -> Path:
    """Make `folder` the place of shipped weights, "dsunet-s-free" with this header beside those that ship."""
    folder.mkdir()
    for path in models.shipped().values():
        (folder / path.name).symlink_to(path)
    torch.manual_seed(0)
    models.save(folder / "dsunet-s-free.safetensors", models.create("dsunet-s"), header)
    monkeypatch.setattr(checkpoints, "_FOLDER", folder)
    return folder
