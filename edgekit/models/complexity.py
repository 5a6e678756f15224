"""Counting what a model costs, from its layers, without running it on data."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
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


def layer_macs(model: DenoiserModel, side: int) -> list[tuple[str, int]]:
    """The convolutions in the order they run: module path, and multiply-accumulates for an image of side x side."""
    meta = copy.deepcopy(model).to("meta").eval()
    found: list[tuple[str, int]] = []

    def note(name: str, module: nn.Module, source: Tensor, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        # Every weight is used once at each position: of the output, or of the input where that is what it spreads.
        grid = source if isinstance(module, nn.ConvTranspose2d) else output
        found.append((name, weight.numel() * math.prod(grid.shape[2:])))

    for name, module in meta.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(_noting(note, name))
    with torch.no_grad():
        meta(torch.empty(1, model.channels, side, side, device="meta"), torch.empty(1, device="meta"))
    return found


def _noting(note: Any, name: str) -> Any:
    return lambda module, arguments, output: note(name, module, arguments[0], output)
