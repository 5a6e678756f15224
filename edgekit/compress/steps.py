"""What every stage that takes optimiser steps shares: the rate, the average, the checkpoint, the guard against NaN."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import CheckpointError, TrainingError
from edgekit.models.checkpoints import write_atomically


def cosine(step: int, steps: int, peak: float, warmup: int = 0) -> float:
    """The learning rate of a step: linear warm-up, then a cosine from `peak` down to a ten-thousandth of it.

    Args:
        step: 0 for the first step, at most `steps` - 1.
        steps: length of the run.
        peak: the highest rate, reached at the end of the warm-up.
        warmup: steps of linear rise; a run that is shorter only rises.
    """
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
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._live = list(parameters)
        self._decay = decay
        self.values = [p.detach().clone() for p in self._live]

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


class Checkpoint:
    """A stage's state on disk: written whole or not at all, read without unpickling.

    Args:
        path: the file; None keeps no checkpoint, and `save` and `load` do nothing.
        run: fingerprint of the run; a checkpoint of another run is refused.
    """

    def __init__(self, path: Path | None, run: str = "") -> None:
        self.path = path
        self._run = run

    def save(self, *, step: int, **state_dicts: Any) -> None:
        """Write the state after `step` steps.

        Raises: CheckpointError: the file cannot be written (disk full, no permission).
        """
        if self.path is None:
            return
        buffer = io.BytesIO()
        torch.save({"run": self._run, "step": step, **state_dicts}, buffer)
        write_atomically(self.path, buffer.getvalue())

    def load(self) -> dict[str, Any] | None:
        """Read the state: "step" and every state dict by the name it was saved under; None when there is no file.

        Raises: CheckpointError: not a checkpoint, truncated, or of another run.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            run = state["run"]
        except (OSError, RuntimeError, ValueError, LookupError, EOFError, TypeError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"cannot read checkpoint {self.path} ({type(error).__name__}): delete it to start over"
            ) from error
        if run != self._run:
            raise CheckpointError(
                f"checkpoint {self.path} belongs to another run (other settings, model, teacher or data): "
                "delete it to start over, or use the settings it was made with"
            )
        return dict(state)


def finite(value: Tensor, what: str, *, stage: str, step: int, rate: float, checkpoint: Checkpoint) -> float:
    """The value as a float, if it is a number.

    Raises: TrainingError: NaN or infinite; names the step and the last good checkpoint, which stays as it is.
    """
    number = value.item()
    if math.isfinite(number):
        return number
    kept = (
        f"the last good checkpoint is {checkpoint.path}"
        if checkpoint.path is not None and checkpoint.path.exists()
        else "no checkpoint was written yet"
    )
    raise TrainingError(
        f"{stage}: the {what} became {number} at step {step} (learning rate {rate:.2g}): "
        f"lower the learning rate or look for damaged images; {kept}"
    )
