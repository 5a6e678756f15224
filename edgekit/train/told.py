"""The noise level that a model is told, measured on noise that is known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekit.errors import ShapeError
from edgekit.runtime.correlated import CHROMA, MAD, SCALES, TOLD

# Three averages along each side.
LEAST_SIDE = 3 * max(SCALES)
# In 0..1: what rounding to 8 bits leaves.
_LEAST = 0.3 / 255


def rms(clean: Tensor, noisy: Tensor) -> Tensor:
    """The root mean square of noisy - clean, per image [N]."""
    return (noisy - clean).square().flatten(1).mean(1).sqrt()


def as_estimated(clean: Tensor, noisy: Tensor, generator: torch.Generator) -> Tensor:
    """A level that `sigma="auto"` might give: an estimate of correlated noise may err by a factor, always downwards.

    What neighbouring pixels differ by is the level that an estimate for white noise sees, and too little for noise
    that is smooth; `TOLD` of the height of the noise's spectrum is what `correlated_level` answers where the
    noise shows between the colours. The level is drawn between the two, uniform in its logarithm: a model that is told
    such levels looks at the noise itself, too. For white noise the two are the same.

    Args:
        clean, noisy: [N, C, H, W] in 0..1, at least 18x18. Of gray images the estimate never sees more than neighbours
            differ by, so that this is what is told.
        generator: a CPU generator.
    Returns: [N] in 0..1.
    Raises: ShapeError: smaller images, which have no second differences on the coarsest scale.
    """
    if min(clean.shape[2:]) < LEAST_SIDE:
        raise ShapeError(
            f"images of {clean.shape[2]}x{clean.shape[3]}: noise.level auto is read at averages of {max(SCALES)} "
            f"pixels and needs at least {LEAST_SIDE}x{LEAST_SIDE}; use a larger patch, or noise.level rms"
        )
    noise = noisy - clean
    low = _differences(noise).clamp(min=_LEAST)
    if noise.shape[1] != 3:
        return low
    planes = torch.einsum("pc,nchw->nphw", torch.from_numpy(CHROMA), noise)
    height = torch.stack([_differences(F.avg_pool2d(planes, k) * k) for k in SCALES]).amax(0)
    high = torch.maximum(low, TOLD * height)
    return low * (high / low) ** torch.rand(len(low), generator=generator)


def _differences(planes: Tensor) -> Tensor:
    """The deviation of white noise whose second differences along both axes are as strong, per image [N].

    By the median: where JPEG took texture away the difference is large, and an estimate does not see it.
    """
    found = planes.diff(n=2, dim=2).diff(n=2, dim=3).abs() / 6
    return found.flatten(1).median(1).values / MAD
