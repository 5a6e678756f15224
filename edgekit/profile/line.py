"""Fitting a sensor's noise, variance = shot * x + read^2, to noisy images alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.runtime.pixels import full_scale

_BLOCK = 16
_BINS = 24
# With fewer blocks of a brightness, a quantile is one block's accident.
_FEW_BLOCKS = 20
# Of the blocks of a brightness, the flattest third shows the noise rather than texture ...
_QUANTILE = 0.3
# ... and reads so much of the variance where there is no texture: the quantile of blocks that scatter.
_OF_PURE_NOISE = 0.892
# Relative misfit of a brightness's variance beyond which it counts less: texture, or a tone curve.
_TRUSTED = 0.1
_ROUNDS = 20


@dataclass(frozen=True)
class NoiseProfile:
    """The noise of one setting of a camera.

    Attributes:
        shot: variance per unit of signal, the signal in 0..1.
        read: standard deviation of what does not depend on the signal, in 8-bit units.
        brightness: mean of the bins that the line was fitted to, in 0..1.
        deviation: noise measured in them, in 8-bit units.
        level: root mean square of the noise over all pixels by the line, in 8-bit units.
    """

    shot: float
    read: float
    brightness: tuple[float, ...]
    deviation: tuple[float, ...]
    level: float

    def at(self, brightness: float) -> float:
        """The standard deviation, in 8-bit units, that the line gives for a brightness in 0..1."""
        return 255 * math.sqrt(self.shot * brightness + (self.read / 255) ** 2)


def fit(images: Iterable[NDArray[Any]]) -> NoiseProfile:
    """Fit the line to noisy images of any content; clean ones are not needed.

    Each image is cut into blocks of 16x16, each channel of its own. A block's variance is read from second differences
    along both axes, which do not see smooth shading. In each of 24 ranges of brightness the flattest third of the
    blocks counts; the line is fitted to those values by least squares, weighted by the number of blocks over the
    variance that the line gives, and values far from it (texture, a tone curve) count less. Blocks that touch black or
    white are left out: noise is cut off there.

    On images with white noise, shot and read come out within 10% where their share of the variance is not small. The
    noise of finished pictures is correlated between neighbours: there the line is too low.

    Args:
        images: uint8, uint16 or float in 0..1, [H, W] or [H, W, C] without alpha.
    Raises: DataError: less than two ranges of brightness have 20 blocks.
    Source: Foi et al. 2008, doi:10.1109/TIP.2008.2001399, for the model; mask of Immerkaer 1996,
        doi:10.1006/cviu.1996.0060.
    """
    found = [_blocks(image) for image in images]
    means = np.concatenate([m for m, _ in found]) if found else np.zeros(0)
    variances = np.concatenate([v for _, v in found]) if found else np.zeros(0)
    bins = np.minimum((means * _BINS).astype(int), _BINS - 1)
    x, y, counts = [], [], []
    for k in range(_BINS):
        inside = bins == k
        if inside.sum() >= _FEW_BLOCKS:
            x.append(float(means[inside].mean()))
            y.append(float(np.quantile(variances[inside], _QUANTILE)) / _OF_PURE_NOISE)
            counts.append(int(inside.sum()))
    if len(x) < 2:
        raise DataError(
            f"{len(means)} blocks of 16x16 in {len(x)} of {_BINS} ranges of brightness: a line needs at least 2 ranges "
            f"with {_FEW_BLOCKS} blocks each; give more or larger images, with dark and bright parts"
        )
    shot, offset = _line(np.array(x), np.array(y), np.array(counts, np.float64))
    return NoiseProfile(
        shot=shot,
        read=255 * math.sqrt(offset),
        brightness=tuple(x),
        deviation=tuple(255 * math.sqrt(v) for v in y),
        level=255 * math.sqrt(max(0.0, shot * float(means.mean()) + offset)),
    )


def _blocks(image: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and noise variance, in 0..1, of every block and channel that does not touch black or white."""
    planes = image[..., None] if image.ndim == 2 else image
    top = full_scale(planes.dtype)
    rows, columns = planes.shape[0] // _BLOCK, planes.shape[1] // _BLOCK
    means, variances = [np.zeros(0)], [np.zeros(0)]
    for row in range(rows):
        # A row of blocks at a time: memory holds a stripe of the image.
        stripe = planes[row * _BLOCK : (row + 1) * _BLOCK, : columns * _BLOCK]
        blocks = stripe.reshape(_BLOCK, columns, _BLOCK, -1).transpose(1, 3, 0, 2).reshape(-1, _BLOCK, _BLOCK)
        whole = blocks[((blocks > 0) & (blocks < top)).all((1, 2))].astype(np.float64) / top
        difference = np.diff(np.diff(whole, 2, axis=1), 2, axis=2)
        means.append(whole.mean((1, 2)))
        # The squares of the mask's weights add up to 36.
        rounding = 1 / (12 * top**2) if planes.dtype.kind == "u" else 0.0
        variances.append(np.maximum(np.square(difference).mean((1, 2)) / 36 - rounding, 0))
    return np.concatenate(means), np.concatenate(variances)


def _line(x: NDArray[np.float64], y: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and offset, neither below 0."""
    predicted = np.maximum(y, 1e-12)
    slope = offset = 0.0
    for _ in range(_ROUNDS):
        misfit = (y - predicted) / predicted
        weights = counts / np.square(predicted) / np.maximum(1, np.abs(misfit) / _TRUSTED)
        total, sx, sy = weights.sum(), (weights * x).sum(), (weights * y).sum()
        sxx, sxy = (weights * x * x).sum(), (weights * x * y).sum()
        slope = (total * sxy - sx * sy) / (total * sxx - sx * sx)
        offset = (sy - slope * sx) / total
        if offset < 0:
            slope, offset = sxy / sxx, 0.0
        if slope < 0:
            slope, offset = 0.0, sy / total
        predicted = np.maximum(slope * x + offset, 1e-12)
    return float(slope), float(offset)
