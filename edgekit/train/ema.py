"""A model that is the moving average of another."""

from __future__ import annotations

import copy

import torch

from edgekit.models.base import DenoiserModel
from edgekit.schedule import Average


class WeightAverage:
    """Keeps an exponential moving average of a model's weights, in `model`, a copy of it. See `Average`."""

    def __init__(self, model: DenoiserModel, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._live = model
        self._average = Average(model.parameters(), decay, into=self.model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the model after optimiser step number `step`."""
        self._average.update(step)
        for mine, theirs in zip(self.model.buffers(), self._live.buffers(), strict=True):
            mine.copy_(theirs)
