"""A loss on the features of a network that learned to see: VGG, with weights that the user has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import CheckpointError, RecipeError
from edgekit.losses import Loss
from edgekit.models import checkpoints

# What a recipe calls this loss.
NAME = "feature"
# Blocks between poolings that are looked at: later ones tell what is shown, not how sharp.
_BLOCKS = 3
# Mean and deviation of ImageNet's colours, which VGG's weights expect.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_KEY = re.compile(r"(?:^|\.)features\.(\d+)\.(weight|bias)$")


def learned(mix: Mapping[str, float], weights: Path | None) -> dict[str, Loss]:
    """The feature loss by its name, if a mix of losses asks for it.

    Args:
        mix: weights of the losses by name.
        weights: the file of the network's weights.
    Raises: RecipeError: it is asked for without weights, or weights are given without it. What `VggFeatures` raises.
    """
    if NAME not in mix:
        if weights is not None:
            raise RecipeError(
                f"feature_weights is {str(weights)!r}, but the loss has no part 'feature': give it one, "
                "e.g. loss: {l1: 1.0, feature: 0.05}, or leave feature_weights out"
            )
        return {}
    if weights is None:
        raise RecipeError(
            "the loss 'feature' needs the weights of a VGG, which edgekit does not download: name a file that you "
            "have, e.g. feature_weights: vgg16.pth (torchvision's state dict), or take 'feature' out of loss"
        )
    return {NAME: VggFeatures(weights)}


class VggFeatures:
    """Distance of two images in the features of a VGG.

    The mean absolute difference after the last ReLU of each of the first three blocks, averaged over the blocks.

    Source: Johnson et al. 2016, arXiv:1603.08155; the network is that of Simonyan and Zisserman 2015, arXiv:1409.1556.
    """

    def __init__(self, weights: Path) -> None:
        """Read the convolutions of a torchvision VGG without batch norm: `features.0.weight`, `features.0.bias`, ...

        The numbers in the names tell the network: between a convolution and the next one lies a ReLU, and where one
        more number is left out, a pooling by 2.

        Raises: CheckpointError: no such file, or not the weights of such a network.
        """
        state = checkpoints.state_dict(weights)
        found: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            if match := _KEY.search(key):
                found.setdefault(int(match[1]), {})[match[2]] = tensor.float()
        places = sorted(found)
        gaps = [after - before for before, after in zip(places, places[1:], strict=False)]
        whole = all(len(part) == 2 and part["weight"].dim() == 4 for part in found.values())
        if not places or places[0] != 0 or set(gaps) - {2, 3} or not whole or found[0]["weight"].shape[1] != 3:
            raise CheckpointError(
                f"{weights} is no VGG without batch norm: expected a torchvision state dict with features.0.weight "
                "[64, 3, 3, 3], features.0.bias, features.2.weight, ... (vgg11, vgg13, vgg16, vgg19)"
            )
        self._blocks: list[nn.ModuleList] = [nn.ModuleList()]
        for gap, place in zip([2, *gaps], places, strict=True):
            if gap == 3:
                self._blocks.append(nn.ModuleList())
            self._blocks[-1].append(_convolution(**found[place]))
        self._blocks = self._blocks[:_BLOCKS]

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """The distance of each image, [N]; images [N, C, H, W] in 0..1, gray ones are shown in three channels."""
        count = output.shape[0]
        both = torch.cat([output, target]).float()
        mean, deviation = (both.new_tensor(v)[:, None, None] for v in (_MEAN, _DEVIATION))
        seen = (both.expand(-1, 3, -1, -1) - mean) / deviation
        total = output.new_zeros(count)
        for k, block in enumerate(self._blocks):
            seen = F.max_pool2d(seen, 2) if k else seen
            for convolution in block.to(seen.device):
                seen = F.relu(convolution(seen))
            total = total + (seen[:count] - seen[count:]).abs().flatten(1).mean(1)
        return total / len(self._blocks)


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.requires_grad_(False)
