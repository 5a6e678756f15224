"""Losses by name, each a mean per image so that images can be weighted; training and compression share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from edgekit.errors import UnknownNameError

# (output, target), both [N, C, H, W] -> the loss of each image, [N].
Loss = Callable[[Tensor, Tensor], Tensor]

# Charbonnier's epsilon (Lai et al. 2017, arXiv:1704.03915): where the loss turns from quadratic to linear. RMSE has
# it, too: the slope of a root has no end at 0.
_EPSILON = 1e-3


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of each image, [N]."""
    return (output - target).abs().flatten(1).mean(1)


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image, [N]."""
    return (output - target).square().flatten(1).mean(1)


def rmse(output: Tensor, target: Tensor) -> Tensor:
    """Root mean squared error of each image, [N]: learns the mean, as MSE does, which is what PSNR is of.

    Its gradient is as long for an image with little error as for one with much, as L1's is. MSE's grows with the error
    that is left: after denoising some four times as long at sigma 50 as at 5.
    """
    return (mse(output, target) + _EPSILON**2).sqrt()


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """Charbonnier error of each image, sqrt(d^2 + eps^2), [N]."""
    return ((output - target).square() + _EPSILON**2).sqrt().flatten(1).mean(1)


def frequency(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the images' Fourier coefficients, [N]: every frequency has the same say.

    L1 leaves weak detail blurred because its energy is small; here it counts as much as what is strong. The transform
    is orthonormal, so that the loss is of the size of L1's: on white noise pi / sqrt(8) = 1.11 times as large.

    Source: Cho et al. 2021, arXiv:2108.05054 (the frequency term of MIMO-UNet), on one scale.
    """
    spectrum = torch.fft.rfft2(output.float() - target.float(), norm="ortho")
    return torch.mean(spectrum.abs().flatten(1), 1)


# Those with weights of their own, see `feature_loss`.
LEARNED = ("feature", "lpips")
LOSSES: dict[str, Loss] = {"l1": l1, "mse": mse, "rmse": rmse, "charbonnier": charbonnier, "frequency": frequency}


def weighted(
    mix: Mapping[str, float],
    output: Tensor,
    target: Tensor,
    sigma: Tensor | None = None,
    *,
    learned: Mapping[str, Loss] = MappingProxyType({}),
) -> Tensor:
    """The weighted sum of named losses, averaged over the batch.

    Args:
        mix: weight of each loss by name, e.g. {"l1": 1.0, "mse": 0.5}.
        output, target: [N, C, H, W].
        sigma: [N] in 0..1; when given, each image's loss is divided by (255 sigma + 5) / 30, so that the error left at
            low noise, which is smaller, counts as much as the error left at high noise.
        learned: further losses by name: those that have weights of their own.
    Raises: UnknownNameError.
    """
    known = {**LOSSES, **learned}
    total = output.new_zeros(output.shape[0])
    for name, weight in mix.items():
        if name not in known:
            raise UnknownNameError.unknown("loss", name, {*known, *LEARNED})
        total = total + weight * known[name](output, target)
    if sigma is not None:
        total = total / ((255 * sigma + 5) / 30)
    return torch.mean(total)
