"""Fake quantizers of a PT2E program whose ranges are learned by gradient."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from edgekit.compress.pt2e import FakeQuantizeBase

# Which inputs of a convolution kernels may take together: numbers of channels in orders of which they take the first
# and the second, the third and the fourth, ...; or any two.
Pairs: TypeAlias = tuple[tuple[int, ...], ...] | Literal["any"]

# How a range is drawn in from the extremes: to the least squared error over all values seen, or image by image.
Fit: TypeAlias = Literal["least-squares", "per-image"]

# Ranges of no width would divide by zero.
_TINY = 1e-8
# Values that are kept of each tensor that is observed, to fit its range to.
_SAMPLE = 8192
# Shares of the observed bounds that are tried as bounds.
_SHARES = 24
_LEAST_SHARE = 0.08
# Image by image, the mean is of this power of the squared errors: one image that reaches five times as far as all
# others then cannot pay with their steps for its own.
_POWER = 0.25
# XNNPACK refuses a scale far from all others. A channel of weights counts as at least this share of the largest.
_LEAST_CHANNEL = 2.0**-16


class LearnedRange(FakeQuantizeBase):  # type: ignore[misc]
    """Activation quantizer, int8 per tensor, with learned bounds (LSQ+, Bhalgat et al. 2020, arXiv:2004.09576).

    First it observes: the bounds follow the smallest and largest value seen. `fit()` draws them in to where rounding
    and clipping together cost least, as often as asked; `learn()` makes them parameters, in units of their width so
    that one learning rate serves all layers; gradients come from torch's learnable fake-quantization kernel. With
    `fixed` bounds it neither observes nor learns.

    Args:
        symmetric: zero point 0.
        fixed: (lower, upper) real bounds that never change.
    """

    def __init__(self, symmetric: bool = False, fixed: tuple[float, float] | None = None, **_: Any) -> None:
        super().__init__()
        # convert_pt2e reads these names.
        self.dtype = torch.int8
        self.quant_min, self.quant_max = (-127, 127) if symmetric else (-128, 127)
        self.qscheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        self.is_dynamic = False
        self.fixed = fixed is not None
        self.symmetric = symmetric
        self.observing = not self.fixed
        self.register_buffer("width", torch.ones(()))
        # A sample of each batch's values, and the number of the image that each is of.
        self._seen: list[Tensor] = []
        self._images: list[Tensor] = []
        self._extremes: tuple[Tensor, Tensor] | None = None
        self._learned = self.fixed
        start = fixed or (float("inf"), float("-inf"))
        self.lower = nn.Parameter(torch.tensor(start[0]), requires_grad=False)
        self.upper = nn.Parameter(torch.tensor(start[1]), requires_grad=False)

    def learn(self, fit: Fit | None = "least-squares") -> None:
        """Stop observing; fit the bounds to what was seen, or leave them at its extremes, and make them parameters."""
        if self._learned:
            return
        self.fit(fit)
        self._learned = True
        self._seen.clear()
        self._images.clear()
        self.lower.requires_grad_()
        self.upper.requires_grad_()

    def fit(self, fit: Fit | None) -> None:
        """Stop observing; fit the bounds to what was seen. It may be done again until they `learn()`; then it does
        nothing.
        """
        if self._learned:
            return
        if self.observing:
            self.observing = False
            self._extremes = self.lower.detach().clone(), self.upper.detach().clone()
        seen = torch.cat(self._seen) if self._seen and fit else None
        images = torch.cat(self._images) if seen is not None and fit == "per-image" else None
        assert self._extremes is not None
        self.begin(*self._extremes, seen, images)

    def pin(self, step: float) -> None:
        """Set bounds that were to `learn()` to the integers' own ends times `step`, zero at zero, for good."""
        self.width.fill_(1.0)
        self.lower.data.fill_(self.quant_min * step)
        self.upper.data.fill_(self.quant_max * step)
        self.lower.requires_grad_(False)
        self.upper.requires_grad_(False)

    def ends(self) -> tuple[float, float]:
        """The bounds as they stand."""
        lower, upper = self._bounds()
        return lower.item(), upper.item()

    def begin(self, lower: Tensor, upper: Tensor, seen: Tensor | None = None, images: Tensor | None = None) -> None:
        """Set the bounds, and with them the unit that they are learned in.

        Args:
            lower, upper: extremes of the tensor, scalars; bounds hold 0 whatever these are.
            seen: values of it, of any shape, to draw the bounds in to; None leaves them at the extremes.
            images: the number of the image that each of them is of, for a fit image by image.
        """
        lower, upper = lower.clamp(max=0), upper.clamp(min=0)
        if upper - lower < _TINY:
            # A tensor that is all zeros, behind dead channels: any range holds it, so one like the image's.
            upper = torch.ones_like(upper)
        elif seen is not None:
            lower, upper = self._fit(seen, lower, upper, images)
        self.width.copy_(upper - lower)
        self.lower.data.copy_(lower / self.width)
        self.upper.data.copy_(upper / self.width)

    def _fit(self, seen: Tensor, lower: Tensor, upper: Tensor, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The bounds, shares of those given, that leave the least error: both alike first, then each alone.

        Few values reach the ends of a range, and a step as coarse as they need costs all others more than cutting them.
        """
        shares = torch.linspace(1, _LEAST_SHARE, _SHARES).tolist()
        values = None if images is None else torch.bincount(images)

        def error(low: float, high: float) -> float:
            ends = lower * low, upper * high
            if self.symmetric:
                ends = -torch.maximum(ends[1], -ends[0]), torch.maximum(ends[1], -ends[0])
            scale = (ends[1] - ends[0]) / (self.quant_max - self.quant_min)
            squared = ((seen.clamp(*ends) / scale).round() * scale - seen).square()
            if images is None or values is None:
                return float(squared.mean())
            means = squared.new_zeros(len(values)).index_add_(0, images, squared) / values.clamp(min=1)
            return float(means.pow(_POWER).mean())

        both = min(shares, key=lambda share: error(share, share))
        if self.symmetric:
            return lower * both, upper * both
        low = min(shares, key=lambda share: error(share, both))
        high = min(shares, key=lambda share: error(low, share))
        return lower * low, upper * high

    def _bounds(self) -> tuple[Tensor, Tensor]:
        # Zero stays exactly representable: convolutions pad with it.
        lower, upper = (self.lower * self.width).clamp(max=0), (self.upper * self.width).clamp(min=0)
        if self.symmetric:
            upper = torch.maximum(upper, -lower)
            lower = -upper
        return lower, upper

    def _affine(self) -> tuple[Tensor, Tensor]:
        lower, upper = self._bounds()
        scale = ((upper - lower) / (self.quant_max - self.quant_min)).clamp_min(_TINY)
        zero_point = torch.zeros_like(scale) if self.symmetric else self.quant_min - lower / scale
        # Rounding errors of the division must not push it past the end that a one-sided range puts it at.
        return scale, zero_point.clamp(self.quant_min, self.quant_max)

    def forward(self, x: Tensor) -> Tensor:
        if self.observing:
            with torch.no_grad():
                self.lower.copy_(torch.minimum(self.lower, x.detach().min()))
                self.upper.copy_(torch.maximum(self.upper, x.detach().max()))
                at = torch.randint(x.numel(), (_SAMPLE,), generator=torch.Generator().manual_seed(len(self._seen)))
                at = (at if x.numel() > _SAMPLE else torch.arange(x.numel())).to(x.device)
                # Where a network folds something else into the batch, each of its parts counts as an image.
                before = int(self._images[-1].max()) + 1 if self._images else 0
                self._seen.append(x.detach().flatten()[at])
                self._images.append(before + at // max(1, x.numel() // (x.shape[0] if x.dim() else 1)))
            if not self.fake_quant_enabled[0]:
                return x
        elif not self.fake_quant_enabled[0]:
            return x
        scale, zero_point = self._affine()
        # LSQ's gradient scale: without it a range moves with the number of elements it covers.
        factor = 1.0 / (x.numel() * self.quant_max) ** 0.5
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, scale.view(1), zero_point.view(1), self.quant_min, self.quant_max, factor
        )

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and integer zero point, as convert_pt2e wants them."""
        with torch.no_grad():
            scale, zero_point = self._affine()
        return scale.view(1), zero_point.round().clamp(self.quant_min, self.quant_max).to(torch.int64).view(1)


class ChannelWeights(FakeQuantizeBase):  # type: ignore[misc]
    """Weight quantizer, symmetric per output channel; the range follows the weights.

    Args:
        bits: 8, or 7 for reduced range.
        axis: which one counts output channels: 0, or 1 of a transposed convolution.
        pairs: choose scales so that of two inputs that are taken together at one tap the integers of one sign add up
            to 128 at most: 255 times that fits 16 bits. None: no such limit.
    """

    def __init__(self, bits: int = 8, axis: int = 0, pairs: Pairs | None = None, **_: Any) -> None:
        super().__init__()
        self.dtype = torch.int8
        self.quant_max = 2 ** (bits - 1) - 1
        self.quant_min = -self.quant_max
        self.qscheme = torch.per_channel_symmetric
        self.ch_axis = axis
        self.pairs = pairs
        self.is_dynamic = False
        self.register_buffer("scale", torch.ones(1))
        self._holding = False

    def hold(self) -> None:
        """Keep the scales as they are: the weights are integers of them now."""
        self._holding = True

    def forward(self, weight: Tensor) -> Tensor:
        if not self._holding:
            self.scale = self._fitted(weight.detach())
        if not self.fake_quant_enabled[0]:
            return weight
        zero_point = torch.zeros_like(self.scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight, self.scale, zero_point, self.ch_axis, self.quant_min, self.quant_max
        )

    def _fitted(self, reach: Tensor) -> Tensor:
        """The scales that reach as far as the weights, [channels]."""
        if self.pairs is not None:
            # Rounding adds a half to each of two.
            signs = torch.stack((reach.clamp(min=0), (-reach).clamp(min=0)))
            if self.pairs == "any":
                sums = signs.topk(2, 2).values.sum(2, keepdim=True)
            else:
                sums = torch.cat([signs[:, :, order[0::2]] + signs[:, :, order[1::2]] for order in self.pairs], 2)
            reach = sums.amax(0)
        peak = reach.abs().transpose(0, self.ch_axis).flatten(1).amax(1)
        floor = (peak.amax() * _LEAST_CHANNEL).clamp_min(_TINY)
        scale: Tensor = torch.maximum(peak, floor) / self.quant_max
        return scale

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points (all 0), [channels]."""
        return self.scale.detach(), torch.zeros_like(self.scale, dtype=torch.int64)
