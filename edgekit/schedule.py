"""What every training takes its steps by: the learning rate, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def cosine(step: int, steps: int, peak: float, warmup: int = 0) -> float:
    """The learning rate of a step: linear warm-up, then a cosine from `peak` down to a ten-thousandth of it.

    Args:
        step: 0 for the first step, at most `steps` - 1.
        steps: length of the run.
        peak: the highest rate, reached at the end of the warm-up.
        warmup: steps of linear rise; at most a tenth of the run, so that a short trial learns, too.
    """
    warmup = min(warmup, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * progress)))


class Average:
    """Exponential moving average of parameters, in place of the last ones, which carry the noise of the last steps.

    The decay warms up as (1 + step) / (10 + step), so that the start is forgotten.

    Args:
        parameters: what is averaged; the average starts as their copy.
        decay: weight of the past at each step, 0..1; 0 keeps the last parameters.
        into: tensors of the same shapes that hold the average; new ones when not given.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float, into: Iterable[Tensor] | None = None) -> None:
        self._live = list(parameters)
        self._decay = decay
        self.values = [p.detach().clone() for p in self._live] if into is None else list(into)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the parameters after the optimiser step of that number."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self._live], 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Write the average into the parameters."""
        for live, value in zip(self._live, self.values, strict=True):
            live.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The average, for a checkpoint."""
        return {"values": self.values}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the average from a checkpoint."""
        for value, stored in zip(self.values, state["values"], strict=True):
            value.copy_(stored)
