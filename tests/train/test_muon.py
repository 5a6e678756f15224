"""Muon: orthogonal updates for kernels that mix channels, AdamW's for the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgekit.models import create
from edgekit.muon import Muon, orthogonal
from edgekit.recipe import TrainSettings
from edgekit.train.optimizers import optimizer


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 36), (2, 36, 4)])
def test_singular_values_come_near_one(shape: tuple[int, int, int], arithmetic: torch.dtype) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(1000 * matrices, arithmetic)
    assert found.shape == shape
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    # The nearest orthogonal matrix has the same singular vectors.
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    nearest = u @ vh
    assert (found * nearest).sum() / (found.norm() * nearest.norm()) > 0.97


def test_matrices_move_by_an_orthogonal_step_and_the_rest_as_adamw_moves_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    twin = copy.deepcopy(model)
    muon = Muon([{"params": list(model.parameters()), "factor": 1.0}], 0.01, weight_decay=0.0)
    adam = torch.optim.AdamW(twin.parameters(), 0.01, weight_decay=0.0)
    before = model[0].weight.detach().clone()
    for network, by in ((model, muon), (twin, adam)):
        network(torch.ones(1, 4, 8, 8)).square().sum().backward()
        by.step()
    values = torch.linalg.svdvals((model[0].weight - before).detach().flatten(1))
    step = 0.01 * 0.2 * 36**0.5
    # The gradient of a constant image has few directions; those it has move by the whole step.
    assert step * 0.6 < values.max() < step * 1.3
    assert not torch.equal(model[0].weight, twin[0].weight)
    torch.testing.assert_close(model[0].bias, twin[0].bias)
    torch.testing.assert_close(model[1].weight, twin[1].weight)


@pytest.mark.parametrize(("precision", "same"), [("32-true", True), ("bf16-mixed", False)])
def test_the_iteration_is_in_the_arithmetic_of_the_run(precision: str, same: bool) -> None:
    torch.manual_seed(0)
    one = nn.Conv2d(4, 8, 3)
    two = copy.deepcopy(one)
    settings = TrainSettings(optimizer="muon", learning_rate=0.01, precision=precision)
    for network, by in (
        (one, Muon([{"params": list(one.parameters())}], 0.01)),
        (two, optimizer([{"params": list(two.parameters())}], settings)),
    ):
        network(torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))).square().sum().backward()
        by.step()
    assert torch.equal(one.weight, two.weight) is same
    # Rounded to 8 bits on the way, and still the same step: it is 0.012 long.
    torch.testing.assert_close(one.weight, two.weight, atol=1e-3, rtol=0)


def test_decay_shrinks_what_no_gradient_moves() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    muon = Muon([{"params": [weight], "factor": 1.0}], 0.1, weight_decay=0.5)
    weight.grad = torch.zeros(4, 4)
    muon.step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 0.95))


def test_its_state_is_restored() -> None:
    def run(model: nn.Module, by: Muon, steps: int) -> None:
        for _ in range(steps):
            by.zero_grad()
            model(torch.full((1, 3, 16, 16), 0.5), torch.tensor([0.1])).square().sum().backward()
            by.step()

    torch.manual_seed(0)
    model = create("dsunet-n")
    first = Muon([{"params": list(model.parameters()), "factor": 1.0}], 0.01)
    run(model, first, 2)
    other = copy.deepcopy(model)
    restored = Muon([{"params": list(other.parameters()), "factor": 1.0}], 0.01)
    restored.load_state_dict(copy.deepcopy(first.state_dict()))
    run(model, first, 2)
    run(other, restored, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
