"""The level of noise that is correlated between neighbours, as a camera leaves it; read where it still shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.runtime.pixels import full_scale

# Pixels that are averaged along each side before the differences are taken.
SCALES = (3, 4, 6)
# Side of a block in averaged pixels.
_BLOCK = 8
# The blocks that the level is read from, and the flatter ones that must show it, too: noise is everywhere, texture not.
_QUANTILE, _FLATTEST = 0.2, 0.05
# With fewer blocks a quantile is one block's accident.
_FEW_BLOCKS = 20
# An averaged pixel with a larger share of samples at black or white is left out.
_CUT = 0.1
# Median of the absolute value of a normal variable.
MAD = 0.6745
# Orthonormal differences of the colours, in which noise is as strong as in the colours but texture is far weaker.
CHROMA = np.array([[1, 0, -1], [1, -2, 1]], np.float32) / np.sqrt(np.array([[2], [6]], np.float32))
# Of the height of the noise's spectrum, what a denoiser that learned white noise is best told: told all of it, it takes
# detail for noise. 0.55 to 0.7 are within 0.1 dB (dsunet-s, synthetic camera noise on 48 training photographs).
TOLD = 0.62
# Correlated is noise that is so many times stronger at coarse scales than between neighbours: camera noise is 5.7 times
# as strong there at least, white noise of 5 under texture up to 3.8 times (the same photographs, for white noise also
# others and with their colours enhanced).
_CLEARLY = 4.8
# In 8-bit units: what rounding leaves between neighbours, and below what coarse texture cannot be told from noise.
_ROUNDING, _LEAST = 0.5, 4.0


def correlated_level(image: NDArray[Any]) -> float:
    """The level that a denoiser of white noise is best told where noise is correlated; 0 where it is not found so.

    Each scale averages k x k pixels and multiplies by k: white noise keeps its deviation then, whatever k, and
    correlated noise gains. Second differences, the median of their absolute values over blocks and the lower fifth of
    the blocks are as in `estimate_sigma`. Only the differences between the colours are looked at: averaged texture,
    which is mostly luma, would pass for noise.

    Args:
        image: [H, W, 3], uint8, uint16 or float in 0..1.
    Returns: in 8-bit units, 0.62 of the greatest level of all scales, which is the height of the noise's spectrum where
        it is highest, as the deviation of white noise of that height; 0 where coarse scales read no more than white
        noise or weak texture would, or the image has too few blocks that show noise.
    """
    coarse = [_levels(image, scale) for scale in SCALES]
    shown = [levels for levels in coarse if levels.size >= _FEW_BLOCKS]
    if not shown:
        return 0.0
    everywhere = max(float(np.quantile(levels, _FLATTEST)) for levels in shown)
    if everywhere < _LEAST:
        return 0.0
    fine = _levels(image, 1)
    between = float(np.quantile(fine, _QUANTILE)) if fine.size else 0.0
    if everywhere < _CLEARLY * max(between, _ROUNDING):
        return 0.0
    return TOLD * max(float(np.quantile(levels, _QUANTILE)) for levels in shown)


def _levels(image: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """The noise level of each block and chroma plane at a scale, in 8-bit units."""
    side = _BLOCK * scale
    rows, columns = ((size // scale - 2) // _BLOCK for size in image.shape[:2])
    if rows < 1 or columns < 1:
        return np.zeros(0, np.float32)
    # A row of blocks at a time: memory holds a stripe of the image.
    stripes = (image[row * side : (row + 1) * side + 2 * scale, : columns * side + 2 * scale] for row in range(rows))
    return np.concatenate([_stripe_levels(stripe, scale) for stripe in stripes])


def _stripe_levels(stripe: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """Levels of the blocks of a stripe, both chroma planes; those that mostly touch black or white are left out."""
    top = full_scale(stripe.dtype)
    height, width = stripe.shape[0] // scale, stripe.shape[1] // scale
    cells = stripe.reshape(height, scale, width, scale, 3).astype(np.float32)
    cut = ((cells <= 0) | (cells >= top)).mean((1, 3, 4)) > _CUT
    chroma = cells.mean((1, 3)) @ CHROMA.T
    difference = np.abs(np.diff(np.diff(chroma, 2, axis=0), 2, axis=1)) * (scale * 255 / top / 6)
    touched: NDArray[np.bool_] = np.lib.stride_tricks.sliding_window_view(cut, (3, 3)).max(axis=(2, 3))
    # Where nothing is seen, infinite: after sorting that stands behind what counts.
    seen = np.where(touched[..., None], np.float32(np.inf), difference)
    blocks = seen.reshape(_BLOCK, -1, _BLOCK, 2).transpose(1, 3, 0, 2).reshape(-1, _BLOCK**2)
    counts = np.isfinite(blocks).sum(1)
    ordered = np.sort(blocks, axis=1)[counts > _BLOCK**2 // 2]
    middle = (counts[counts > _BLOCK**2 // 2] // 2)[:, None]
    found: NDArray[np.float32] = np.take_along_axis(ordered, middle, 1)[:, 0].astype(np.float32)
    return found / np.float32(MAD)
