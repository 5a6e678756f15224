"""A plain chain of 3x3 convolutions, which dncnn and ffdnet share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def plain_chain(widths: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions from each width to the next, a ReLU between any two."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def chain_widths(chain: nn.Sequential) -> list[int]:
    """The widths that `plain_chain` would rebuild this chain from, read from its layers."""
    convolutions = [m for m in chain if isinstance(m, nn.Conv2d)]
    return [convolutions[0].in_channels, *(c.out_channels for c in convolutions)]
