"""Noise models: from clean images to what a sensor or a codec makes of them, seeded."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.errors import UnknownNameError
from edgekit.recipe import NoiseSettings
from edgekit.train import camera, told

# (clean [N, C, H, W] in 0..1, settings, generator) -> (noisy, not clipped; the noise level [N] in 0..1).
NoiseModel = Callable[[Tensor, NoiseSettings, torch.Generator], tuple[Tensor, Tensor]]


def draw(clean: Tensor, settings: NoiseSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add noise of the model that the settings name, each image at a strength of its own.

    Args:
        clean: float32 [N, C, H, W], range 0..1.
        settings: which noise, and how strong; a share `device_share` of the images is clipped to 0..1 and rounded to 8
            bits, the others keep the noise as drawn (values may leave 0..1).
        generator: a CPU generator; the same state gives the same noise.
    Returns: (noisy [N, C, H, W], sigma [N] in 0..1). For Gaussian noise sigma is the standard deviation that was drawn;
        for every other model it is the root mean square of noisy - clean over the image, before clipping: one number
        that says how far from clean the image is, whatever the noise; or, where the settings say `level: auto`, what
        `sigma="auto"` might estimate (`told.as_estimated`).
    Raises: UnknownNameError: no such noise model.
    """
    noisy, sigma = get(settings.model)(clean, settings, generator)
    as_device = torch.rand(clean.shape[0], generator=generator) < settings.device_share
    return torch.where(as_device[:, None, None, None], quantize_8bit(noisy), noisy), sigma


def get(name: str) -> NoiseModel:
    """A noise model by name. Raises: UnknownNameError."""
    if name not in MODELS:
        raise UnknownNameError.unknown("noise model", name, MODELS)
    return MODELS[name]


def as_published(shape: tuple[int, ...], sigma: float, seed: int = 0) -> NDArray[np.float64]:
    """Gaussian noise as the KAIR test scripts draw it, every image from the same seed; in sigma's units.

    Published tables come out to 0.01 dB; noise of another seed is up to 0.02 dB off, on all models alike.
    """
    return np.random.RandomState(seed).normal(0, sigma, shape)


def quantize_8bit(image: Tensor) -> Tensor:
    """Clip to 0..1 and round to the 256 levels of an 8-bit image, as a device hands it over."""
    return (image.clamp(0, 1) * 255).round() / 255


def gaussian(clean: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """White Gaussian noise, the field's benchmark: y = x + sigma n.

    Args:
        clean: [N, C, H, W] in 0..1.
        sigma: [N], standard deviation on the same scale (25/255).
    Returns: noisy images, not clipped.
    """
    return clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=generator)


