"""Building blocks shared by the architectures."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SeparableBlock(nn.Module):
    """Residual depthwise-separable block: depthwise 3x3, pointwise expansion, ReLU, pointwise projection, + input.

    One depthwise layer per two wide pointwise ones: in INT8 a depthwise layer is bound by memory and takes as long as
    the pointwise one beside it with an eighth of the MACs. The only ReLU sits on the expanded side, so that the
    residual stream stays linear (Sandler et al. 2018, arXiv:1801.04381).
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.expand = nn.Conv2d(width, hidden, 1)
        self.project = nn.Conv2d(hidden, width, 1)
        # A block that starts near the identity lets a net without normalisation layers train at a high rate.
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.project(F.relu(self.expand(self.depthwise(x))))
        return x + residual


class ResidualBlock(nn.Module):
    """Residual block of two plain 3x3 convolutions with one ReLU, no normalisation (EDSR, arXiv:1707.02921).

    Args:
        width: channels of the residual stream.
        hidden: channels between the convolutions.
        scale: what the residual is multiplied by before it is added; wide networks need less than 1 to train.
    """

    def __init__(self, width: int, hidden: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Conv2d(width, hidden, 3, padding=1)
        self.project = nn.Conv2d(hidden, width, 3, padding=1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.project(F.relu(self.expand(x)))
        return x + (residual if self.scale == 1 else self.scale * residual)


class GlobalAverage(nn.Module):
    """The mean of every channel over the whole input, [N, C, H, W] -> [N, C, 1, 1]: what channel attention looks at.

    A module of its own, so that a network that has one says so (`DenoiserModel.pools_globally`). It is a mean, not an
    average pool of a fixed size: an exported file whose input is resized still averages over all of it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)
