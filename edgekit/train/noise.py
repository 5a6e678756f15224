"""Noise models: from clean images to what a sensor or a codec makes of them, seeded."""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.recipe import NoiseSettings


def quantize_8bit(image: Tensor) -> Tensor:
    """Clip to 0..1 and round to the 256 levels of an 8-bit image, as a device hands it over."""
    return (image.clamp(0, 1) * 255).round() / 255


def gaussian(clean: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Add white Gaussian noise: clean [N, C, H, W] in 0..1, sigma [N] on the same scale; not clipped."""
    return clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=generator)


def draw(clean: Tensor, settings: NoiseSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a noise level for each image, uniform in `settings.sigma`, and add the noise.

    Returns: (noisy [N, C, H, W], sigma [N] in 0..1).
    """
    low, high = (s / 255 for s in settings.sigma)
    sigma = low + (high - low) * torch.rand(clean.shape[0], generator=generator)
    noisy = gaussian(clean, sigma, generator)
    as_device = torch.rand(clean.shape[0], generator=generator) < settings.device_share
    return torch.where(as_device[:, None, None, None], quantize_8bit(noisy), noisy), sigma
