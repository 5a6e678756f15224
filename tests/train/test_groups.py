"""Frozen and slowed parameters."""

from __future__ import annotations

import pytest

from edgekit import models
from edgekit.errors import RecipeError
from edgekit.recipe import TrainSettings
from edgekit.train.groups import parameter_groups


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
