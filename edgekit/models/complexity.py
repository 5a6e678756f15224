"""Counting what a model costs, from its layers, without running it on data."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from edgekit.models.base import DenoiserModel


def macs_per_pixel(model: DenoiserModel) -> float:
    """Multiply-accumulates of convolutions and matrix products per input pixel.

    Run on the meta device: no arithmetic happens. The size is the smallest that is a multiple of every stride in
    use, large enough that the once-an-image work on sigma does not count.
    """
    side = 256 // model.stride * model.stride
    meta = copy.deepcopy(model).to("meta")
    noisy = torch.empty(1, model.channels, side, side, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(noisy, torch.empty(1, device="meta"))
    # FlopCounterMode counts a multiply and an add apart.
    return float(counter.get_total_flops()) / 2 / side**2
