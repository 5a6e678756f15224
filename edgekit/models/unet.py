"""unet: the shipped teacher."""

from __future__ import annotations

from edgekit.models.blocks import ResidualBlock
from edgekit.models.registry import register
from edgekit.models.unet_core import ShuffledUNet


@register(
    {
        "unet": {
            "widths": [48, 96, 192],
            "encoder": [[48], [96]],
            "middle": [192] * 3,
            "decoder": [[48], [96]],
        }
    }
)
class UNet(ShuffledUNet):
    """Residual U-Net of plain 3x3 convolutions, three levels: a DRUNet in small, to teach the students."""

    arch = "unet"
    source = "after DRUNet (Zhang et al. 2021, arXiv:2008.13751), behind a pixel-unshuffle"
    block = ResidualBlock
