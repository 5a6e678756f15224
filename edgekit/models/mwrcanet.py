"""mwrcanet: residual channel attention on three levels of Haar wavelets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import ShapeError
from edgekit.models.base import DenoiserModel
from edgekit.models.blocks import GlobalAverage
from edgekit.models.field import Field
from edgekit.models.registry import register

# Rows: the bands LL, LH, HL, HH; columns: the four pixels of a 2x2 cell, row by row. Symmetric and its own inverse.
_HAAR = ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, -0.5, -0.5), (0.5, -0.5, 0.5, -0.5), (0.5, -0.5, -0.5, 0.5))
# Channels of attention's bottleneck: one of this many.
_REDUCTION = 16


class FixedConv(nn.Conv2d):
    """A convolution without bias whose weights are part of the architecture: stored with it, never trained."""

    def __init__(self, inputs: int, outputs: int, kernel: int, weight: Tensor, *, groups: int) -> None:
        super().__init__(inputs, outputs, kernel, stride=kernel, groups=groups, bias=False)
        shape = self.weight.shape
        del self.weight
        self.register_buffer("weight", weight.reshape(shape))


def haar(channels: int) -> FixedConv:
    """The Haar transform of each channel: [N, C, H, W] -> [N, 4C, H/2, W/2], the four bands of a channel together."""
    return FixedConv(channels, 4 * channels, 2, torch.tensor(_HAAR).repeat(channels, 1), groups=channels)


class InverseHaar(nn.Module):
    """The inverse of `haar`: [N, 4C, H, W] -> [N, C, 2H, 2W].

    A 1x1 convolution and a pixel-shuffle: exporters know no transposed convolution with groups.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        weight = torch.tensor(_HAAR).repeat(channels, 1)
        self.bands = FixedConv(4 * channels, 4 * channels, 1, weight, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.bands(x), 2)


class AttentionBlock(nn.Module):
    """Two 3x3 convolutions with a PReLU between, weighted channel by channel, and a skip (RCAB, arXiv:1807.02758)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = max(1, width // _REDUCTION)
        self.expand = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.PReLU()
        self.project = nn.Conv2d(width, width, 3, padding=1)
        self.attention = nn.Sequential(
            GlobalAverage(), nn.Conv2d(width, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.act(self.expand(x)))
        result: Tensor = x + y * self.attention(y)
        return result


class AttentionGroup(nn.Module):
    """Attention blocks, a 3x3 convolution, and a skip around them."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(AttentionBlock(width) for _ in range(blocks)))
        self.join = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.join(self.blocks(x))
        return result


@register(
    {
        "mwrcanet": {"widths": [96, 128, 128], "blocks": 20},
        "mwrcanet-s": {"widths": [16, 24, 32], "blocks": 2},
    }
)
class MWRCANet(DenoiserModel):
    """A U-Net that goes down by Haar transforms and up by their inverses, with groups of attention blocks in between.

    "mwrcanet" has the sizes of its authors' code for the NTIRE 2020 challenge. The attention averages over the whole
    input (`pools_globally`). Removing channels is refused: the transforms tie each channel to its four bands.

    Args:
        channels: 1 or 3.
        widths: channels of each level; level i works at 1/2**(i+1) of the resolution.
        blocks: attention blocks of each group; a level has one group on the way down and one on the way up, the deepest
            one alone.
    """

    arch = "mwrcanet"
    source = "Cao et al. (HITVPC&HUAWEI) in NTIRE 2020, arXiv:2005.04117; after MWCNN (arXiv:1805.07071)"
    blind = True

    def __init__(self, *, widths: Sequence[int], blocks: int, channels: int = 3) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ShapeError(f"channels is {channels}: {self.arch} takes 1 (gray) or 3 (RGB)")
        if not widths or blocks < 1:
            raise ShapeError(f"widths {list(widths)}, blocks {blocks}: expected at least one level and one block")
        self.channels = channels
        self.stride = 2 ** len(widths)
        finer = [channels, *widths[:-1]]
        self.split = nn.ModuleList(haar(w) for w in finer)
        self.enter = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4 * a, b, 3, padding=1), nn.PReLU()) for a, b in zip(finer, widths, strict=True)
        )
        self.down = nn.ModuleList(AttentionGroup(w, blocks) for w in widths)
        self.up = nn.ModuleList(AttentionGroup(w, blocks) for w in widths[:-1])
        self.leave = nn.ModuleList(nn.Conv2d(b, 4 * a, 3, padding=1) for a, b in zip(finer, widths, strict=True))
        self.act = nn.ModuleList(nn.PReLU() for _ in widths[:-1])
        self.merge = nn.ModuleList(InverseHaar(w) for w in finer)

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        x = bands = self.split[0](noisy)
        skips: list[Tensor] = []
        for level, (enter, group) in enumerate(zip(self.enter, self.down, strict=True)):
            x = group(enter(self.split[level](x) if level else x))
            skips.append(x)
        x = skips.pop()
        for level in reversed(range(1, len(self.leave))):
            x = self.merge[level](self.act[level - 1](self.leave[level](x)))
            x = self.up[level - 1](x + skips.pop())
        clean: Tensor = self.merge[0](self.leave[0](x) + bands)
        return clean

    @property
    def halo(self) -> int:
        def through(field: Field, group: nn.Module) -> Field:
            for _ in range(2 * len(group.blocks) + 1):  # type: ignore[arg-type]
                field = field.conv(3)
            return field

        field, skips = Field(), []
        for group in self.down:
            field = through(field.conv(2, stride=2).conv(3), group)
            skips.append(field)
        field = skips.pop()
        for group in reversed(self.up):
            field = through(field.conv(3).finer() | skips.pop(), group)
        return field.conv(3).finer().radius

    def config(self) -> dict[str, Any]:
        return {
            "channels": self.channels,
            "widths": [group.get_parameter("join.weight").shape[0] for group in self.down],
            "blocks": len(self.down[0].blocks),  # type: ignore[arg-type]
        }
