"""The image sets that are judged on, and their noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, UnknownNameError
from edgekit.runtime import images
from edgekit.train.noise import as_published

ROOT = Path(__file__).resolve().parent.parent
# The sets may not be copied into the repository: they lie beside it.
SHARED = ROOT.parent / "shared"

# Name of the folder -> channels.
SETS = {"CBSD68": 3, "McMaster": 3, "Set12": 1}
SIGMAS = (5, 15, 25, 50)

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageSet:
    """A set of clean images, uint8 [H, W, C] each, in the order of their names."""

    name: str
    images: tuple[Image, ...]

    @property
    def megapixels(self) -> float:
        """Pixels of all images, in millions."""
        pixels: int = sum(image.shape[0] * image.shape[1] for image in self.images)
        return pixels / 1e6


def read(folder: Path, name: str, limit: int | None = None) -> ImageSet:
    """Read a set.

    Args:
        folder: holds a folder for each set.
        name: one of `SETS`.
        limit: read only so many images, the first by name.
    Raises: UnknownNameError; DataError: the folder is not there, holds no image, or images of other channels.
    """
    if name not in SETS:
        raise UnknownNameError.unknown("image set", name, SETS)
    if not (folder / name).is_dir():
        raise DataError(
            f"no image set at {folder / name}: the sets may not be copied into the repository; put them at "
            "../shared/data/test beside it, or name their folder with --data"
        )
    found = []
    for path in images.list_images(folder / name)[:limit]:
        pixels: NDArray[Any] = images.load(path).pixels
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.dtype != np.uint8 or pixels.shape[2] != SETS[name]:
            raise DataError(f"{path} is {pixels.dtype} {list(pixels.shape)}: expected 8 bits, {SETS[name]} channels")
        found.append(pixels)
    return ImageSet(name, tuple(found))


def noisy(clean: Image, sigma: float, k: int, seed: int = 0) -> NDArray[np.float64]:
    """Add seeded Gaussian noise, neither clipped nor rounded.

    Args:
        clean: uint8 [H, W, C].
        sigma: standard deviation in 8-bit units.
        k: the image's place in its set; with sigma and seed it decides the noise.
    Returns: float64 [H, W, C] in 8-bit units.
    """
    rng = np.random.default_rng([seed, round(1000 * sigma), k])
    return clean + sigma * rng.standard_normal(clean.shape)


def noisy_as_published(clean: Image, sigma: float) -> NDArray[np.float64]:
    """Add Gaussian noise as published tables have it; units as for `noisy`."""
    return clean + as_published(clean.shape, sigma)


def to_bytes(image: NDArray[np.floating[Any]]) -> Image:
    """Clip and round an image in 8-bit units to 8 bits: what a device hands over, and what a result is stored as."""
    rounded: Image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return rounded
