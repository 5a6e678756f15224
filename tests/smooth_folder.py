"""A folder of images for runs that need some: smooth, so that a small network learns something of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_smooth(folder: Path, count: int = 4) -> Path:
    """Write seeded 200x200 PNG files 0.png, 1.png, ... into a folder, which is made; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for k in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((200, 200), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    return folder
