"""A camera's noise: drawn on the raw sensor, then carried through the camera's own processing into the picture."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgekit.recipe import NoiseSettings

# (clean [n, C, H, W], libjpeg's quality [n]) -> what JPEG leaves of it.
Codec = Callable[[Tensor, Tensor], Tensor]

# Brooks et al. 2019: four cameras' matrices from XYZ to their raw colours; a camera is a random mean of them.
_XYZ_TO_CAMERA = torch.tensor(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
# Linear sRGB to XYZ, D65 (IEC 61966-2-1).
_SRGB_TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# Gains of the white balance, and one over the gain of exposure: mean and standard deviation.
_RED, _BLUE, _EXPOSURE = (1.9, 2.4), (1.5, 1.9), (0.8, 0.1)
# log of the read noise's variance = slope * log(shot) + intercept, with normal scatter.
_READ_LINE = (2.18, 1.20, 0.26)
# Above this mean of the channels a highlight is kept rather than divided by the gains.
_HIGHLIGHT = 0.9
_GAMMA = 2.2
_LUMA = torch.tensor([0.299, 0.587, 0.114])


def draw(clean: Tensor, settings: NoiseSettings, generator: torch.Generator, jpeg: Codec) -> Tensor:
    """Add the noise of a random camera to each image.

    Args:
        clean: [N, C, H, W] in 0..1, at least 4x4; gray images are given the luma of a colour camera's noise.
        settings: `shot`, `grain`, `chroma_grain`, `jpeg_share` and `quality` count.
        generator: a CPU generator.
        jpeg: what writes and reads a JPEG.
    Returns: noisy images in 0..1.
    """
    count = clean.shape[0]
    low, high = torch.tensor(settings.shot).log().tolist()
    shot = torch.empty(count).uniform_(low, high, generator=generator).exp()
    slope, intercept, scatter = _READ_LINE
    read = (slope * shot.log() + intercept + scatter * torch.randn(count, generator=generator)).exp().sqrt()
    grain = torch.empty(count).uniform_(*settings.grain, generator=generator)
    noisy = expose(clean, shot, read, grain, generator)
    if settings.chroma_grain[1] > 0 and clean.shape[1] == 3:
        chroma_grain = torch.empty(count).uniform_(*settings.chroma_grain, generator=generator)
        noisy = smooth_colour(clean, noisy, chroma_grain)
    stored = torch.rand(count, generator=generator) < settings.jpeg_share
    worst, best = settings.quality
    quality = torch.randint(worst, best + 1, (count,), generator=generator)
    if stored.any():
        noisy[stored] = jpeg(noisy[stored], quality[stored])
    return noisy


def expose(clean: Tensor, shot: Tensor, read: Tensor, grain: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise where a sensor does, each image in a random camera.

    The image is taken back to raw: tone curve, gamma, colour matrix and white balance are undone. There each photosite
    of a Bayer mosaic gets normal noise of variance shot * x + read^2. The noise is demosaicked bilinearly, filtered,
    and goes through white balance, colour matrix, gamma and tone curve with the image: neighbours and channels are
    correlated, and dark pixels are noisier than bright ones. Only the noise is demosaicked: the image keeps its detail,
    as it does in a better demosaicker, so that without noise it comes back as it was.

    Args:
        clean: [N, C, H, W] in 0..1, C is 1 or 3, at least 4x4.
        shot: [N], variance per unit of raw signal (raw in 0..1).
        read: [N], standard deviation of the read noise on the scale of raw.
        grain: [N], standard deviation in pixels of the filter that the noise goes through after demosaicking, as
            a camera's own noise reduction and resampling leave it.
        generator: a CPU generator.
    Returns: noisy images in 0..1.
    Source: Brooks et al. 2019, arXiv:1811.11127, sections 3.1 to 3.3 and its numbers; noise alone is demosaicked, and
        filtered, here.
    """
    count, channels, height, width = clean.shape
    colour = clean.expand(-1, 3, -1, -1) if channels == 1 else clean
    to_camera, gains = _cameras(count, generator)
    linear = _to_linear(colour.clamp(0, 1))
    raw = _undo_gains(torch.einsum("nij,njhw->nihw", to_camera, linear), gains)
    mosaic = _mosaic(height, width)[torch.randint(4, (count,), generator=generator)]
    signal = (raw * mosaic).sum(1).clamp_(min=0)
    deviation = (shot[:, None, None] * signal + read[:, None, None].square()).sqrt_()
    found = deviation * torch.randn((count, height, width), generator=generator)
    noise = _filter(_demosaic(found[:, None] * mosaic), grain)
    to_picture = torch.linalg.inv(to_camera) * gains[:, None, :]
    noisy = _to_picture(linear + torch.einsum("nij,njhw->nihw", to_picture, noise))
    if channels == 3:
        return noisy
    # The luma of the noise, not of the picture: gray stays what it was.
    return (clean + torch.einsum("c,nchw->nhw", _LUMA, noisy - colour)[:, None]).clamp_(0, 1)


