"""Which parameters learn, and how fast beside the others."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from edgekit.errors import RecipeError
from edgekit.recipe import TrainSettings


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Freeze what `settings.freeze` matches, and group the rest by its factor on the learning rate.

    Returns: groups for an optimiser, each with "params" and "factor".
    Raises: RecipeError: a pattern that matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for setting, patterns in (("freeze", settings.freeze), ("learning_rate_factors", settings.learning_rate_factors)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise RecipeError(
                    f"{setting} pattern {pattern!r} matches no parameter: expected names like "
                    f"{', '.join(names[:3])}, ..., {names[-1]}; * stands for any characters"
                )
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        frozen = any(fnmatchcase(name, pattern) for pattern in settings.freeze)
        parameter.requires_grad_(not frozen)
        if not frozen:
            factors = (f for pattern, f in settings.learning_rate_factors.items() if fnmatchcase(name, pattern))
            groups.setdefault(next(factors, 1.0), []).append(parameter)
    if not groups:
        raise RecipeError(
            f"freeze {list(settings.freeze)} freezes all {len(names)} parameters: nothing is left to train"
        )
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
