"""Losses on the features of a network that learned to see: VGG, with weights that the user has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from edgekit.errors import CheckpointError, RecipeError
from edgekit.losses import Loss
from edgekit.models import checkpoints
from edgekit.vgg import Vgg

# Of VggFeatures, blocks between poolings that are looked at: later ones tell what is shown, not how sharp.
_BLOCKS = 3
# The convolutions of VGG-16, block by block.
_VGG16 = [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]
# Keeps the length of a feature of zeros from dividing by 0, as torchmetrics has it.
_NOTHING = 1e-8


def learned(mix: Mapping[str, float], weights: Path | None) -> dict[str, Loss]:
    """The losses of a mix that have weights of their own, by name.

    Args:
        mix: weights of the losses by name.
        weights: the file of the network's weights.
    Raises: RecipeError: one is asked for without weights, or weights are given without one. What `VggFeatures` and
        `Lpips` raise.
    """
    asked = [name for name in KINDS if name in mix]
    if not asked:
        if weights is not None:
            raise RecipeError(
                f"feature_weights is {str(weights)!r}, but the loss has no part 'feature' or 'lpips': give it one, "
                "e.g. loss: {l1: 1.0, feature: 0.05}, or leave feature_weights out"
            )
        return {}
    if weights is None:
        raise RecipeError(
            f"the loss {asked[0]!r} needs the weights of a VGG, which edgekit does not download: name a file that you "
            f"have, e.g. feature_weights: vgg16.pth (torchvision's state dict), or take {asked[0]!r} out of loss"
        )
    return {name: KINDS[name](weights) for name in asked}


class VggFeatures:
    """Distance of two images in the features of a VGG.

    The mean absolute difference after the last ReLU of each of the first three blocks, averaged over the blocks.

    Source: Johnson et al. 2016, arXiv:1603.08155.
    """

    def __init__(self, weights: Path) -> None:
        """Read the weights. Raises: what `Vgg` raises."""
        self._vgg = Vgg(weights)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """The distance of each image, [N]; images [N, C, H, W] in 0..1."""
        count = output.shape[0]
        blocks = list(self._vgg.features(torch.cat([output, target]), _BLOCKS))
        total = output.new_zeros(count)
        for seen in blocks:
            total = total + (seen[:count] - seen[count:]).abs().flatten(1).mean(1)
        return total / len(blocks)


class Lpips:
    """LPIPS, the distance in the features of VGG-16 that was fitted to what people see.

    At each position features are brought to length 1, squared differences are weighted channel by channel and averaged
    over the image; the five blocks are summed. The fitted weights come with torchmetrics, VGG's own are the user's.

    Source: Zhang et al. 2018, arXiv:1801.03924, version 0.1.
    """

    def __init__(self, weights: Path) -> None:
        """Read the weights. Raises: what `Vgg` raises. CheckpointError: the weights of another VGG than VGG-16."""
        self._vgg = Vgg(weights)
        if self._vgg.shape != _VGG16:
            raise CheckpointError(
                f"{weights} holds a VGG of {sum(map(len, self._vgg.shape))} convolutions of widths {self._vgg.shape}: "
                "the loss 'lpips' was fitted to VGG-16, take torchvision's vgg16"
            )
        fitted = resources.files("torchmetrics") / "functional" / "image" / "lpips_models" / "vgg.pth"
        with resources.as_file(fitted) as path:
            state = checkpoints.state_dict(path)
        self._weights = [state[f"lin{k}.model.1.weight"] for k in range(len(_VGG16))]

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """The distance of each image, [N]; images [N, C, H, W] in 0..1."""
        count = output.shape[0]
        total = output.new_zeros(count)
        both = self._vgg.features(torch.cat([output, target]), len(_VGG16))
        for seen, weight in zip(both, self._weights, strict=True):
            even = seen / (seen.square().sum(1, keepdim=True) + _NOTHING).sqrt()
            difference = (even[:count] - even[count:]).square() * weight.to(seen.device)
            total = total + difference.sum(1).flatten(1).mean(1)
        return total


# By the names that a recipe calls them.
KINDS: dict[str, Callable[[Path], Loss]] = {"feature": VggFeatures, "lpips": Lpips}
