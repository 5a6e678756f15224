"""nafnet: the U-Net without activation functions, as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import ShapeError
from edgekit.models.base import DenoiserModel
from edgekit.models.blocks import GlobalAverage
from edgekit.models.field import Field
from edgekit.models.registry import register


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a weight and a bias a channel (Ba et al. 2016)."""

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred * torch.rsqrt((centred * centred).mean(1, keepdim=True) + self.epsilon)
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


def gate(x: Tensor) -> Tensor:
    """The product of the two halves of the channels: what stands where others have an activation function."""
    first, second = x.chunk(2, 1)
    return first * second


class NAFBlock(nn.Module):
    """Two residual halves: depthwise 3x3 between 1x1 convolutions with channel attention, and two 1x1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(width)
        self.conv1 = nn.Conv2d(width, 2 * width, 1)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.sca = nn.Sequential(GlobalAverage(), nn.Conv2d(width, width, 1))
        self.conv3 = nn.Conv2d(width, width, 1)
        self.norm2 = ChannelNorm(width)
        self.conv4 = nn.Conv2d(width, 2 * width, 1)
        self.conv5 = nn.Conv2d(width, width, 1)
        # Zero, so that a fresh block is the identity.
        self.beta = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.beta * self.conv3(y * self.sca(y))
        result: Tensor = x + self.gamma * self.conv5(gate(self.conv4(self.norm2(x))))
        return result


@register(
    {
        "nafnet-sidd-width32": {"width": 32, "encoder": [2, 2, 4, 8], "middle": 12, "decoder": [2, 2, 2, 2]},
        "nafnet-width16": {"width": 16, "encoder": [1, 1, 2], "middle": 2, "decoder": [1, 1, 1]},
        "nafnet-width8": {"width": 8, "encoder": [1, 1], "middle": 2, "decoder": [1, 1]},
    }
)
class NAFNet(DenoiserModel):
    """A U-Net of gated blocks with simplified channel attention; skips are added, the image is added to the output.

    "nafnet-sidd-width32" has the sizes and the keys of the published weights for SIDD. Its attention averages over the
    whole input (`pools_globally`). Removing channels is refused: all widths follow from one.

    Args:
        channels: 1 or 3.
        width: channels of the first level; each level down has twice as many.
        encoder, decoder: blocks of each level; the encoder's from the finest down, the decoder's from the coarsest up.
        middle: blocks of the deepest level.
    """

    arch = "nafnet"
    source = "Chen et al. 2022, arXiv:2204.04676; sizes and keys as in megvii-research/NAFNet"
    blind = True

    def __init__(
        self, *, width: int, encoder: Sequence[int], middle: int, decoder: Sequence[int], channels: int = 3
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ShapeError(f"channels is {channels}: {self.arch} takes 1 (gray) or 3 (RGB)")
        if len(encoder) != len(decoder) or not encoder:
            raise ShapeError(
                f"{len(encoder)} encoder levels, {len(decoder)} decoder levels: expected as many, at least one"
            )
        self.channels = channels
        self.stride = 2 ** len(encoder)
        widths = [width * 2**level for level in range(len(encoder) + 1)]
        self.intro = nn.Conv2d(channels, width, 3, padding=1)
        self.encoders = nn.ModuleList(_blocks(w, n) for w, n in zip(widths, encoder, strict=False))
        self.downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, stride=2) for w in widths[:-1])
        self.middle_blks = _blocks(widths[-1], middle)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, 2 * w, 1, bias=False), nn.PixelShuffle(2)) for w in reversed(widths[1:])
        )
        self.decoders = nn.ModuleList(_blocks(w, n) for w, n in zip(reversed(widths[:-1]), decoder, strict=True))
        self.ending = nn.Conv2d(width, channels, 3, padding=1)

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        x = self.intro(noisy)
        skips: list[Tensor] = []
        for blocks, down in zip(self.encoders, self.downs, strict=True):
            x = blocks(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for blocks, up in zip(self.decoders, self.ups, strict=True):
            x = blocks(up(x) + skips.pop())
        clean: Tensor = noisy + self.ending(x)
        return clean

    @property
    def halo(self) -> int:
        field, skips = Field().conv(3), []
        for blocks in self.encoders:
            field = _through(field, blocks)
            skips.append(field)
            field = field.conv(2, stride=2)
        field = _through(field, self.middle_blks)
        for blocks in self.decoders:
            field = _through(field.finer() | skips.pop(), blocks)
        return field.conv(3).radius

    def config(self) -> dict[str, Any]:
        return {
            "channels": self.channels,
            "width": self.intro.out_channels,
            "encoder": [len(blocks) for blocks in self.encoders],  # type: ignore[arg-type]
            "middle": len(self.middle_blks),
            "decoder": [len(blocks) for blocks in self.decoders],  # type: ignore[arg-type]
        }


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(width) for _ in range(count)))


def _through(field: Field, blocks: nn.Module) -> Field:
    """Each block has one layer that looks at neighbours."""
    for _ in range(len(blocks)):  # type: ignore[arg-type]
        field = field.conv(3)
    return field
