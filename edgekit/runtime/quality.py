"""How close two images are: PSNR and SSIM, in numpy, for host and device alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ShapeError
from edgekit.runtime.pixels import full_scale

# The window of Wang et al. 2004: Gaussian of deviation 1.5, 11 wide.
_RADIUS, _DEVIATION = 5, 1.5
_K1, _K2 = 0.01, 0.03
_STRIP = 256


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio.

    Args:
        a, b: images of one shape and one kind: both uint8, both uint16, or both float in 0..1.
    Returns: dB over all pixels and channels; infinity for identical images, NaN if either holds a NaN.
    Raises: ShapeError: different shapes or kinds, no pixels, or not an image's dtype.
    """
    peak = _peak(a, b)
    error = float(np.mean(np.square(a.astype(np.float64) - b)))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error) if not math.isnan(error) else math.nan


def ssim(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Structural similarity, the mean over positions and channels.

    Args:
        a, b: images of one shape and kind as in `psnr`, [H, W] or [H, W, C], at least 11x11.
    Returns: at most 1.0, which means identical. Positions whose window leaves the image are not counted.
    Raises: ShapeError: as in `psnr`, another rank, or smaller than 11x11.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, with its 11x11 Gaussian window.
    """
    peak = _peak(a, b)
    side = 2 * _RADIUS + 1
    if a.ndim not in (2, 3) or min(a.shape[:2]) < side:
        raise ShapeError(f"image has shape {list(a.shape)}: SSIM expects [H, W] or [H, W, C] of at least {side}x{side}")
    # Strips of rows: the maps of a large photograph would take a hundred bytes a sample.
    total, count = 0.0, 0
    for top in range(0, a.shape[0] - side + 1, _STRIP):
        found = _similar(*(image[top : top + _STRIP + side - 1].astype(np.float64) / peak for image in (a, b)))
        total, count = total + float(found.sum()), count + found.size
    return total / count


def _similar(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The map of SSIM, where the window fits."""
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return np.asarray(above / below)


def _peak(a: NDArray[Any], b: NDArray[Any]) -> float:
    if a.shape != b.shape:
        raise ShapeError(f"images have the shapes {list(a.shape)} and {list(b.shape)}: expected the same")
    if not a.size:
        raise ShapeError(f"images have the shape {list(a.shape)}: expected at least one pixel")
    peak, other = full_scale(a.dtype), full_scale(b.dtype)
    if peak != other:
        raise ShapeError(f"images are {a.dtype} and {b.dtype}: expected both uint8, both uint16 or both float")
    return peak


def _blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian mean over the window, where it fits into the image."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / _DEVIATION) ** 2)
    weights /= weights.sum()
    height, width = image.shape[0] - 2 * _RADIUS, image.shape[1] - 2 * _RADIUS
    rows = sum((w * image[i : i + height] for i, w in enumerate(weights)), np.zeros(()))
    return np.asarray(sum((w * rows[:, i : i + width] for i, w in enumerate(weights)), np.zeros(())))
