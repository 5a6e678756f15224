"""The U-Net skeleton behind a pixel-unshuffle that the student family and the teacher share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import ShapeError
from edgekit.models.base import DenoiserModel


class ShuffledUNet(DenoiserModel):
    """U-Net at half resolution and lower: pixel-shuffle upsampling, residual output.

    The output is `noisy - r(noisy, sigma)`. Sigma enters as a bias per channel after a convolution - a 1x1 convolution
    of the map - so that a scalar and a constant map are the same function, a static INT8 graph holds no broadcast of a
    plane, and thresholds can grow in proportion to the noise.

    Args:
        channels: 1 or 3.
        widths: channels of the residual stream, one number a level; level i works at 1/2**(i+1) of the resolution.
        encoder, decoder: hidden widths of the blocks of each level but the deepest, finest level first.
        middle: hidden widths of the blocks of the deepest level.
        up_width: channels that come up to the finest level, where they are set beside the skip; 0: as many as the skip
            has, and added to it, as on every other level. In INT8 a sum is one rounding more of all that the output is
            made of.
        finish: channels of a 1x1 convolution with ReLU in front of the last one; 0 leaves it out. It writes what the
            last convolution reads, with no residual around it, which INT8 would round twice.
        sigma_level: the level that sigma enters at: 0 behind the first convolution, 1 behind the first step down. There
            INT8 rounds the first convolution's output once instead of twice, and the addition is half the size.
    """

    block: type[nn.Module]

    def __init__(
        self,
        *,
        widths: Sequence[int],
        encoder: Sequence[Sequence[int]],
        middle: Sequence[int],
        decoder: Sequence[Sequence[int]],
        up_width: int = 0,
        finish: int = 0,
        sigma_level: int = 0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ShapeError(f"channels is {channels}: {self.arch} takes 1 (gray) or 3 (RGB)")
        if not len(widths) - 1 == len(encoder) == len(decoder):
            raise ShapeError(
                f"{len(widths)} widths, {len(encoder)} encoder levels, {len(decoder)} decoder levels: "
                f"expected {len(widths) - 1} of each for {len(widths)} widths"
            )
        least = min([*widths, *(hidden for level in (middle, *encoder, *decoder) for hidden in level)])
        if least < 1 or min(up_width, finish) < 0:
            raise ShapeError(
                f"widths {widths}, encoder {encoder}, middle {middle}, decoder {decoder}, up_width {up_width}, finish "
                f"{finish}: expected whole numbers above 0, up_width and finish at least 0"
            )
        if not 0 <= sigma_level < len(widths):
            raise ShapeError(f"sigma_level is {sigma_level}: there are levels 0 to {len(widths) - 1}")
        if up_width and not (len(widths) > 1 and not decoder[0]):
            raise ShapeError(
                f"up_width is {up_width} with {len(widths)} widths, decoder {decoder}: expected at least two widths, "
                "and no blocks on the finest level, which need a sum; set up_width 0"
            )
        self.channels = channels
        self.up_width = up_width
        self.sigma_level = sigma_level
        self.stride = 2 ** len(widths)
        self.head = nn.Conv2d(4 * channels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(self._blocks(w, hidden) for w, hidden in zip(widths, encoder, strict=False))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, widths[1:], strict=False))
        self.sigma_bias = nn.Conv2d(1, widths[sigma_level], 1, bias=False)
        self.middle = self._blocks(widths[-1], middle)
        risen = [up_width or widths[0], *widths[1:]]
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in zip(risen, widths[1:], strict=False))
        self.decoder = nn.ModuleList(self._blocks(w, hidden) for w, hidden in zip(widths, decoder, strict=False))
        joined = widths[0] + up_width
        self.finish = nn.Conv2d(joined, finish, 1) if finish else None
        self.tail: nn.Conv2d | nn.ConvTranspose2d = nn.Conv2d(finish or joined, 4 * channels, 3, padding=1)

    @classmethod
    def _blocks(cls, width: int, hidden: Sequence[int]) -> nn.Sequential:
        return nn.Sequential(*(cls.block(width, h) for h in hidden))

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        # A map is averaged over each cell of pixels that is one position of the level.
        level = F.avg_pool2d(sigma, 2 ** (self.sigma_level + 1)) if sigma.shape[-1] > 1 else sigma
        x = self._enter(noisy)
        bias = self.sigma_bias(level)
        x = x + bias if self.sigma_level == 0 else x
        skips: list[Tensor] = []
        for number, (blocks, down) in enumerate(zip(self.encoder, self.down, strict=True), 1):
            x = blocks(x)
            skips.append(x)
            x = down(x)
            x = x + bias if self.sigma_level == number else x
        x = self.middle(x)
        for blocks, up in zip(reversed(list(self.decoder)), reversed(list(self.up)), strict=True):
            skip, risen = skips.pop(), self._rise(up, x)
            x = torch.cat((skip, risen), 1) if self.up_width and not skips else blocks(skip + risen)
        x = x if self.finish is None else F.relu(self.finish(x))
        return noisy - self._leave(x)

    def _enter(self, noisy: Tensor) -> Tensor:
        """The first convolution: [N, C, H, W] -> [N, widths[0], H/2, W/2]."""
        x: Tensor = self.head(F.pixel_unshuffle(noisy, 2))
        return x

    def _rise(self, up: nn.Module, x: Tensor) -> Tensor:
        """To twice the size."""
        return F.pixel_shuffle(up(x), 2)

    def _leave(self, x: Tensor) -> Tensor:
        """The last convolution: [N, any, H/2, W/2] -> [N, C, H, W]."""
        return F.pixel_shuffle(self.tail(x), 2)

    @property
    def halo(self) -> int:
        # A radius of r cells of a coarse level reaches 2r + 1 cells of the next finer one: the last of its two
        # cells sees the first of the two that lie r coarse cells away.
        per_block = 1 if self._convolutions_per_block() == 1 else 2
        radius = per_block * len(self.middle)
        for encoder, decoder in zip(reversed(list(self.encoder)), reversed(list(self.decoder)), strict=True):
            radius = 2 * radius + 1 + per_block * (len(encoder) + len(decoder))  # type: ignore[arg-type]
        return 2 * (radius + 2) + 1  # head and tail: one cell each

    def inputs_side_by_side(self) -> dict[str, tuple[int, ...]]:
        if not self.up_width:
            return {}
        reader = "tail" if self.finish is None else "finish"
        return {reader: (self.head.out_channels, self._risen())}

    def _risen(self) -> int:
        """Channels that come up to the finest level, read from the layer: pruning leaves less."""
        return self.up[0].out_channels // 4  # type: ignore[operator, return-value]

    @classmethod
    def _convolutions_per_block(cls) -> int:
        probe = cls.block(1, 1)
        return sum(isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1) for m in probe.modules())

    def config(self) -> dict[str, Any]:
        def hidden(blocks: nn.Module) -> list[int]:
            return [block.expand.out_channels for block in blocks]  # type: ignore[attr-defined]

        return {
            "channels": self.channels,
            "widths": [self.head.out_channels, *(d.out_channels for d in self.down)],
            "encoder": [hidden(b) for b in self.encoder],
            "middle": hidden(self.middle),
            "decoder": [hidden(b) for b in self.decoder],
            "up_width": self._risen() if self.up_width else 0,
            "finish": self.finish.out_channels if self.finish is not None else 0,
            "sigma_level": self.sigma_level,
        }
