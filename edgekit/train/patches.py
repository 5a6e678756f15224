"""Random crops of images with augmentation, drawn from one generator so that any draw can be repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.recipe import AugmentSettings
from edgekit.train.decode import Image

# Rec. 601 luma: what "saturation" mixes towards.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def crop(image: Image, size: int, settings: AugmentSettings, rng: np.random.Generator) -> Image:
    """A random size x size window of an [H, W, C] image, or a larger one shrunk to that size."""
    side = size
    # Without the setting nothing is drawn, so that the crops of older recipes stay what they were.
    if settings.scale and rng.random() < settings.scale:
        side = min(round(size * rng.uniform(1, 2)), *image.shape[:2])
    top = rng.integers(image.shape[0] - side + 1)
    left = rng.integers(image.shape[1] - side + 1)
    window = image[top : top + side, left : left + side]
    return window if side == size else _shrink(window, size)


def crop_pair(
    clean: Image, noisy: Image, size: int, settings: AugmentSettings, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same augmented window of a clean and a noisy image, float32 [size, size, C] in 0..1.

    Scale, saturation and gain are left out: they would change the camera's own noise.
    """
    top = rng.integers(clean.shape[0] - size + 1)
    left = rng.integers(clean.shape[1] - size + 1)
    window = np.concatenate([image[top : top + size, left : left + size] for image in (clean, noisy)], axis=2)
    moved: NDArray[np.float32] = _move(window, settings, rng).astype(np.float32) / np.float32(255)
    channels = clean.shape[2]
    order = rng.permutation(3) if channels == 3 and rng.random() < settings.permute_channels else np.arange(channels)
    return moved[:, :, :channels][:, :, order], moved[:, :, channels:][:, :, order]


def augment(patch: Image, settings: AugmentSettings, rng: np.random.Generator) -> NDArray[np.float32]:
    """Flip, rotate by 90 degrees, change colour. Returns float32 [H, W, C] in 0..1."""
    result = _move(patch, settings, rng).astype(np.float32) / 255
    if result.shape[2] == 3:
        if rng.random() < settings.permute_channels:
            result = result[:, :, rng.permutation(3)]
        if rng.random() < settings.saturation:
            luma = (result @ _LUMA)[:, :, None]
            result = luma + rng.uniform(0.5, 2.5) * (result - luma)
        if rng.random() < settings.gain:
            result = result * rng.uniform(0.6, 1.4, 3).astype(np.float32)
    return np.clip(result, 0, 1).astype(np.float32, copy=False)


def _move(patch: Image, settings: AugmentSettings, rng: np.random.Generator) -> NDArray[Any]:
    if settings.flip and rng.random() < 0.5:
        patch = patch[:, ::-1]
    return np.rot90(patch, int(rng.integers(4))) if settings.rotate else patch


def _shrink(window: Image, size: int) -> Image:
    from PIL import Image as Pillow

    gray = window.shape[2] == 1
    small = Pillow.fromarray(window[:, :, 0] if gray else window).resize((size, size), Pillow.Resampling.BICUBIC)
    return np.asarray(small).reshape(size, size, window.shape[2])
