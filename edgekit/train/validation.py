"""How well a model denoises whole images: PSNR and SSIM from torchmetrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekit.models.base import DenoiserModel
from edgekit.recipe import NoiseSettings
from edgekit.train import noise, told
from edgekit.train.decode import Image
from edgekit.train.images import Picture

# The noise levels, in 8-bit units, that the field reports.
SIGMAS = (5, 15, 25, 50)
# A range that goes so many times beyond the last of them is judged at its end, too.
_BEYOND = 1.2


class Quality(NamedTuple):
    """Means over images: PSNR in dB, and SSIM (Wang et al. 2004, doi:10.1109/TIP.2003.819861) in 0..1."""

    psnr: float
    ssim: float


def evaluate(
    model: DenoiserModel,
    pictures: Sequence[Picture],
    sigma: float | None = None,
    *,
    noise_settings: NoiseSettings | None = None,
    device_input: bool = True,
    seed: int = 0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Quality:
    """Add seeded noise to whole images, denoise them, and compare with the clean ones; the output is rounded to 8 bits.

    Args:
        model: runs on the device it is on; a size that its stride does not divide is padded by its last row or column.
        pictures: images of the model's channels. Pairs are denoised as they come, at their own noise level.
        sigma: standard deviation of Gaussian noise in 8-bit units; None draws `noise_settings`.
        noise_settings: which noise to draw where `sigma` is None.
        device_input: clip the noisy image and round it to 8 bits, as a device sees it. False is what published tables
            are made with.
        seed: of the noise.
        autocast: context that the model alone runs in, e.g. one of lower precision.
    Returns: the means over the images.
    """
    was_training = model.training
    model.eval()
    try:
        scores = [
            _score(model, *sample, autocast) for sample in _samples(pictures, sigma, noise_settings, device_input, seed)
        ]
    finally:
        model.train(was_training)
    return Quality(*(sum(values) / len(values) for values in zip(*scores, strict=True)))


def sample(
    picture: Picture, sigma: float | None = None, noise_settings: NoiseSettings | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What `evaluate` shows a model of a picture, as a device sees it: clean and noisy [1, C, H, W], sigma [1]."""
    (found,) = _samples([picture], sigma, noise_settings, True, 0)
    return found


def validation_levels(settings: NoiseSettings) -> tuple[float, ...]:
    """The standard sigmas that lie in the range a model is trained for, and its upper end where that is well beyond
    them, or none does."""
    low, high = settings.sigma
    beyond = (high,) if high > _BEYOND * max(SIGMAS) else ()
    return (*(s for s in SIGMAS if low <= s <= high), *beyond) or (high,)


def to_tensor(pixels: Image) -> Tensor:
    """uint8 [H, W, C] to float32 [1, C, H, W] in 0..1."""
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def denoise(
    model: DenoiserModel,
    noisy: Tensor,
    sigma: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Denoise one image [1, C, H, W] of any size; returns it clipped and rounded to 8 bits, on the CPU."""
    device = next(model.parameters()).device
    height, width = noisy.shape[2:]
    padded = F.pad(noisy, (0, -width % model.stride, 0, -height % model.stride), mode="replicate")
    padded = padded.to(device).contiguous(memory_format=torch.channels_last)
    with autocast():
        output = model(padded, sigma.to(device)).float().cpu()
    return noise.quantize_8bit(output[:, :, :height, :width])


def _samples(
    pictures: Sequence[Picture], sigma: float | None, settings: NoiseSettings | None, device_input: bool, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for index, picture in enumerate(pictures):
        pixels, given = picture.pixels()
        clean = to_tensor(pixels)
        if given is not None:
            noisy = to_tensor(given)
            yield clean, noisy, told.rms(clean, noisy)
        elif sigma is not None:
            drawn = noise.as_published(pixels.shape, sigma / 255, seed)
            noisy = clean + torch.from_numpy(drawn).permute(2, 0, 1)[None].float()
            yield clean, noise.quantize_8bit(noisy) if device_input else noisy, torch.tensor([sigma / 255])
        else:
            generator = torch.Generator().manual_seed(1_000_003 * seed + index)
            share = {"device_share": 1.0 if device_input else 0.0}
            yield clean, *noise.draw(clean, (settings or NoiseSettings()).model_copy(update=share), generator)


def _score(
    model: DenoiserModel,
    clean: Tensor,
    noisy: Tensor,
    sigma: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> tuple[float, float]:
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    output = denoise(model, noisy, sigma, autocast)
    psnr = peak_signal_noise_ratio(output, clean, data_range=1.0)
    ssim = structural_similarity_index_measure(output, clean, data_range=1.0)
    return float(psnr), float(ssim)  # type: ignore[arg-type]
