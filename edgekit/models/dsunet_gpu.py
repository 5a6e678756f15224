"""dsunet-gpu: the student whose every operator a phone's GPU delegate takes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import ShapeError
from edgekit.models.blocks import SeparableBlock
from edgekit.models.dsunet import SMALL, DSUNet
from edgekit.models.registry import register
from edgekit.models.unet_core import ShuffledUNet


@register({"dsunet-gpu-s": SMALL})
class GPUDSUNet(ShuffledUNet):
    """The dsunet without pixel-shuffles: strided and transposed convolutions that compute the same sums.

    A pixel-shuffle and its inverse only move pixels, but TFLite has no operator for it that GPU delegates take (they
    become transposes and reshapes of five dimensions, SPACE_TO_DEPTH or DEPTH_TO_SPACE). A shuffle is a strided
    convolution of fixed weights, its inverse a transposed one, and each stands next to a learned convolution: the two
    are one, of 6x6 by stride 2 for a 3x3 one, of 2x2 by stride 2 for a 1x1 one, with as many multiplications. So every
    dsunet has a twin here that computes the same image: `from_dsunet`.

    The delegate computes in float16. In INT8 take the dsunet: TFLite's converter leaves transposed convolutions in
    float.

    Args: as `ShuffledUNet`.
    """

    arch = "dsunet-gpu"
    source = "edgekit; dsunet with strided and transposed convolutions for LiteRT's GPU delegate"
    block = SeparableBlock

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        channels, width = self.channels, self.head.out_channels
        self.head = nn.Conv2d(channels, width, 6, stride=2, padding=2)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(up.in_channels, up.out_channels // 4, 2, stride=2)  # type: ignore[operator, arg-type]
            for up in self.up
        )
        self.tail = nn.ConvTranspose2d(self.tail.in_channels, channels, 6, stride=2, padding=2)

    def _enter(self, noisy: Tensor) -> Tensor:
        x: Tensor = self.head(noisy)
        return x

    def _rise(self, up: nn.Module, x: Tensor) -> Tensor:
        risen: Tensor = up(x)
        return risen

    def _leave(self, x: Tensor) -> Tensor:
        residual: Tensor = self.tail(x)
        return residual

    def _risen(self) -> int:
        risen: int = self.up[0].out_channels  # type: ignore[assignment]
        return risen


def from_dsunet(model: DSUNet) -> GPUDSUNet:
    """The twin of a trained dsunet, with its weights.

    One thing has no place in it: the four pixels of a cell that a 1x1 or 3x3 convolution writes before a pixel-shuffle
    have a bias each, a transposed convolution has one a channel. The twin gets their mean: the shipped dsunet-s loses
    a few hundredths of a dB by it, which a short training wins back.

    Args:
        model: untouched.
    Returns: a network in eval mode. Where those four biases are equal it computes the same image but for the rounding
        of sums.
    Raises: ShapeError: another architecture.
    """
    if not isinstance(model, DSUNet):
        raise ShapeError(f"{type(model).__name__} has no twin for GPU delegates: expected a dsunet")
    twin = GPUDSUNet(**model.config())
    state = dict(model.state_dict())
    # Tap (a, b) of a cell's pixel (i, j) is tap (2a + i, 2b + j) of the pixels.
    state["head.weight"] = F.pixel_shuffle(state["head.weight"], 2)
    for name in ("tail", *(f"up.{number}" for number in range(len(model.up)))):
        # A transposed convolution writes what the other reads: inputs first, the taps in the opposite order.
        state[f"{name}.weight"] = F.pixel_shuffle(state[f"{name}.weight"].transpose(0, 1).flip(2, 3), 2)
        state[f"{name}.bias"] = state[f"{name}.bias"].reshape(-1, 4).mean(1)
    twin.load_state_dict(state)
    return twin.to(next(model.parameters()).device).eval()
