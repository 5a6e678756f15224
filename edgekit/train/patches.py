"""Random crops of clean images with augmentation, drawn by step number so that any step can be drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.recipe import AugmentSettings

Image = NDArray[np.uint8]
# Rec. 601 luma: what "saturation" mixes towards.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def step_rng(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """The generator of one step of one process: stateless, so a resumed run draws what the unbroken one would."""
    return np.random.default_rng([seed, step, rank])


def crop(image: Image, size: int, rng: np.random.Generator) -> Image:
    """A random size x size window of an [H, W, C] image."""
    top = rng.integers(image.shape[0] - size + 1)
    left = rng.integers(image.shape[1] - size + 1)
    return image[top : top + size, left : left + size]


def augment(patch: Image, settings: AugmentSettings, rng: np.random.Generator) -> NDArray[np.float32]:
    """Flip, rotate by 90 degrees, change colour. Returns float32 [H, W, C] in 0..1."""
    out: NDArray[Any] = patch
    if settings.flip and rng.random() < 0.5:
        out = out[:, ::-1]
    if settings.rotate:
        out = np.rot90(out, rng.integers(4))
    result = out.astype(np.float32) / 255
    if result.shape[2] == 3:
        if rng.random() < settings.permute_channels:
            result = result[:, :, rng.permutation(3)]
        if rng.random() < settings.saturation:
            luma = (result @ _LUMA)[:, :, None]
            result = luma + rng.uniform(0.5, 2.5) * (result - luma)
        if rng.random() < settings.gain:
            result = result * rng.uniform(0.6, 1.4, 3).astype(np.float32)
    return np.clip(result, 0, 1).astype(np.float32, copy=False)


def batch(images: Sequence[Image], count: int, size: int, settings: AugmentSettings, rng: np.random.Generator) -> Tensor:
    """Draw `count` augmented crops from images [H, W, C] uint8, each image as likely as its area.

    Returns: float32 [count, C, size, size] in 0..1.
    """
    areas = np.array([i.shape[0] * i.shape[1] for i in images], np.float64)
    picks = rng.choice(len(images), count, p=areas / areas.sum())
    patches = [augment(crop(images[i], size, rng), settings, rng) for i in picks]
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).contiguous()
