"""ffdnet: the denoiser that takes a noise-level map, as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekit.errors import ShapeError
from edgekit.models.base import DenoiserModel
from edgekit.models.chain import chain_widths, plain_chain
from edgekit.models.registry import register


@register(
    {
        "ffdnet-color": {"channels": 3, "widths": [96] * 11},
        "ffdnet-gray": {"channels": 1, "widths": [64] * 14},
    }
)
class FFDNet(DenoiserModel):
    """A chain of 3x3 convolutions behind a 2x pixel-unshuffle; the noise level enters as the last input channel.

    It estimates the clean image itself, not the noise. The keys are those of KAIR's `network_ffdnet.py`. The published
    code pads an odd height or width by repeating the last row or column; here whoever calls pads to `stride`.

    Args:
        channels: 1 or 3.
        widths: output channels of every convolution but the last.
    """

    arch = "ffdnet"
    source = "Zhang et al. 2018, doi:10.1109/TIP.2018.2839891; weights and keys as in cszn/KAIR"

    def __init__(self, *, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ShapeError(f"channels is {channels}: {self.arch} takes 1 (gray) or 3 (RGB)")
        if not widths:
            raise ShapeError("widths is empty: ffdnet expects at least one hidden width")
        self.channels = channels
        self.stride = 2
        self.model = plain_chain([4 * channels + 1, *widths, 4 * channels])

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        cells = F.pixel_unshuffle(noisy, 2)
        # A map is averaged over each 2x2 cell, so that a constant map and a scalar are the same function.
        level = F.avg_pool2d(sigma, 2) if sigma.shape[-1] > 1 else sigma
        level = level.expand(cells.shape[0], 1, cells.shape[2], cells.shape[3])
        return F.pixel_shuffle(self.model(torch.cat((cells, level), 1)), 2)

    @property
    def halo(self) -> int:
        # Each convolution reaches one 2x2 cell farther; the far pixel of the last cell is one more.
        return 2 * (len(chain_widths(self.model)) - 1) + 1

    def config(self) -> dict[str, Any]:
        return {"channels": self.channels, "widths": chain_widths(self.model)[1:-1]}
