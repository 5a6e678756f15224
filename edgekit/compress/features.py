"""Imitating a teacher's features: the outputs of named modules, compared through 1x1 adapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgekit.errors import RecipeError, UnknownNameError
from edgekit.models.base import DenoiserModel


@contextmanager
def tapped(model: DenoiserModel, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """While it lasts, each forward pass leaves the outputs of the named modules in the dictionary.

    Raises: UnknownNameError: a name the model has no module of.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}
    hooks = []
    try:
        for name in names:
            if name not in modules or not name:
                raise UnknownNameError.unknown(f"module of {model.arch}", name, filter(None, modules))

            def keep(module: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
                outputs[name] = output

            hooks.append(modules[name].register_forward_hook(keep))
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class FeatureLoss(nn.Module):
    """Distance of a student's features to a teacher's, in units of the teacher's variance, averaged over the pairs.

    The student's pass through a 1x1 convolution each, learned with the student and dropped afterwards: it need not
    have the teacher's channels, only something that they can be made of (Romero et al. 2015, arXiv:1412.6550).

    Args:
        pairs: module of the student -> module of the teacher.
        student, teacher: features of one batch by module name, [N, C, H, W]; they tell the sizes.
        seed: of the adapters' first weights.
    Raises: RecipeError: a pair that works at different resolutions.
    """

    def __init__(
        self, pairs: Mapping[str, str], student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], seed: int
    ) -> None:
        super().__init__()
        self._pairs = dict(pairs)
        for mine, theirs in self._pairs.items():
            if student[mine].shape[2:] != teacher[theirs].shape[2:]:
                sizes = ["x".join(map(str, t.shape[2:])) for t in (student[mine], teacher[theirs])]
                raise RecipeError(
                    f"features pair {mine!r} of the student ({sizes[0]}) with {theirs!r} of the teacher ({sizes[1]}): "
                    "expected modules of one resolution"
                )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adapters = nn.ModuleList(
                nn.Conv2d(student[mine].shape[1], teacher[theirs].shape[1], 1) for mine, theirs in self._pairs.items()
            )

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for adapter, (mine, theirs) in zip(self.adapters, self._pairs.items(), strict=True):
            target = teacher[theirs].float()
            error = (adapter(student[mine]).float() - target).square().mean()
            total = total.to(error.device) + error / target.var().clamp_min(1e-8)
        return total / len(self._pairs)
