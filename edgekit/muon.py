"""Muon: momentum whose update is made orthogonal, for the kernels that mix channels; AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Five iterations bring every singular value to 0.7..1.2 with these, from Jordan et al. 2024.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# An orthogonal matrix times this and the root of its longer side has the entries that an AdamW step has (Liu et al.
# 2025, arXiv:2502.16982): one learning rate serves both.
_ADAM_SIZE = 0.2
# Entries of a matrix of norm 1 that count as 0.
_NOTHING = 1e-12


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) beside AdamW.

    A convolution that mixes channels is a matrix, output channels by the rest; its update is the momentum's nearest
    orthogonal matrix, by Newton-Schulz iteration. Depthwise kernels and biases, which are no matrices, take AdamW.
    torch.optim.Muon takes matrices alone, not convolutions.

    Args:
        groups: parameter groups, as for AdamW.
        lr: learning rate of both kinds.
        momentum: of the matrices, Nesterov's.
        weight_decay: decoupled, as AdamW has it.
        fused: of AdamW.
        arithmetic: what the iteration multiplies in. In torch.bfloat16, as Jordan et al. have it, the singular values
            stay within the same 0.7 to 1.2, and on a processor that has it the large matrices take a third of the time:
            a step of dsunet-m a sixth less.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 1e-4,
        fused: bool | None = None,
        arithmetic: torch.dtype = torch.float32,
    ) -> None:
        split: list[dict[str, Any]] = []
        for group in groups:
            for matrices in (True, False):
                chosen = [p for p in group["params"] if _is_matrix(p) == matrices]
                if chosen:
                    split.append({**group, "params": chosen, "matrices": matrices, "momentum": momentum})
        super().__init__(split, lr, weight_decay=weight_decay, fused=fused)
        self._arithmetic = arithmetic

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step with both kinds."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            loss = super().step(closure) if self.param_groups else None
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                # AdamW, which reads a saved state back, looks for a step in every one.
                state.update(momentum_buffer=torch.zeros_like(parameter), step=torch.zeros(()))
            momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(parameter.grad)
            ahead = parameter.grad.add(momentum, alpha=group["momentum"]).flatten(1)
            by_shape.setdefault((ahead.shape[0], ahead.shape[1]), []).append((parameter, ahead))
        for shape, members in by_shape.items():
            # Matrices of one shape go through together: many small products are slow one by one.
            updates = orthogonal(torch.stack([ahead for _, ahead in members]), self._arithmetic)
            rate = group["lr"] * _ADAM_SIZE * max(shape) ** 0.5
            for (parameter, _), update in zip(members, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update.view(parameter.shape), alpha=rate)


def orthogonal(matrices: Tensor, arithmetic: torch.dtype = torch.float32) -> Tensor:
    """The orthogonal matrix near each of [N, rows, columns], by Newton-Schulz iteration: singular values 0.7 to 1.2.

    Returns: float32, whatever the iteration is computed in.
    """
    a, b, c = _COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices.float() if wide else matrices.float().mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    # The momentum of a channel that a ReLU has silenced decays for ever: its products are denormal numbers, which a
    # processor multiplies a hundred times slower, and a training grew four times slower by.
    x = torch.where(x.abs() < _NOTHING, 0.0, x).to(arithmetic).contiguous()
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    x = x.float()
    return x if wide else x.mT


def _is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a kernel that mixes channels: a depthwise one has one input channel."""
    return parameter.ndim > 1 and min(parameter.shape[:2]) > 1
