"""A larger network begins as a smaller one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from edgekit import models
from edgekit.errors import CheckpointError
from edgekit.models.base import DenoiserModel
from edgekit.models.grow import grow


def _lively(name: str, **config: Any) -> DenoiserModel:
    """Random weights everywhere, where a fresh model has zeros."""
    torch.manual_seed(1)
    model = models.create(name, **config)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(std=0.1)
    return model.eval()


def _outputs(model: DenoiserModel) -> torch.Tensor:
    noisy = torch.rand((1, model.channels, 64, 64), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return model(noisy, torch.tensor([0.1]))


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        # Streams, hidden channels, blocks, and both halves of what is set side by side.
        (
            "dsunet-n",
            {},
            {"widths": [24, 40], "middle": [80, 72, 96, 72, 40, 40], "up_width": 12, "finish": 40},
        ),
        # Blocks on a level that had none, and a sum in place of tensors side by side.
        (
            "dsunet-n",
            {"widths": [8, 16, 24], "encoder": [[], [8]], "decoder": [[], []], "middle": [16], "up_width": 0},
            {"widths": [8, 20, 24], "encoder": [[8], [8, 8]], "decoder": [[], [12]], "middle": [16], "up_width": 0},
        ),
        ("dsunet-s-gray", {"finish": 0}, {"finish": 0, "up_width": 32, "widths": [40, 64]}),
        ("edsr-s", {"width": 8, "blocks": [8]}, {"width": 12, "blocks": [16, 12, 8]}),
    ],
)  # fmt: skip
def test_the_same_function_with_room(name: str, small: dict[str, Any], large: dict[str, Any]) -> None:
    smaller, larger = _lively(name, **small), models.create(name, **large)
    assert larger.parameter_count() > smaller.parameter_count()
    assert grow(smaller, larger) is larger
    torch.testing.assert_close(_outputs(larger), _outputs(smaller), rtol=0, atol=1e-5)


def test_what_was_added_learns() -> None:
    larger = grow(_lively("dsunet-n"), models.create("dsunet-n", widths=[24, 40], middle=[80] * 5, finish=40)).train()
    optimizer = torch.optim.SGD(larger.parameters(), lr=0.1)
    noisy = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    before = {name: value.detach().clone() for name, value in larger.named_parameters()}
    for _ in range(2):  # what is read by zeros alone moves from the second step on
        optimizer.zero_grad()
        (larger(noisy, torch.tensor([0.1])) - 0.5).square().mean().backward()
        optimizer.step()
    for name, value in larger.named_parameters():
        moved = (value.detach() != before[name]).reshape(len(value), -1).any(1)
        assert moved.float().mean() > 0.5, name  # some channels are dead on this one image


@pytest.mark.parametrize(
    ("large", "why"),
    [
        ({"widths": [12, 32]}, r"head\.weight is \(12, 12, 3, 3\) there and \(16, 12, 3, 3\) here"),
        ({"middle": [72] * 3}, r"it has no layer middle\.3\.depthwise"),
        ({"finish": 0}, r"it has no layer finish"),
        ({"up_width": 0, "finish": 32}, r"finish reads 1 tensor there and 2 here"),
        # The shapes are the same, the function is not.
        ({"sigma_level": 0, "widths": [32, 32]}, r"filled with its weights it gives outputs up to .* apart"),
    ],
)
def test_what_cannot_grow(large: dict[str, Any], why: str) -> None:
    larger = models.create("dsunet-n", **large)
    with pytest.raises(
        CheckpointError, match=rf"dsunet .* cannot begin as dsunet .*: {why}; give a model that is larger"
    ):
        grow(_lively("dsunet-n"), larger)


@pytest.mark.parametrize(("one", "other"), [*itertools.permutations(["dsunet-n", "dsunet-s-gray", "ffdnet-color"], 2)])
def test_only_within_an_architecture(one: str, other: str) -> None:
    with pytest.raises(CheckpointError, match="expected two sizes of one architecture, for images of as many channels"):
        grow(models.create(one), models.create(other))
