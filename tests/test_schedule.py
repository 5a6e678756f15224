"""The learning rate and the average, by numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.schedule import Average, cosine


def test_the_rate_rises_to_its_peak_and_falls_to_a_ten_thousandth() -> None:
    rates = [cosine(step, 110, 1.0, warmup=10) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5, abs=1e-4)
    assert cosine(110, 110, 1.0, warmup=10) == pytest.approx(1e-4)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_warm_up_takes_at_most_a_tenth_of_the_run() -> None:
    rates = [cosine(step, 40, 1.0, warmup=500) for step in range(40)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[-1] < 0.01
    assert cosine(0, 2, 1.0, warmup=4) == 1.0


def test_the_average_forgets_the_start_first_and_then_decays() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    average = Average([weight], decay=0.5)
    with torch.no_grad():
        weight.fill_(10.0)
    average.update(0)  # decay (1 + 0) / (10 + 0)
    assert average.values[0].item() == pytest.approx(9.0)
    average.update(1000)
    assert average.values[0].item() == pytest.approx(9.5)
    restored = Average([weight], decay=0.5)
    restored.load_state_dict(average.state_dict())
    restored.apply()
    assert weight.item() == pytest.approx(9.5)
