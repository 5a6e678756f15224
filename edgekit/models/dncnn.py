"""dncnn: the classic residual denoiser, as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgekit.errors import ShapeError
from edgekit.models.base import DenoiserModel
from edgekit.models.chain import chain_widths, plain_chain
from edgekit.models.registry import register


@register(
    {
        "dncnn-color-blind": {"channels": 3, "widths": [64] * 19},
        "dncnn-25": {"channels": 1, "widths": [64] * 16},
    }
)
class DnCNN(DenoiserModel):
    """A chain of 3x3 convolutions and ReLUs that estimates the noise, which is subtracted; batch norm is folded.

    It takes no noise level: "dncnn-color-blind" was trained for sigma 0..55, "dncnn-25" for sigma 25 alone. The keys
    are those of KAIR's `network_dncnn.py` (model.0.weight, model.2.weight, ...).

    Args:
        channels: 1 or 3.
        widths: output channels of every convolution but the last.
    """

    arch = "dncnn"
    source = "Zhang et al. 2017, doi:10.1109/TIP.2017.2662206; weights and keys as in cszn/KAIR"
    blind = True

    def __init__(self, *, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ShapeError(f"channels is {channels}: {self.arch} takes 1 (gray) or 3 (RGB)")
        if not widths:
            raise ShapeError("widths is empty: dncnn expects at least one hidden width")
        self.channels = channels
        self.stride = 1
        self.model = plain_chain([channels, *widths, channels])

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        clean: Tensor = noisy - self.model(noisy)
        return clean

    @property
    def halo(self) -> int:
        return len(chain_widths(self.model)) - 1

    def config(self) -> dict[str, Any]:
        return {"channels": self.channels, "widths": chain_widths(self.model)[1:-1]}
