"""A larger network that begins as a smaller one: the same function, with room to learn more.

After Net2Net (Chen, Goodfellow and Shlens 2016, arXiv:1511.05641), but for how channels are added: not as copies of
others, which noise must tell apart, but with random weights that nothing reads yet. What reads them begins at zero, and
has a gradient from the first step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgekit.errors import CheckpointError
from edgekit.models.base import DenoiserModel

# Sums of float32 in another order, for an image of 0..1.
TOLERANCE = 1e-4


def grow(smaller: DenoiserModel, larger: DenoiserModel) -> DenoiserModel:
    """Give `larger`, whose weights are random, the function of `smaller`.

    Both are of one architecture, and `larger` has at least as many channels everywhere. Blocks that `smaller` does not
    have must begin as the identity, as those of this package with a residual do: their last convolution is zeros.

    Returns: `larger`, filled in place, in eval mode.
    Raises: CheckpointError: a layer of `smaller` has no place in `larger`, or the two are not the same function.
    """
    if smaller.arch != larger.arch or smaller.channels != larger.channels:
        raise CheckpointError(
            f"{_words(larger)} cannot begin as {_words(smaller)}: expected two sizes of one architecture, "
            "for images of as many channels"
        )
    old, new = smaller.state_dict(), larger.state_dict()
    homeless = next((name for name in old if name not in new), None)
    if homeless is not None:
        raise CheckpointError(_refusal(smaller, larger, f"it has no layer {homeless.rpartition('.')[0]}"))
    parts, places = smaller.inputs_side_by_side(), larger.inputs_side_by_side()
    for name, value in old.items():
        layer = name.rpartition(".")[0]
        here, there = parts.get(layer, value.shape[1:2]), places.get(layer, new[name].shape[1:2])
        if value.dim() > 1 and len(here) != len(there):
            tensors = f"{len(there)} tensor{'s' * (len(there) > 1)} there and {len(here)} here"
            raise CheckpointError(_refusal(smaller, larger, f"{layer} reads {tensors}"))
        fits = value.dim() == new[name].dim() and value.shape[2:] == new[name].shape[2:]
        if not fits or any(a > b for a, b in zip(value.shape, new[name].shape, strict=True)):
            shapes = f"{name} is {tuple(new[name].shape)} there and {tuple(value.shape)} here"
            raise CheckpointError(_refusal(smaller, larger, shapes))
        new[name] = _placed(value, new[name].clone(), here, there)
    larger.load_state_dict(new)
    _check_same(smaller.eval(), larger.eval())
    return larger


def _placed(old: Tensor, new: Tensor, parts: Sequence[int], places: Sequence[int]) -> Tensor:
    """`new` with `old` in its first rows, which read nothing else.

    Args:
        parts, places: how many inputs come from each of the tensors that are set side by side, in `old` and in `new`.
    """
    rows = len(old)
    if old.dim() == 1:
        new[:rows] = old
        return new
    new[:rows] = 0
    here = there = 0
    for part, place in zip(parts, places, strict=True):
        new[:rows, there : there + part] = old[:, here : here + part]
        here, there = here + part, there + place
    return new


def _check_same(smaller: DenoiserModel, larger: DenoiserModel) -> None:
    """The rules above know no architecture: whether they hold for this one is seen from outputs."""
    size = 8 * max(smaller.stride, larger.stride)
    noise = torch.Generator().manual_seed(0)
    noisy = torch.rand((2, smaller.channels, size, size), generator=noise)
    sigma = torch.tensor([5 / 255, 50 / 255])
    with torch.inference_mode():
        apart = (smaller(noisy, sigma) - larger(noisy, sigma)).abs().max().item()
    if not apart <= TOLERANCE:
        raise CheckpointError(
            _refusal(smaller, larger, f"filled with its weights it gives outputs up to {apart:.2g} apart")
        )


def _refusal(smaller: DenoiserModel, larger: DenoiserModel, why: str) -> str:
    return (
        f"{_words(larger)} cannot begin as {_words(smaller)}: {why}; give a model that is larger in every layer and of "
        "the same kind of layers, or begin with random weights"
    )


def _words(model: DenoiserModel) -> str:
    return f"{model.arch} {model.config()}"
