"""Training without clean images: neighbouring pixels show the same scene with other noise (Neighbor2Neighbor)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekit.errors import RecipeError
from edgekit.models.base import DenoiserModel
from edgekit.recipe import TrainSettings
from edgekit.runtime.estimate import estimate_sigma
from edgekit.train.decode import Image
from edgekit.train.images import ImageSource, Picture

# (noisy [N, C, H, W], sigma [N]) -> clean.
Network = Callable[[Tensor, Tensor], Tensor]

# The ordered pairs of pixels of a 2x2 cell (0 1 / 2 3) that share an edge.
_PAIRS = torch.tensor([[0, 1], [0, 2], [1, 0], [1, 3], [2, 0], [2, 3], [3, 1], [3, 2]])


def check(source: ImageSource, settings: TrainSettings, stride: int, *, teacher: bool) -> None:
    """Refuse what does not go with training on noisy images alone. Raises: RecipeError."""
    if source.name == "built-in":
        raise RecipeError(
            "self_supervised is neighbor2neighbor, but the built-in images are clean, which teach better: name a "
            "folder of noisy images (--data), or leave --self-supervised out"
        )
    if source.paired:
        raise RecipeError(
            "self_supervised is neighbor2neighbor, but the data are pairs with clean images, which teach better: leave "
            "--self-supervised out, or give the folder noisy/ itself"
        )
    if teacher:
        raise RecipeError("self_supervised is neighbor2neighbor with a teacher: choose one of them")
    if settings.patch % (2 * stride):
        raise RecipeError(
            f"patch is {settings.patch}: with self_supervised the model sees half of it, so that it must be a multiple "
            f"of {2 * stride}"
        )


def level(image: Image) -> float:
    """The noise level, in 0..1, that a model is told of a noisy image: what `sigma="auto"` will tell it later."""
    return estimate_sigma(image).raw / 255


def subsample(
    images: Tensor, generator: torch.Generator, rank: int = 0, world: int = 1
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Draw two pixels that share an edge in each 2x2 cell of images [N, C, H, W].

    Args:
        generator: in the same state on every process.
        rank, world: which part of the global batch these images are, and of how many: the parts of several processes
            draw what one process draws for all.
    Returns: a function from images of that size to two images [N, C, H/2, W/2]: of the first pixels, of the second.
    """
    count, _, height, width = images.shape
    drawn = torch.randint(len(_PAIRS), (world * count, height // 2, width // 2), generator=generator)
    drawn = drawn[rank * count : (rank + 1) * count]
    places = _PAIRS[drawn].to(images.device)

    def take(whole: Tensor) -> tuple[Tensor, Tensor]:
        channels = whole.shape[1]
        cells = F.pixel_unshuffle(whole, 2).reshape(count, channels, 4, height // 2, width // 2)
        chosen = (places[..., k][:, None, None].expand(-1, channels, -1, -1, -1) for k in (0, 1))
        first, second = (cells.gather(2, index) for index in chosen)
        return first.squeeze(2), second.squeeze(2)

    return take


def loss(
    network: Network,
    noisy: Tensor,
    sigma: Tensor,
    weight: float,
    generator: torch.Generator,
    distance: Callable[[Tensor, Tensor], Tensor],
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """The loss of Neighbor2Neighbor.

    One of two subsampled images is denoised and compared with the other, whose noise is another: what cannot be
    foreseen from neighbours averages out. The regulariser takes off what the two differ by because they show
    neighbouring places, which would blur: the difference of the same pixels after the whole image was denoised.

    Args:
        network: the model in training.
        noisy: [N, C, H, W] in 0..1, H and W even; noise of neighbouring pixels must be independent.
        sigma: [N] in 0..1.
        weight: of the regulariser.
        generator: a CPU generator.
        distance: the loss between images [N, C, H, W].
        rank, world: as for `subsample`.
    Source: Huang et al. 2021, arXiv:2101.02824, equation 12.
    """
    take = subsample(noisy, generator, rank, world)
    seen, other = take(noisy)
    output = network(seen.contiguous(memory_format=torch.channels_last), sigma).float()
    total = distance(output, other)
    if weight:
        with torch.no_grad():
            first, second = take(network(noisy.contiguous(memory_format=torch.channels_last), sigma).float())
        total = total + weight * (output - other - (first - second)).square().mean()
    return total


@torch.no_grad()
def score(model: DenoiserModel, pictures: Sequence[Picture]) -> float:
    """Mean PSNR in dB of one subsampled image, denoised, against the other, which is noisy: for comparing models alone.

    It is bounded by the other's noise; the better of two models of the same images still has the higher one.
    """
    model.eval()
    device = next(model.parameters()).device
    found = []
    for k, picture in enumerate(pictures):
        pixels = picture.pixels()[0]
        side = 2 * model.stride
        height, width = (size // side * side for size in pixels.shape[:2])
        noisy = torch.tensor(pixels[:height, :width]).permute(2, 0, 1)[None].float() / 255
        seen, other = subsample(noisy, torch.Generator().manual_seed(k))(noisy)
        output = model(seen.to(device), torch.tensor([level(pixels)], device=device)).float().cpu()
        found.append(-10 * torch.log10((output.clamp(0, 1) - other).square().mean().clamp(min=1e-10)))
    return float(torch.stack(found).mean())
