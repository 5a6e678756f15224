"""VGG, the network that learned to see: its features, from weights that the user has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import CheckpointError
from edgekit.models import checkpoints

# Mean and deviation of ImageNet's colours, which VGG's weights expect.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_KEY = re.compile(r"(?:^|\.)features\.(\d+)\.(weight|bias)$")


class Vgg:
    """The convolutions of a VGG without batch norm, in blocks between which it pools by 2.

    Source: Simonyan and Zisserman 2015, arXiv:1409.1556.
    """

    def __init__(self, weights: Path) -> None:
        """Read a torchvision state dict: `features.0.weight`, `features.0.bias`, ...

        The numbers in the names tell the network: between a convolution and the next one lies a ReLU, and where one
        more number is left out, a pooling.

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
        self.blocks: list[nn.ModuleList] = [nn.ModuleList()]
        for gap, place in zip([2, *gaps], places, strict=True):
            if gap == 3:
                self.blocks.append(nn.ModuleList())
            self.blocks[-1].append(_convolution(**found[place]))

    @property
    def shape(self) -> list[list[int]]:
        """The output channels of each convolution, block by block."""
        return [[layer.out_channels for layer in block] for block in self.blocks]  # type: ignore[misc]

    def features(self, images: Tensor, blocks: int) -> Iterator[Tensor]:
        """What comes out of the last ReLU of each of the first `blocks` blocks, [N, any, any, any].

        Args:
            images: [N, C, H, W] in 0..1; gray ones are shown in three channels.
        """
        seen = images.float()
        mean, deviation = (seen.new_tensor(v)[:, None, None] for v in (_MEAN, _DEVIATION))
        seen = (seen.expand(-1, 3, -1, -1) - mean) / deviation
        for k, block in enumerate(self.blocks[:blocks]):
            seen = F.max_pool2d(seen, 2) if k else seen
            for convolution in block.to(seen.device):
                seen = F.relu(convolution(seen))
            yield seen


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.requires_grad_(False)
