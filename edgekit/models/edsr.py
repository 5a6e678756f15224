"""edsr: the trunk of a super-resolution network, as a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from edgekit.errors import ShapeError
from edgekit.models.base import DenoiserModel
from edgekit.models.blocks import ResidualBlock
from edgekit.models.registry import register


@register(
    {
        "edsr-baseline": {"width": 64, "blocks": [64] * 16},
        "edsr-s": {"width": 24, "blocks": [24] * 4},
    }
)
class EDSR(DenoiserModel):
    """A head, residual blocks without normalisation and a long skip around them, all at full resolution, and a tail.

    The published network ends in a convolution and pixel-shuffle per factor of two, which a denoiser has no use for;
    in its place what the tail writes is added to the image, so that a fresh network changes little. The mean of its
    training set, which the published code subtracts, is left to the first bias.

    Args:
        channels: 1 or 3.
        width: channels of the residual stream.
        blocks: hidden channels of each block.
        res_scale: what each block's residual is multiplied by; 1 in the baseline, 0.1 in the published network of 256
            channels.
    """

    arch = "edsr"
    source = "Lim et al. 2017, arXiv:1707.02921; without the upsampling tail"
    blind = True

    def __init__(self, *, width: int, blocks: Sequence[int], res_scale: float = 1.0, channels: int = 3) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ShapeError(f"channels is {channels}: {self.arch} takes 1 (gray) or 3 (RGB)")
        if not blocks:
            raise ShapeError("blocks is empty: edsr expects at least one residual block")
        self.channels = channels
        self.stride = 1
        self.res_scale = res_scale
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width, hidden, res_scale) for hidden in blocks))
        self.join = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, channels, 3, padding=1)

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        x = self.head(noisy)
        clean: Tensor = noisy + self.tail(x + self.join(self.body(x)))
        return clean

    @property
    def halo(self) -> int:
        # One pixel a convolution: the head, the long skip's last, the tail, and two a block.
        return 3 + 2 * len(self.body)

    def config(self) -> dict[str, Any]:
        return {
            "channels": self.channels,
            "width": self.head.out_channels,
            "blocks": [block.get_parameter("expand.weight").shape[0] for block in self.body],
            "res_scale": self.res_scale,
        }
