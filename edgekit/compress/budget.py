"""A budget of dB: the fewest layers that stay in float so that integers lose no more than is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.bundle.manifest import Sensitivity
from edgekit.compress.program import QuantizedProgram

# Share of the excess that must be won back for layers to stay in float. Losses do not add up, so half may well be all.
_WORTH = 0.5
# dB that a tensor must cost alone to be worth float layers: on the few tiles it is measured on, less is chance.
_LEAST = 0.01


@dataclass(frozen=True)
class Wide:
    """Layers that stay in float so that a tensor between them is not rounded.

    Attributes:
        layers: module paths: the one that writes the tensor, and those that read it.
        tensor: what it would have cost, alone.
    """

    layers: frozenset[str]
    tensor: Sensitivity

    def told(self) -> str:
        """In words: which, and why."""
        why = f", {self.tensor.cause}" if self.tensor.cause else ""
        names = ", ".join(sorted(self.layers))
        return f"{names} in float (the integers between them alone cost {self.tensor.mean:.2f} dB{why})"


def choose(
    program: QuantizedProgram,
    sensitivity: Sequence[Sensitivity],
    macs: Mapping[str, float],
    *,
    excess: float,
    least: float,
) -> list[Wide]:
    """The tensors to leave unrounded next: by what they cost alone, until that is what is lost too much.

    A layer between two others in integers cannot be float alone - a converter makes it integer again - so what can be
    chosen are tensors that one convolution writes and convolutions read: all of these become float.

    Args:
        program: the program that loses too much.
        sensitivity: what each of its tensors costs alone.
        macs: of each layer.
        excess: dB lost above the budget.
        least: share of the MACs that must stay in integers.
    Returns: what to leave, the costliest first; empty where all that could be left would not win back half of the
        excess: then float layers cost time and do not help.
    """
    if excess <= 0:
        return []
    total, wide = sum(macs.values()), set(program.scheme.wide)
    between = program.between()
    ranked = sorted((i for i in sensitivity if i.kind == "activations" and i.mean >= _LEAST), key=lambda i: -i.mean)
    chosen: list[Wide] = []
    won = 0.0
    for item in ranked:
        layers = between.get(item.name, frozenset())
        left = sum(macs.get(name, 0.0) for name in wide | layers)
        if not layers or layers <= wide or 1 - left / total < least:
            continue
        chosen.append(Wide(layers, item))
        wide |= layers
        won += item.mean
        if won >= excess:
            break
    return chosen if won >= excess * _WORTH else []
