"""One training batch, as training draws it and compression takes it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Clean and noisy images [N, C, H, W] float32 in 0..1, and the noise level [N] in 0..1."""

    clean: Tensor
    noisy: Tensor
    sigma: Tensor
