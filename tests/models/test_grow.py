"""A larger network begins as a smaller one."""

from __future__ import annotations

import copy
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
    generator = torch.Generator().manual_seed(2)
    noisy = torch.rand((1, model.channels, 64, 64), generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        return copy.deepcopy(model).double().eval()(noisy, torch.tensor([0.1], dtype=torch.float64))


_SUM = {"up_width": 0, "finish": 0}
_DENSE = {"width": 8, "branch": 4, "dilations": [2]}


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        # Streams, hidden channels, blocks, and both halves of what is set side by side.
        ("dsunet-n", {}, {"widths": [24, 40], "middle": [80, 72, 96, 72, 40, 40], "up_width": 12, "finish": 40}),
        ("dsunet-s-gray", {"finish": 0}, {"finish": 0, "up_width": 32, "widths": [40, 64]}),
        ("dsunet-gpu-s", {"up_width": 8}, {"widths": [40, 64], "middle": [160] * 5, "up_width": 12, "finish": 80}),
        # Blocks on levels that had none, and a sum in place of tensors side by side.
        (
            "dsunet-n",
            {**_SUM, "widths": [8, 16, 24], "encoder": [[], [8]], "decoder": [[], []], "middle": [16]},
            {**_SUM, "widths": [8, 20, 24], "encoder": [[8], [8, 8]], "decoder": [[], [12]], "middle": [16]},
        ),
        ("dsunet-gpu-s", {**_SUM, "widths": [8, 16]}, {**_SUM, "widths": [12, 24]}),
        ("edsr-s", {"width": 8, "blocks": [8]}, {"width": 12, "blocks": [16, 12, 8]}),
        ("unet", {"widths": [8, 8, 8]}, {"widths": [12, 16, 8], "middle": [192] * 4}),
        ("dncnn-25", {"widths": [8, 8]}, {"widths": [12, 16]}),
        ("ffdnet-color", {"widths": [8, 8]}, {"widths": [12, 16]}),
        ("autoencoder", {"widths": [8, 8]}, {"widths": [8, 12]}),
        ("nafnet-width8", {}, {"encoder": [1, 2], "middle": 3}),
        ("mwrcanet-s", {}, {"widths": [32, 40, 48]}),
        # Dense layers read what all before them wrote.
        ("mrdn", {**_DENSE, "groups": [[[4, 4], [4, 4]]]}, {**_DENSE, "width": 12, "groups": [[[6, 8], [4, 5]]]}),
    ],
)
def test_the_same_function_with_room(name: str, small: dict[str, Any], large: dict[str, Any]) -> None:
    smaller, larger = _lively(name, **small), models.create(name, **large)
    assert larger.parameter_count() > smaller.parameter_count()
    assert grow(smaller, larger) is larger
    wanted = _outputs(smaller)
    torch.testing.assert_close(_outputs(larger), wanted, rtol=0, atol=1e-9 * max(wanted.abs().max().item(), 1))


@pytest.mark.parametrize(
    "name", ["dsunet-n", "dsunet-gpu-s", "edsr-s", "mrdn-s", "mwrcanet-s", "nafnet-width8", "pmrid"]
)
def test_the_same_size_is_filled(name: str) -> None:
    smaller = _lively(name)
    for key, value in grow(smaller, models.create(name)).state_dict().items():
        assert torch.equal(value, smaller.state_dict()[key])


def test_what_was_added_learns() -> None:
    smaller = _lively("dsunet-n")
    larger = grow(smaller, models.create("dsunet-n", widths=[24, 40], middle=[80] * 5, finish=40)).train()
    optimizer = torch.optim.SGD(larger.parameters(), lr=0.1)
    noisy = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    before = {name: value.detach().clone() for name, value in larger.named_parameters()}
    for _ in range(2):  # what zeros alone read moves from the second step on
        optimizer.zero_grad()
        (larger(noisy, torch.tensor([0.1])) - 0.5).square().mean().backward()
        optimizer.step()
    old = smaller.state_dict()
    for name, value in larger.named_parameters():
        added = (value.detach() != before[name]).reshape(len(value), -1).any(1)[len(old[name]) if name in old else 0 :]
        # Some are dead on this one batch.
        assert not len(added) or added.float().mean() >= 0.4, name


@pytest.mark.parametrize(
    ("large", "why"),
    [
        ({"widths": [12, 32]}, r"head\.weight is \(16, 12, 3, 3\) in the weights, \(12, 12, 3, 3\) in the model\."),
        ({"middle": [72] * 3}, r"the model has no layer middle\.3\.depthwise\."),
        ({"finish": 0}, r"the model has no layer finish\."),
        ({"up_width": 0}, r"finish\.weight is \(32, 24, 1, 1\) in the weights, \(32, 16, 1, 1\) in the model\."),
        # The shapes are the same, the function is not.
        ({"sigma_level": 0, "widths": [32, 32]}, r"filled with them it gives outputs up to .* apart\."),
        (
            {"widths": [16, 32, 32], "encoder": [[], []], "decoder": [[], []]},
            r"filled with them it gives outputs up to",
        ),
    ],
)
def test_what_cannot_grow(large: dict[str, Any], why: str) -> None:
    larger = models.create("dsunet-n", **large)
    before = copy.deepcopy(larger.state_dict())
    key = next(iter(large))
    differing = rf".*They differ in .*{key} .* in the weights, .* in the model.*: expected as many channels and blocks"
    with pytest.raises(
        CheckpointError,
        match=rf"a colour dsunet of [\d,]+ MACs/px cannot begin as dsunet-n: ({why}){differing}",
    ):
        grow(_lively("dsunet-n"), larger)
    for name, value in larger.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("name", "large"),
    [
        # A norm over channels is another one with more of them.
        ("nafnet-width8", {"width": 16}),
        # What a chain has more of is no identity, a dilation and a scale show in no shape.
        ("dncnn-25", {"widths": [64] * 17}),
        ("mrdn-s", {"dilations": [2, 3]}),
        ("edsr-s", {"res_scale": 0.5}),
    ],
)
def test_what_is_another_function_is_refused(name: str, large: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"They differ in .*{next(iter(large))}"):
        grow(_lively(name), models.create(name, **large))


@pytest.mark.parametrize(("one", "other"), [*itertools.permutations(["dsunet-n", "dsunet-s-gray", "ffdnet-color"], 2)])
def test_only_within_an_architecture(one: str, other: str) -> None:
    match = f"{other} cannot begin as {one}: expected two sizes of one architecture, for images of as many channels"
    with pytest.raises(CheckpointError, match=match):
        grow(models.create(one), models.create(other))
