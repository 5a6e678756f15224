"""Lists of operators for the tests: what an importer would write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgekit.models.graph import GraphModel

Node = dict[str, Any]


def conv(name: str, source: str, into: int, out: int, size: int = 3, **settings: Any) -> Node:
    """A convolution that keeps the size, unless told otherwise."""
    pad = [size // 2] * 4
    layer = {"kernel": [size, size], "stride": [1, 1], "pad": pad, "dilation": [1, 1], "groups": 1, "bias": True}
    return {"op": "conv", "name": name, "inputs": [source], "in": into, "out": out, **layer, **settings}


def spread(name: str, source: str, into: int, out: int, size: int = 4, **settings: Any) -> Node:
    """A transposed convolution that doubles the size, unless told otherwise."""
    pad = [(size - 2) // 2] * 4
    layer = {"stride": [2, 2], "pad": pad, "more": [0, 0]}
    return conv(name, source, into, out, size, **{"op": "conv_transpose", **layer, **settings})


def node(op: str, name: str, *inputs: str, **settings: Any) -> Node:
    """Any other operator."""
    return {"op": op, "name": name, "inputs": list(inputs), **settings}


def pool(op: str, name: str, source: str, size: int = 2, **settings: Any) -> Node:
    """A pool without overlap or padding, unless told otherwise."""
    return node(op, name, source, **{"kernel": [size, size], "stride": [size, size], "pad": [0] * 4, **settings})


def model(nodes: Sequence[Node], channels: int = 3, level: str = "none") -> GraphModel:
    """The network with random weights, in eval mode."""
    made = GraphModel(channels=channels, nodes=nodes, level=level, origin="a test").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / max(1, p[0].numel() if p.dim() else 1) ** 0.5)
    return made
