"""A network, images and settings small enough that a test trains in a blink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from edgekit import models
from edgekit.models.base import DenoiserModel
from edgekit.recipe import TrainSettings
from edgekit.train.dead_leaves import dead_leaves
from edgekit.train.images import ImageSource, Picture


@pytest.fixture
def tiny_model() -> Callable[..., DenoiserModel]:
    def make(seed: int = 0, **overrides: Any) -> DenoiserModel:
        torch.manual_seed(seed)
        return models.create(
            "dsunet-n", **{"widths": [8, 8], "middle": [16], "decoder": [[8]], "up_width": 0, **overrides}
        )

    return make


@pytest.fixture(scope="session")
def leaves() -> ImageSource:
    made = [Picture.of(f"leaves {k}", dead_leaves(48, np.random.default_rng(k), smallest=4)) for k in range(5)]
    return ImageSource("leaves", tuple(made[:4]), tuple(made[4:]))


@pytest.fixture
def quick() -> Callable[..., TrainSettings]:
    def make(**changes: Any) -> TrainSettings:
        defaults = {
            "steps": 6, "batch": 2, "patch": 32, "warmup": 1, "precision": "32-true", "save_every": 3,
            "validate_every": 6, "accelerator": "cpu", "ema": 0.9,
        }  # fmt: skip
        return TrainSettings.model_validate({**defaults, **changes})

    return make