def poisson_gaussian(clean: Tensor, shot: Tensor, read: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of a raw sensor: photons arrive by Poisson's law, and reading them adds Gaussian noise.

    y = shot * Poisson(x / shot) + read n, so that the variance is shot * x + read^2.

    Args:
        clean: [N, C, H, W] in 0..1.
        shot: [N], variance per unit of signal, above 0: one over the number of electrons that make white. The default
            range 1e-4..1.2e-2, drawn log-uniformly, is that of Brooks et al. 2019.
        read: [N], standard deviation of the read noise on the scale of the image.
    Returns: noisy images, not clipped.
    Source: Foi et al. 2008, doi:10.1109/TIP.2008.2001399; Brooks et al. 2019, arXiv:1811.11127.
    """
    gain = shot[:, None, None, None]
    photons = torch.poisson(clean / gain, generator=generator)
    return photons * gain + read[:, None, None, None] * torch.randn(clean.shape, generator=generator)


def salt_and_pepper(clean: Tensor, density: Tensor, generator: torch.Generator) -> Tensor:
    """Impulses, as dead and hot photosites or lost bits leave them: a sample becomes black or white.

    A share density / 2 of the samples (one channel of one pixel) becomes 0, as many become 1.

    Args:
        clean: [N, C, H, W] in 0..1.
        density: [N], share of the samples that are replaced, 0..1.
    Source: Gonzalez and Woods, Digital Image Processing, 5.2.
    """
    share = density[:, None, None, None]
    chance = torch.rand(clean.shape, generator=generator)
    return torch.where(chance < share / 2, 0.0, torch.where(chance < share, 1.0, clean))


def jpeg(clean: Tensor, quality: Tensor) -> Tensor:
    """What libjpeg leaves of an image: clipped, rounded, chroma at half resolution (4:2:0), decoded again.

    Args:
        clean: [N, C, H, W] in 0..1, C is 1 or 3.
        quality: [N], integers 1..100, libjpeg's own scale.
    Source: ITU-T T.81.
    """
    from PIL import Image

    pixels = (clean.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    decoded = []
    for image, q in zip(pixels, quality.tolist(), strict=True):
        file = io.BytesIO()
        Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(file, "JPEG", quality=q, subsampling=2)
        decoded.append(np.asarray(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255


def _uniform(count: int, low: float, high: float, settings: NoiseSettings, generator: torch.Generator) -> Tensor:
    """One number an image, uniform over a range.

    Stratified, each image of a batch draws from a part of the range of its own, in random order: no batch is all low
    noise or all high. In QAT of dsunet-s it was worth a tenth of the loss (docs/int8-experiments.md).
    """
    if not settings.stratified:
        return low + (high - low) * torch.rand(count, generator=generator)
    parts = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return low + (high - low) * parts / count


def _draw_gaussian(clean: Tensor, settings: NoiseSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    low, high = (s / 255 for s in settings.sigma)
    sigma = _uniform(clean.shape[0], low, high, settings, generator)
    return gaussian(clean, sigma, generator), sigma


def _draw_sensor(clean: Tensor, settings: NoiseSettings, generator: torch.Generator) -> Tensor:
    low, high = np.log(settings.shot)
    shot = _uniform(clean.shape[0], float(low), float(high), settings, generator).exp()
    read = _uniform(clean.shape[0], settings.read[0] / 255, settings.read[1] / 255, settings, generator)
    return poisson_gaussian(clean, shot, read, generator)


def _draw_impulses(clean: Tensor, settings: NoiseSettings, generator: torch.Generator) -> Tensor:
    return salt_and_pepper(clean, _uniform(clean.shape[0], *settings.density, settings, generator), generator)


def _draw_jpeg(clean: Tensor, settings: NoiseSettings, generator: torch.Generator) -> Tensor:
    low, high = settings.quality
    return jpeg(clean, torch.randint(low, high + 1, (clean.shape[0],), generator=generator))


def _draw_mixed(clean: Tensor, settings: NoiseSettings, generator: torch.Generator) -> Tensor:
    """A camera's chain in its order: sensor noise always, then impulses, then JPEG, each in half of the images.

    Source: the degradation of SCUNet, Zhang et al. 2023, arXiv:2203.13278, without its resizing.
    """
    noisy = _draw_sensor(clean, settings, generator)
    for step in (_draw_impulses, _draw_jpeg):
        happens = torch.rand(clean.shape[0], generator=generator) < 0.5
        noisy = torch.where(happens[:, None, None, None], step(noisy, settings, generator), noisy)
    return noisy


def _draw_camera(clean: Tensor, settings: NoiseSettings, generator: torch.Generator) -> Tensor:
    return camera.draw(clean, settings, generator, jpeg)


def _with_level(add: Callable[[Tensor, NoiseSettings, torch.Generator], Tensor]) -> NoiseModel:
    def model(clean: Tensor, settings: NoiseSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noisy = add(clean, settings, generator)
        if settings.level == "auto":
            return noisy, told.as_estimated(clean, noisy, generator)
        return noisy, told.rms(clean, noisy)

    return model


MODELS: dict[str, NoiseModel] = {
    "gaussian": _draw_gaussian,
    "poisson-gaussian": _with_level(_draw_sensor),
    "salt-and-pepper": _with_level(_draw_impulses),
    "jpeg": _with_level(_draw_jpeg),
    "mixed": _with_level(_draw_mixed),
    "camera": _with_level(_draw_camera),
}
