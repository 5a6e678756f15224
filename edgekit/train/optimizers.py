"""Optimisers by the names that a recipe gives them."""

from __future__ import annotations

from typing import Any

import torch

from edgekit.muon import Muon
from edgekit.recipe import TrainSettings


def optimizer(groups: list[dict[str, Any]], settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser of a run: "adamw" (Loshchilov and Hutter 2019, arXiv:1711.05101) or "muon", see `Muon`.

    Args:
        groups: parameter groups, each with "params" and "factor".
        settings: of them `optimizer`, `learning_rate`, `weight_decay` and `precision` count.
    """
    # The fused kernel unscales gradients itself, which float16's loss scaling cannot be clipped with.
    fused = settings.precision != "16-mixed"
    shared: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": fused}
    if settings.optimizer == "muon":
        # In the arithmetic that the run has chosen anyway: in float32 two processes stay within 1e-7 of one.
        arithmetic = torch.bfloat16 if settings.precision == "bf16-mixed" else torch.float32
        return Muon(groups, arithmetic=arithmetic, **shared)
    return torch.optim.AdamW(groups, **shared)