def smooth_colour(clean: Tensor, noisy: Tensor, grain: Tensor) -> Tensor:
    """Filter the colour of the noise and leave its luma alone, as noise reduction in cameras does first.

    Args:
        clean, noisy: [N, 3, H, W] in 0..1.
        grain: [N], standard deviation of the filter in pixels.
    Returns: noisy images in 0..1.
    """
    noise = noisy - clean
    luma = torch.einsum("c,nchw->nhw", _LUMA, noise)[:, None]
    return (clean + luma + _filter(noise - luma, grain)).clamp_(0, 1)


def _cameras(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random cameras: matrices from linear sRGB to raw colours [N, 3, 3], white maps to white; gains [N, 3]."""
    shares = torch.rand(count, len(_XYZ_TO_CAMERA), generator=generator)
    mixed = torch.einsum("nk,kij->nij", shares / shares.sum(1, keepdim=True), _XYZ_TO_CAMERA)
    matrix = mixed @ _SRGB_TO_XYZ
    exposure = 1 / (_EXPOSURE[0] + _EXPOSURE[1] * torch.randn(count, generator=generator)).clamp(0.5, 1.1)
    red = torch.empty(count).uniform_(*_RED, generator=generator)
    blue = torch.empty(count).uniform_(*_BLUE, generator=generator)
    gains = exposure[:, None] * torch.stack([red, torch.ones(count), blue], 1)
    return matrix / matrix.sum(2, keepdim=True), gains


def _to_linear(image: Tensor) -> Tensor:
    """Undo tone curve (3t^2 - 2t^3) and gamma."""
    return (0.5 - torch.sin(torch.asin(1 - 2 * image) / 3)).clamp_(min=0).pow_(_GAMMA)


def _to_picture(linear: Tensor) -> Tensor:
    """Gamma and tone curve; what leaves 0..1 is cut off, as a camera does."""
    t = linear.clamp_(0, 1).pow_(1 / _GAMMA)
    return (t * t * (3 - 2 * t)).clamp_(0, 1)


def _undo_gains(image: Tensor, gains: Tensor) -> Tensor:
    """Divide by the white balance's gains; highlights, which were cut off there, keep their brightness."""
    mask = ((image.mean(1, keepdim=True) - _HIGHLIGHT).clamp_(min=0) / (1 - _HIGHLIGHT)).square_()
    inverse = (1 / gains)[:, :, None, None]
    return image * torch.maximum(mask + (1 - mask) * inverse, inverse)


def _mosaic(height: int, width: int) -> Tensor:
    """The four shifts of the Bayer pattern as masks [4, 3, H, W]: each site has one colour, green has half of them."""
    odd_row = (torch.arange(height) % 2).bool()[:, None].expand(height, width)
    odd_column = (torch.arange(width) % 2).bool()[None].expand(height, width)
    masks = []
    for red_row in (odd_row, ~odd_row):
        for red_column in (odd_column, ~odd_column):
            red, blue = red_row & red_column, ~red_row & ~red_column
            masks.append(torch.stack([red, ~(red | blue), blue]))
    return torch.stack(masks).float()


def _demosaic(sparse: Tensor) -> Tensor:
    """Bilinear interpolation of a mosaic [N, 3, H, W] that is 0 where a site has another colour."""
    rows = sparse + _neighbours(sparse, 2) / 2
    full = rows + _neighbours(rows, 3) / 2
    # Green has samples at two of four sites, so that a missing one has four neighbours, not two or four diagonal ones.
    green = sparse[:, 1:2]
    full[:, 1:2] = green + (_neighbours(green, 2) + _neighbours(green, 3)) / 4
    return full


def _filter(noise: Tensor, grain: Tensor) -> Tensor:
    """Low-pass filter of the given standard deviation in pixels per image [N]: [a, 1 - 2a, a], time and again."""
    # No filter of a pass may ring: its variance, 2a, is a half at most.
    passes = 2 * max(1, math.ceil(float(grain.max()) ** 2))
    a = grain.square()[:, None, None, None] / (2 * passes)
    for dim in (2, 3) * passes:
        noise = torch.addcmul(noise * (1 - 2 * a), a, _neighbours(noise, dim))
    return noise


def _neighbours(planes: Tensor, dim: int) -> Tensor:
    """The sum of both neighbours along a dimension. Slices: twice as fast as a depthwise convolution on a CPU.

    The border is mirrored, which keeps a mosaic: what stands beyond has the colour that the pattern would have there.
    """
    size = planes.shape[dim]
    total = torch.empty_like(planes)
    inner = total.narrow(dim, 1, size - 2)
    torch.add(planes.narrow(dim, 0, size - 2), planes.narrow(dim, 2, size - 2), out=inner)
    for end, beside in ((0, 1), (size - 1, size - 2)):
        total.select(dim, end).copy_(planes.select(dim, beside)).mul_(2)
    return total
