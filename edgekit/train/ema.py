"""Exponential moving average of weights."""

from __future__ import annotations

import copy

import torch

from edgekit.models.base import DenoiserModel


class WeightAverage:
    """Keeps an exponential moving average of a model's weights, in `model`, a copy of it.

    The decay warms up as (1 + step) / (10 + step), so that the random start is forgotten.
    """

    def __init__(self, model: DenoiserModel, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: DenoiserModel, step: int) -> None:
        """Move the average towards `model` after optimiser step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in model.parameters()], 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
