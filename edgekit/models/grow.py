"""A larger network that begins as a smaller one: the same function, with room to learn more.

After Net2Net (Chen, Goodfellow and Shlens 2016, arXiv:1511.05641), but for how channels are added: not as copies of
others, which noise must tell apart, but with random weights that nothing reads yet. What reads them begins at zero, and
has a gradient from the first step.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekit.errors import CheckpointError
from edgekit.models.base import DenoiserModel
from edgekit.models.checkpoints import presets_of

# Sums of float64 in another order, in parts of the largest output.
TOLERANCE = 1e-9


def grow(smaller: DenoiserModel, larger: DenoiserModel) -> DenoiserModel:
    """Give `larger`, whose weights are random, the function of `smaller`.

    Additional blocks must begin as the identity, as those with a residual do whose last convolution begins as zeros
    (dsunet, edsr, nafnet). Channels may be added where no layer looks at all of them at once, as a norm over them does.

    Args:
        smaller: untouched.
        larger: of the same architecture, with at least as many channels and blocks everywhere, and the same levels.
    Returns: `larger`, filled in place; untouched where it is refused.
    Raises: CheckpointError: a layer of `smaller` has no place in `larger`, or the two are not the same function.
    """
    if smaller.arch != larger.arch or smaller.channels != larger.channels:
        raise CheckpointError(
            f"{_words(larger)} cannot begin as {_words(smaller)}: expected two sizes of one architecture, "
            "for images of as many channels; name weights of a smaller one, or begin with random weights"
        )
    filled = copy.deepcopy(larger)
    # Tensors of `filled` itself, which are written into.
    old, new, kinds = smaller.state_dict(), filled.state_dict(), dict(filled.named_modules())
    parts, places = smaller.inputs_side_by_side(), larger.inputs_side_by_side()
    for name, value in old.items():
        layer = name.rpartition(".")[0]
        if name not in new:
            raise CheckpointError(_refusal(smaller, larger, f"the model has no layer {layer}"))
        shapes = f"{name} is {tuple(value.shape)} in the weights, {tuple(new[name].shape)} in the model"
        if value.dim() != new[name].dim() or any(a > b for a, b in zip(value.shape, new[name].shape, strict=True)):
            raise CheckpointError(_refusal(smaller, larger, shapes))
        # A transposed convolution has its inputs first.
        turned = value.dim() > 1 and isinstance(kinds[layer], nn.ConvTranspose2d)
        value, place = (value.transpose(0, 1), new[name].transpose(0, 1)) if turned else (value, new[name])
        if value.shape[2:] != place.shape[2:]:
            raise CheckpointError(_refusal(smaller, larger, shapes))
        _put(value, place, parts.get(layer, value.shape[1:2]), places.get(layer, place.shape[1:2]))
    _check_same(smaller, filled)
    larger.load_state_dict(new)
    return larger


def _put(old: Tensor, new: Tensor, parts: Sequence[int], places: Sequence[int]) -> None:
    """Write `old` into the first rows of `new`, which then read nothing else.

    Args:
        parts, places: how many inputs come from each of the tensors that are set side by side, in `old` and in `new`.
    """
    if not old.dim():
        new.copy_(old)
        return
    rows = len(old)
    if old.dim() == 1:
        new[:rows] = old
        return
    new[:rows] = 0
    here = there = 0
    for part, place in zip(parts, places, strict=False):
        new[:rows, there : there + part] = old[:, here : here + part]
        here, there = here + part, there + place


def _check_same(smaller: DenoiserModel, filled: DenoiserModel) -> None:
    """The rules above know no architecture: whether they hold for this one is seen from outputs."""
    size = 8 * max(smaller.stride, filled.stride)
    noise = torch.Generator().manual_seed(0)
    noisy = torch.rand((2, smaller.channels, size, size), generator=noise, dtype=torch.float64)
    sigma = torch.tensor([5 / 255, 50 / 255], dtype=torch.float64)
    with torch.inference_mode():
        wanted, found = (copy.deepcopy(model).cpu().double().eval()(noisy, sigma) for model in (smaller, filled))
    apart, most = (found - wanted).abs().max().item(), wanted.abs().max().item()
    if not apart <= TOLERANCE * max(most, 1):
        raise CheckpointError(_refusal(smaller, filled, f"filled with them it gives outputs up to {apart:.2g} apart"))


def _refusal(smaller: DenoiserModel, larger: DenoiserModel, why: str) -> str:
    theirs, ours = smaller.config(), larger.config()
    differing = "; ".join(
        f"{key} {theirs[key]} in the weights, {ours[key]} in the model" for key in ours if theirs[key] != ours[key]
    )
    return (
        f"{_words(larger)} cannot begin as {_words(smaller)}: {why}. They differ in {differing or 'nothing'}: expected "
        "as many channels and blocks everywhere, or more, and the same levels and kinds of layers; give the model such "
        "a config, or begin with random weights"
    )


def _words(model: DenoiserModel) -> str:
    named = presets_of(model.arch, model.config())
    colour = "gray" if model.channels == 1 else "colour"
    return named[0] if named else f"a {colour} {model.arch} of {model.macs_per_pixel():,.0f} MACs/px"
