"""pmrid: the separable U-Net for RAW images on phones, as published."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import ShapeError
from edgekit.models.base import DenoiserModel
from edgekit.models.field import Field
from edgekit.models.registry import register

_PUBLISHED: dict[str, Any] = {
    "widths": [16, 64, 128, 256, 512],
    "encoder": [[16] * 2, [32] * 2, [64] * 4, [128] * 4],
    "decoder": [64, 64, 32, 32, 16],
}


def _separable(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A depthwise convolution without bias and a 1x1 convolution with one, under the published keys."""
    depthwise = nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias=False)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=nn.Conv2d(inputs, outputs, 1)))


class EncoderBlock(nn.Module):
    """Two separable 5x5 convolutions and a skip, which is a separable 3x3 convolution where the size changes."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _separable(inputs, hidden, 5, stride)
        self.conv2 = _separable(hidden, outputs, 5)
        self.proj = _separable(inputs, outputs, 3, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.proj(x))


class DecoderBlock(nn.Module):
    """Two separable 3x3 convolutions and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv0 = _separable(width, width, 3)
        self.conv1 = _separable(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.conv1(F.relu(self.conv0(x)))
        return x + residual


class DecoderStage(nn.Module):
    """A block, a transposed 2x2 convolution to twice the size, and what the encoder had there, projected and added."""

    def __init__(self, inputs: int, skipped: int, outputs: int) -> None:
        super().__init__()
        self.decode_conv = DecoderBlock(inputs)
        self.upsample = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.proj_conv = _separable(skipped, outputs, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        risen: Tensor = self.upsample(self.decode_conv(x))
        return risen + F.relu(self.proj_conv(skip))


@register({"pmrid": {**_PUBLISHED, "channels": 3}, "pmrid-bayer": {**_PUBLISHED, "channels": 4}})
class PMRID(DenoiserModel):
    """A U-Net of depthwise-separable convolutions, large kernels on the way down, cheap skips; residual output.

    "pmrid-bayer" is the published network: four channels, the packed R, G, G and B of a Bayer sensor at half its size.
    Its noise depends on the ISO setting; `edgekit.runtime.raw.KSigma` maps any ISO to the one that the network was
    trained for, in front of it and back behind it. The keys are those of MegEngine/PMRID's `models/net_torch.py`.

    Args:
        channels: 1, 3, or 4 for packed Bayer.
        widths: channels of the first convolution and of each level below; there are 4 levels in the published one.
        encoder: hidden channels of each block of each level below, from the finest down.
        decoder: channels that leave the deepest level, and each level on the way up.
        scale: what the image is multiplied by in front of the network, and its output divided by: 256 for the published
            weights, which were trained so.
    """

    arch = "pmrid"
    source = "Wang et al. 2020, arXiv:2010.06935; sizes and keys as in MegEngine/PMRID"
    blind = True

    def __init__(
        self,
        *,
        widths: Sequence[int],
        encoder: Sequence[Sequence[int]],
        decoder: Sequence[int],
        scale: float = 1.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if channels not in (1, 3, 4):
            raise ShapeError(f"channels is {channels}: {self.arch} takes 1 (gray) or 3 (RGB), or 4 (packed Bayer)")
        levels = len(encoder)
        if not levels or not all(encoder) or len(widths) != levels + 1 or len(decoder) != levels + 1:
            raise ShapeError(
                f"{levels} encoder levels, {len(widths)} widths, {len(decoder)} decoder widths: expected at least one "
                "level, a block in each, and one width more than levels"
            )
        self.channels = channels
        self.stride = 2**levels
        self.scale = scale
        self.conv0 = nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, widths[0], 3, padding=1)))
        for level, hidden in enumerate(encoder):
            # Named as published: enc1 to enc4, and dec1 to dec4.
            inputs, outputs = widths[level], widths[level + 1]
            sides = [(inputs, 2), *[(outputs, 1)] * (len(hidden) - 1)]
            blocks = (EncoderBlock(i, h, outputs, s) for h, (i, s) in zip(hidden, sides, strict=True))
            self.add_module(f"enc{level + 1}", nn.Sequential(*blocks))
        self.encdec = _separable(widths[-1], decoder[0], 3)
        for level in range(levels):
            stage = DecoderStage(decoder[level], widths[levels - 1 - level], decoder[level + 1])
            self.add_module(f"dec{level + 1}", stage)
        self.out0 = DecoderBlock(decoder[-1])
        self.out1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(decoder[-1], channels, 3, padding=1)))

    def _levels(self) -> range:
        return range(1, self.stride.bit_length())

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        x = F.relu(self.conv0(noisy if self.scale == 1 else noisy * self.scale))
        skips: list[Tensor] = []
        for level in self._levels():
            skips.append(x)
            x = self.get_submodule(f"enc{level}")(x)
        x = F.relu(self.encdec(x))
        for level in self._levels():
            x = self.get_submodule(f"dec{level}")(x, skips.pop())
        residual = self.out1(self.out0(x))
        clean: Tensor = noisy + (residual if self.scale == 1 else residual / self.scale)
        return clean

    @property
    def halo(self) -> int:
        field, skips = Field().conv(3), []
        for level in self._levels():
            skips.append(field)
            field = field.conv(5, stride=2).conv(5)
            for _ in self._blocks(level)[1:]:
                field = field.conv(5).conv(5)
        field = field.conv(3)
        for _ in self._levels():
            field = field.conv(3).conv(3).finer() | skips.pop().conv(3)
        return field.conv(3).conv(3).conv(3).radius

    def _blocks(self, level: int) -> list[EncoderBlock]:
        return list(self.get_submodule(f"enc{level}").children())  # type: ignore[arg-type]

    def config(self) -> dict[str, Any]:
        def width(layer: nn.Module) -> int:
            return layer.get_parameter("pointwise.weight").shape[0]

        stages = [self.get_submodule(f"dec{level}") for level in self._levels()]
        return {
            "channels": self.channels,
            "widths": [
                self.get_parameter("conv0.conv.weight").shape[0],
                *(width(self._blocks(level)[0].conv2) for level in self._levels()),
            ],
            "encoder": [[width(block.conv1) for block in self._blocks(level)] for level in self._levels()],
            "decoder": [width(self.encdec), *(stage.get_parameter("upsample.weight").shape[1] for stage in stages)],
            "scale": self.scale,
        }
