"""What every denoiser in edgekit promises."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgekit.errors import ShapeError
from edgekit.models.blocks import GlobalAverage


class DenoiserModel(nn.Module, abc.ABC):
    """A denoiser: `forward(noisy, sigma) -> clean`.

    A subclass sets the class attributes and the three instance attributes, and implements
    `config`, `halo` and `_run`. `forward` validates and calls `_run`.

    Attributes:
        arch: the architecture's registered name; with `config()` it rebuilds this very module.
        source: paper or repository the architecture comes from.
        blind: True when the network estimates the noise itself and ignores sigma.
        channels: image channels, 1 (gray) or 3 (RGB); 4 (packed Bayer) where an architecture says so.
        stride: H and W of every input are multiples of it.
    """

    arch: ClassVar[str]
    source: ClassVar[str]
    blind: bool = False

    channels: int
    stride: int

    @property
    @abc.abstractmethod
    def halo(self) -> int:
        """Receptive radius in pixels: an output pixel depends on no input pixel farther away than this.

        Where `pools_globally`, this is the radius of the convolutions alone, with the averages taken for constants.
        """

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments that rebuild this module, read from the layers, so that it holds after pruning."""

    @abc.abstractmethod
    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """The network itself. `sigma` is [N, 1, 1, 1] (one level an image) or [N, 1, H, W] (a map)."""

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Remove noise from a batch.

        Args:
            noisy: float32 [N, C, H, W], range 0..1 (noise may exceed it); H and W are multiples of `stride`.
            sigma: noise standard deviation on the same scale (25/255, not 25), float32 [N], or [N, 1, H, W] as a map.
        Returns: the clean estimate, float32 [N, C, H, W], not clipped.
        Raises: ShapeError: rank, channels, or size do not fit.
        """
        # Tracing (torch.export, torch-pruning) must not see Python control flow on sizes that may be symbolic.
        if not torch.compiler.is_compiling():
            self._validate(noisy, sigma)
        if sigma.dim() == 1:
            sigma = sigma[:, None, None, None]
        return self._run(noisy, sigma)

    def _validate(self, noisy: Tensor, sigma: Tensor) -> None:
        if noisy.dim() != 4 or noisy.shape[1] != self.channels:
            raise ShapeError(f"noisy has shape {tuple(noisy.shape)}: {self.arch} expects [N, {self.channels}, H, W]")
        height, width = noisy.shape[2:]
        if height % self.stride or width % self.stride:
            raise ShapeError(
                f"noisy is {height}x{width}: {self.arch} expects height and width to be multiples of {self.stride}; "
                "pad it, or use edgekit.open(...), which does"
            )
        if sigma.dim() not in (1, 4) or sigma.shape[0] not in (1, noisy.shape[0]):
            raise ShapeError(
                f"sigma has shape {tuple(sigma.shape)}: expected [{noisy.shape[0]}] or "
                f"[{noisy.shape[0]}, 1, {height}, {width}]"
            )
        if sigma.dim() == 4 and tuple(sigma.shape[1:]) != (1, height, width):
            raise ShapeError(f"sigma map is {tuple(sigma.shape)}: expected [N, 1, {height}, {width}], as the image")

    @property
    def pools_globally(self) -> bool:
        """Whether a layer averages over the whole input, so that no halo makes a tile's result the whole image's.

        Such a network works on tiles, each with its own averages, as it was trained on patches; see docs/models.md.
        """
        return any(isinstance(module, GlobalAverage) for module in self.modules())

    def inputs_side_by_side(self) -> dict[str, tuple[int, ...]]:
        """Of each layer that reads several tensors set side by side, how many channels each of them has."""
        return {}

    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def macs_per_pixel(self) -> float:
        """Multiply-accumulates of the convolutions per pixel of the input image (1 kMAC/px = 1e9 for a megapixel)."""
        from edgekit.models.complexity import macs_per_pixel

        return macs_per_pixel(self)
