"""dsunet: the depthwise-separable students, and the teacher of their kind."""

from __future__ import annotations

from typing import Any

from edgekit.models.blocks import SeparableBlock
from edgekit.models.registry import register
from edgekit.models.unet_core import ShuffledUNet

# Of dsunet-s, and of its twin for GPU delegates.
SMALL: dict[str, Any] = {
    "widths": [32, 56],
    "encoder": [[]],
    "middle": [160] * 4,
    "decoder": [[]],
    "up_width": 24,
    "finish": 64,
    "sigma_level": 1,
}


@register(
    {
        "dsunet-n": {
            "widths": [16, 32],
            "encoder": [[]],
            "middle": [72] * 4,
            "decoder": [[]],
            "up_width": 8,
            "finish": 32,
            "sigma_level": 1,
        },
        "dsunet-s": SMALL,
        # What the first and last convolution of a gray image need less goes into two more blocks.
        "dsunet-s-gray": {**SMALL, "middle": [160] * 4 + [120] * 2, "channels": 1},
        "dsunet-m": {
            "widths": [40, 80, 128],
            "encoder": [[], [192] * 2],
            "middle": [288] * 4,
            "decoder": [[], [192] * 2],
            "up_width": 32,
            "finish": 80,
            "sigma_level": 1,
        },
        "dsunet-l": {
            "widths": [48, 96, 160],
            "encoder": [[], [256] * 3],
            "middle": [384] * 6,
            "decoder": [[], [256] * 3],
            "up_width": 40,
            "finish": 96,
            "sigma_level": 1,
        },
    }
)
class DSUNet(ShuffledUNet):
    """Depthwise-separable U-Net, sized by MACs: n (2.9 kMAC/px), s (8.9), m (19.9) and l (40.4), which teaches."""

    arch = "dsunet"
    source = "edgekit; blocks after MobileNetV2 (arXiv:1801.04381) behind FFDNet's pixel-unshuffle (arXiv:1710.04026)"
    block = SeparableBlock
