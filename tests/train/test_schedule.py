"""Learning rates and frozen parameters."""

from __future__ import annotations

import pytest

from edgekit import models
from edgekit.errors import RecipeError
from edgekit.recipe import TrainSettings
from edgekit.train.schedule import learning_rate, parameter_groups


def test_warm_up_then_cosine() -> None:
    settings = TrainSettings(steps=100, warmup=10, learning_rate=1e-3)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5e-3, rel=1e-3)
    assert rates[99] == pytest.approx(1e-7, rel=10)


def test_without_warm_up() -> None:
    assert learning_rate(0, TrainSettings(steps=10, warmup=0, learning_rate=1e-3)) == pytest.approx(1e-3)


def test_frozen_and_slowed_parameters() -> None:
    model = models.create("dsunet-n", widths=[8, 8], middle=[16])
    settings = TrainSettings(freeze=("head.*", "sigma_bias.*"), learning_rate_factors={"tail.*": 0.1, "*": 0.5})
    groups = parameter_groups(model, settings)
    named = dict(model.named_parameters())
    frozen = {name for name, p in named.items() if not p.requires_grad}
    assert frozen == {n for n in named if n.startswith(("head.", "sigma_bias."))}
    by_factor = {group["factor"]: {id(p) for p in group["params"]} for group in groups}
    assert by_factor[0.1] == {id(named["tail.weight"]), id(named["tail.bias"])}
    assert len(by_factor[0.5]) == len(named) - len(frozen) - 2


def test_no_pattern_is_one_group() -> None:
    model = models.create("dsunet-n")
    (group,) = parameter_groups(model, TrainSettings())
    assert group["factor"] == 1.0
    assert len(group["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"freeze": ("encoder9.*",)},
            r"freeze pattern 'encoder9\.\*' matches no parameter: expected names like head\.w",
        ),
        ({"learning_rate_factors": {"heads": 2.0}}, "learning_rate_factors pattern 'heads' matches no parameter"),
        ({"freeze": ("*",)}, "freezes all .* nothing is left to train"),
    ],
)
def test_patterns_that_do_not_fit(change: dict[str, object], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        parameter_groups(models.create("dsunet-n"), TrainSettings.model_validate(change))
