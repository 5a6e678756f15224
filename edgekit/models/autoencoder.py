"""autoencoder: the convolutional denoising autoencoder of the tutorials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import ShapeError
from edgekit.models.base import DenoiserModel
from edgekit.models.field import Field
from edgekit.models.registry import register


@register({"autoencoder": {"widths": [32, 32]}})
class Autoencoder(DenoiserModel):
    """3x3 convolutions with ReLU and 2x max pools down, the same with nearest upsampling back up: a bottleneck.

    It has no skip and estimates the clean image itself, so what the pools dropped is lost: the baseline that shows why
    denoisers have skips. Of the tutorial's network the last sigmoid is left out: it reaches neither 0 nor 1.

    Args:
        channels: 1 or 3.
        widths: channels of the encoder's convolutions; a 2x max pool follows each.
        decoder: channels of the decoder's convolutions, coarsest first; None: the encoder's, backwards.
    """

    arch = "autoencoder"
    source = (
        "Gondara 2016, arXiv:1608.04667, after Vincent et al. 2008, doi:10.1145/1390156.1390294; sizes as in "
        "'Building Autoencoders in Keras' (blog.keras.io)"
    )
    blind = True

    def __init__(self, *, widths: Sequence[int], decoder: Sequence[int] | None = None, channels: int = 3) -> None:
        super().__init__()
        decoder = list(reversed(widths)) if decoder is None else decoder
        if channels not in (1, 3):
            raise ShapeError(f"channels is {channels}: {self.arch} takes 1 (gray) or 3 (RGB)")
        if not widths or len(decoder) != len(widths):
            raise ShapeError(f"{len(widths)} widths, {len(decoder)} decoder widths: expected as many, at least one")
        self.channels = channels
        self.stride = 2 ** len(widths)
        inputs = [channels, *widths]
        self.encoder = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, widths, strict=False))
        inputs = [widths[-1], *decoder]
        self.decoder = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, decoder, strict=False))
        self.tail = nn.Conv2d(decoder[-1], channels, 3, padding=1)

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        x = noisy
        for layer in self.encoder:
            x = F.max_pool2d(F.relu(layer(x)), 2)
        for layer in self.decoder:
            x = F.interpolate(F.relu(layer(x)), scale_factor=2.0, mode="nearest")
        clean: Tensor = self.tail(x)
        return clean

    @property
    def halo(self) -> int:
        field = Field()
        for _ in self.encoder:
            field = field.conv(3).conv(2, stride=2)
        for _ in self.decoder:
            field = field.conv(3).finer()
        return field.conv(3).radius

    def config(self) -> dict[str, Any]:
        return {
            "channels": self.channels,
            "widths": [layer.out_channels for layer in self.encoder],
            "decoder": [layer.out_channels for layer in self.decoder],
        }
