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
    kind = Muon if settings.optimizer == "muon" else torch.optim.AdamW
    return kind(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)
