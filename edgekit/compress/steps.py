"""What every stage that takes optimiser steps shares: the checkpoint, and the guard against NaN."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgekit.errors import CheckpointError, TrainingError
from edgekit.models.checkpoints import write_atomically


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
