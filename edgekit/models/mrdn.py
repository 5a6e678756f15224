"""mrdn: residual dense blocks with a branch of dilated convolutions, in groups, at half the resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import ShapeError
from edgekit.models.base import DenoiserModel
from edgekit.models.field import Field
from edgekit.models.registry import register


class MultiScaleBlock(nn.Module):
    """A residual dense block (arXiv:1802.08797) with a branch beside it that looks farther (MRDB).

    Each dense layer reads the input and all layers before it. The branch is atrous spatial pyramid pooling (DeepLabv3,
    arXiv:1706.05587): a 1x1 convolution and 3x3 convolutions of several dilations, side by side, without the average
    over the whole image, for which no halo would do. A 1x1 convolution joins everything.

    Args:
        width: channels of the residual stream.
        growth: channels of each dense layer.
        branch: channels of each convolution of the branch.
        dilations: of the branch's 3x3 convolutions, in cells.
    """

    def __init__(self, width: int, growth: Sequence[int], branch: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.dilations = list(dilations)
        inputs = [width + sum(growth[:place]) for place in range(len(growth))]
        self.dense = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, growth, strict=True))
        self.point = nn.Conv2d(width, branch, 1)
        self.atrous = nn.ModuleList(nn.Conv2d(width, branch, 3, padding=d, dilation=d) for d in dilations)
        self.join = nn.Conv2d(width + sum(growth) + branch * (1 + len(dilations)), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.dense:
            seen.append(F.relu(layer(torch.cat(seen, 1) if len(seen) > 1 else x)))
        seen += [F.relu(layer(x)) for layer in (self.point, *self.atrous)]
        joined: Tensor = self.join(torch.cat(seen, 1))
        return x + joined


class BlockGroup(nn.Module):
    """Blocks in a row, whose outputs a 1x1 convolution joins, and a skip (GRDB, arXiv:1905.11172)."""

    def __init__(self, width: int, blocks: Sequence[MultiScaleBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.join = nn.Conv2d(width * len(blocks), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for block in self.blocks:
            found.append(block(found[-1] if found else x))
        joined: Tensor = self.join(torch.cat(found, 1))
        return x + joined


@register(
    {
        "mrdn": {"width": 64, "groups": [[[32] * 6] * 4] * 4, "branch": 32, "dilations": [2, 4]},
        "mrdn-s": {"width": 16, "groups": [[[8] * 3] * 2] * 2, "branch": 8, "dilations": [2, 4]},
    }
)
class MRDN(DenoiserModel):
    """Groups of multi-scale residual dense blocks between a strided convolution and a pixel-shuffle; residual output.

    The challenge's report names the parts, not their sizes: those of "mrdn" are edgekit's own, and its parameter count
    is no published one. Of the frame that it was put into (GRDN, arXiv:1905.11172) the attention at the end (CBAM) is
    left out, and the transposed convolution is a 1x1 convolution and a pixel-shuffle, which all targets compute in
    integers.

    Args:
        channels: 1 or 3.
        width: channels of the residual stream.
        groups: for each group, for each of its blocks, the channels of each dense layer.
        branch: channels of each convolution of a block's branch.
        dilations: of the branch's 3x3 convolutions, in cells of two pixels.
    """

    arch = "mrdn"
    source = "Bao et al. 2020, CVPRW (MRDN, MRDB) in NTIRE 2020, arXiv:2005.04117; frame after GRDN (arXiv:1905.11172)"
    blind = True

    def __init__(
        self,
        *,
        width: int,
        groups: Sequence[Sequence[Sequence[int]]],
        branch: int,
        dilations: Sequence[int],
        channels: int = 3,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ShapeError(f"channels is {channels}: {self.arch} takes 1 (gray) or 3 (RGB)")
        if not groups or not all(groups) or not all(growth for group in groups for growth in group) or not dilations:
            raise ShapeError(
                f"groups {[list(group) for group in groups]}, dilations {list(dilations)}: expected at least one "
                "group, a block in each, a dense layer in each of those, and a dilation"
            )
        self.channels = channels
        self.stride = 2
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, 4, stride=2, padding=1)
        self.groups = nn.Sequential(
            *(BlockGroup(width, [MultiScaleBlock(width, g, branch, dilations) for g in group]) for group in groups)
        )
        self.up = nn.Conv2d(width, 4 * width, 1)
        self.tail = nn.Conv2d(width, channels, 3, padding=1)

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        x = self.groups(self.down(self.head(noisy)))
        clean: Tensor = noisy + self.tail(F.pixel_shuffle(self.up(x), 2))
        return clean

    @property
    def halo(self) -> int:
        field = Field().conv(3).conv(4, stride=2)
        for block in _blocks(self.groups):
            # The dense layers stand behind one another, the branch's beside them.
            field = field.conv(2 * max(len(block.dense), *block.dilations) + 1)
        return field.finer().conv(3).radius

    def config(self) -> dict[str, Any]:
        first = _blocks(self.groups)[0]
        return {
            "channels": self.channels,
            "width": self.head.out_channels,
            "groups": [
                [[layer.get_parameter("weight").shape[0] for layer in block.dense] for block in _blocks(group)]
                for group in self.groups
            ],
            "branch": first.point.out_channels,
            "dilations": first.dilations,
        }

    def inputs_side_by_side(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for name, module in self.named_modules():
            if isinstance(module, BlockGroup):
                found[f"{name}.join"] = (module.join.out_channels,) * len(module.blocks)
            if isinstance(module, MultiScaleBlock):
                seen = [module.join.out_channels]
                for place, layer in enumerate(module.dense):
                    found[f"{name}.dense.{place}"] = tuple(seen)
                    seen.append(layer.get_parameter("weight").shape[0])
                found[f"{name}.join"] = (*seen, *[module.point.out_channels] * (1 + len(module.atrous)))
        return found


def _blocks(module: nn.Module) -> list[MultiScaleBlock]:
    return [block for block in module.modules() if isinstance(block, MultiScaleBlock)]
