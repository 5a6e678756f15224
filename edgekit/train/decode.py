"""Image files to arrays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError

Image = NDArray[np.uint8]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


def decode(path: Path, channels: int) -> Image:
    """Read an image as a model sees it.

    Args:
        path: any format of `SUFFIXES`. Alpha is dropped; of 16 bits the upper 8 are kept.
        channels: 3 turns gray into equal channels; 1 turns colour into luma (ITU-R 601).
    Returns: uint8 [H, W, channels].
    Raises: DataError: not an image, cut short, or of a kind that Pillow does not read.
    """
    from PIL import Image as Pillow

    try:
        # Read first: a decoder that gives up leaves no file open behind.
        with Pillow.open(io.BytesIO(path.read_bytes())) as file:
            image: Pillow.Image = file
            if image.mode.startswith(("I", "F")):
                return _to_channels(_high_depth(np.asarray(image)), channels)
            if image.mode in ("LA", "PA", "P", "RGBA"):
                image = image.convert("RGBA").convert("RGB")
            return _to_channels(np.asarray(image.convert("L" if channels == 1 else "RGB")), channels)
    except Exception as error:  # Pillow's plugins raise whatever they like on damaged files
        raise DataError(f"cannot read {path}: {_reason(error)}") from error


def luma(image: Image) -> Image:
    """The gray version of an [H, W, 3] image, uint8 [H, W, 1], as `decode` makes it."""
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(image).convert("L"))[:, :, None]


def _to_channels(pixels: NDArray[Any], channels: int) -> Image:
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], channels, axis=2)
    return np.ascontiguousarray(pixels, np.uint8)


def _high_depth(pixels: NDArray[Any]) -> Image:
    if pixels.dtype.kind == "f":
        raise ValueError("floating-point pixels have no agreed white; save it as 8 or 16 bits")
    upper: Image = (np.clip(pixels, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
    return upper


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no image format is recognised in it"
    return str(error).split("\n", 1)[0] or type(error).__name__
