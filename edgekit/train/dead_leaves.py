"""Dead leaves: random images with the statistics of photographs, for training without any.

Opaque discs fall on each other, their radii drawn from a power law, as objects at all distances occlude each other in
a photograph. Lee, Mumford and Huang 2001 (doi:10.1023/A:1011109015675) showed that this gives the edge and scale
statistics of natural images; Achddou, Gousseau and Ladjal 2021 (doi:10.1007/978-3-030-75549-2_37) that denoisers train
on it, with colours taken from a photograph. Textured leaves come from their later work (arXiv:2309.07102).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.train.decode import Image

# Leaves are drawn at twice the resolution and averaged 2x2: edges are anti-aliased, radii come in half pixels.
_OVERSAMPLE = 2
# Leaves fall until their areas add up to this many images: a share exp(-7) = 0.1% of the pixels is then still bare.
_LAYERS = 7.0


def dead_leaves(
    size: int,
    rng: np.random.Generator,
    *,
    colors: Image | None = None,
    channels: int = 3,
    exponent: float = 3.0,
    smallest: float = 1.0,
    largest: float = 0.5,
) -> Image:
    """Draw one image.

    Args:
        size: height and width in pixels.
        rng: the generator; the same state gives the same image.
        colors: an image [H, W, channels] whose pixels' colours the leaves take; None draws colours at random, most of
            them pale.
        channels: 1 or 3.
        exponent: of the power law of radii, r**-exponent; 3 makes the image's statistics the same at every scale.
        smallest: the smallest radius, in pixels, in steps of a half.
        largest: the largest radius as a share of `size`.
    Returns: uint8 [size, size, channels].
    """
    side = size * _OVERSAMPLE
    least = max(1, round(smallest * _OVERSAMPLE))
    radii = _radii(rng, side, exponent, least, max(least + 1, round(largest * side)))
    centers = rng.integers(0, side, (len(radii), 2))
    owner = _fall(radii, centers, side)
    values = _palette(rng, len(radii) + 1, colors, channels)[owner]
    values += _texture(rng, owner, len(radii) + 1, side)[:, :, None]
    fine = values.reshape(size, _OVERSAMPLE, size, _OVERSAMPLE, channels).mean((1, 3))
    image: Image = np.clip(np.rint(fine * 255), 0, 255).astype(np.uint8)
    return image


def _radii(rng: np.random.Generator, side: int, exponent: float, least: int, largest: int) -> NDArray[np.int64]:
    """Radii of the leaves, the first to fall first: enough that their areas make `_LAYERS` images."""
    sizes = np.arange(least, largest + 1)
    law = sizes**-exponent
    law /= law.sum()
    mean_area = float((law * np.pi * sizes**2).sum())
    drawn: NDArray[np.int64] = rng.choice(sizes, int(_LAYERS * side**2 / mean_area) + 1, p=law)
    return drawn


def _fall(radii: NDArray[np.int64], centers: NDArray[np.int64], side: int) -> NDArray[np.int32]:
    """Which leaf shows at each pixel, 1 for the first that fell; 0 where none did. The image wraps around."""
    # Every leaf as its rows, every row as its pixels; assigning through an index that repeats keeps the last value, so
    # that later leaves cover earlier ones.
    leaf, height = _spread(2 * radii + 1)
    radius = radii[leaf]
    dy = height - radius
    half = np.sqrt(radius**2 - dy**2).astype(np.int32)
    row_start = (centers[leaf, 0] + dy) % side * side
    left = (centers[leaf, 1] - half) % side
    row, across = _spread(2 * half + 1)
    column = left[row] + across
    column -= side * (column >= side)
    owner = np.zeros(side * side, np.int32)
    owner[row_start[row] + column] = leaf[row] + 1
    return owner.reshape(side, side)


def _spread(counts: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Repeat each index by its count: ([0, 0, 1, 1, 1], [0, 1, 0, 1, 2]) for counts [2, 3]."""
    index = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    return index, np.arange(len(index), dtype=np.int32) - starts[index]


def _palette(rng: np.random.Generator, count: int, colors: Image | None, channels: int) -> NDArray[np.float32]:
    """A colour for each leaf, float32 [count, channels] in 0..1."""
    if colors is not None:
        flat = colors.reshape(-1, colors.shape[2])
        return flat[rng.integers(len(flat), size=count)].astype(np.float32) / np.float32(255)
    # Photographs are mostly pale: one luma for all channels, and a chroma that is small for most leaves.
    base = rng.beta(1.2, 1.2, (count, 1))
    chroma = rng.standard_normal((count, channels)) * rng.exponential(0.08, (count, 1))
    return np.clip(base + (chroma if channels == 3 else 0), 0, 1).astype(np.float32)


def _texture(rng: np.random.Generator, owner: NDArray[np.int32], count: int, side: int) -> NDArray[np.float32]:
    """A modulation of luma inside each leaf: for half of them none, else 1/f noise, grain or stripes."""
    kind = rng.integers(0, 6, count, np.int8)[owner]
    strength = rng.exponential(0.06, count).astype(np.float32)[owner]
    result = np.zeros((side, side), np.float32)
    for number, slope in ((3, 1.0), (4, 0.3)):
        np.copyto(result, _noise_field(rng, side, slope), where=kind == number)
    angle, period = rng.uniform(0, np.pi, count), rng.uniform(6, 40, count)
    wave = (np.stack((np.sin(angle), np.cos(angle))) * (2 * np.pi / period)).astype(np.float32)
    rows, columns = np.nonzero(kind == 5)
    which = owner[rows, columns]
    result[rows, columns] = np.sin(
        wave[0, which] * rows.astype(np.float32) + wave[1, which] * columns.astype(np.float32)
    )
    result *= strength
    return result


def _noise_field(rng: np.random.Generator, side: int, slope: float) -> NDArray[np.float32]:
    """Gaussian noise of unit variance whose amplitude falls as 1 / frequency**slope."""
    spectrum = np.fft.rfft2(rng.standard_normal((side, side), np.float32))
    square = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side)[None] ** 2
    square[0, 0] = np.inf
    field = np.fft.irfft2(spectrum * (square ** (-slope / 2)).astype(np.float32), (side, side))
    result: NDArray[np.float32] = (field / field.std()).astype(np.float32)
    return result
