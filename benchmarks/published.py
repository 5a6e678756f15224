"""What papers publish, and measuring as they do: float, noise neither clipped nor rounded, the whole image at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.sets import Image, to_bytes
from edgekit.models import DenoiserModel

# (model, set, sigma) -> dB, rounded to 0.01: papers and the KAIR model zoo, reproduced in ../shared/data/SOURCES.md.
FIGURES = {
    ("ffdnet-color", "CBSD68", 25): 31.22,
    ("ffdnet-color", "McMaster", 25): 32.36,
    ("dncnn-color-blind", "CBSD68", 25): 31.24,
    ("dncnn-25", "Set12", 25): 30.43,
}
# How far a measurement with other noise may lie from them, in dB.
TOLERANCE = 0.02


@torch.no_grad()
def denoise(model: DenoiserModel, noisy: NDArray[np.floating[Any]], sigma: float) -> Image:
    """Run a float model on a whole image; rows and columns that the stride asks for repeat the last one.

    Args:
        noisy: [H, W, C] in 8-bit units, neither clipped nor rounded.
        sigma: in 8-bit units.
    Returns: uint8 [H, W, C], rounded.
    """
    height, width = noisy.shape[:2]
    border = [(0, -side % model.stride) for side in (height, width)]
    padded = np.pad(noisy / 255, [*border, (0, 0)], mode="edge").astype(np.float32)
    batch = torch.from_numpy(padded).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    clean = model(batch, torch.tensor([sigma / 255], dtype=torch.float32))
    return to_bytes(clean[0].permute(1, 2, 0).numpy()[:height, :width].astype(np.float64) * 255)


def wrong(model: str, name: str, sigma: int, decibels: float) -> str:
    """Why a measured figure is not the published one, or "" if it is, or none is known."""
    figure = FIGURES.get((model, name, sigma))
    if figure is None or abs(decibels - figure) <= TOLERANCE:
        return ""
    return f"{model} on {name} at sigma {sigma} gives {decibels:.3f} dB unclipped, published are {figure:.2f}"
