"""Where the ranges of a program's tensors begin.

Least squared error over all that was seen is all that QAT needs. But it is at the mercy of single images: a crop of
clutter under faint noise makes the last block of dsunet-s reach several times as far as any other image does, and where
calibration sees one, the steps of its tensors become as many times as coarse for all. Fitted image by image they are
not; but published FFDNet loses by that. So where no training follows, both are tried. A tensor whose channels are
equalised afterwards is fitted by least squares, either way.

What is subtracted from the image to give the output is a case of its own: rounded to steps of another size than the
image's it is rounded twice, once for itself and once with the output. Where it fits into 256 levels it takes the
image's own step, and the difference is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgekit.compress.batches import Batch
from edgekit.compress.bias_correction import correct_biases
from edgekit.compress.fake_quant import Fit, LearnedRange
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.share import share
from edgekit.recipe import QuantizeSettings

# The step of the image's integers.
_LEVEL = 1 / 255
_TRIED: tuple[Fit, ...] = ("least-squares", "per-image")


def fit_ranges(program: QuantizedProgram, observed: Sequence[Batch], settings: QuantizeSettings) -> None:
    """Fit the ranges of a program that has observed, and make them parameters; `program.range_fit` says how.

    Args:
        observed: the noisy batches that it saw, with the clean images.
        settings: of them `range_fit`, `steps` and `bias_correction` count.
    """
    chosen = _best(program, observed, settings) if settings.range_fit == "auto" else settings.range_fit
    for bounds in program.ranges:
        bounds.learn(None if chosen == "extremes" else chosen)
    program.exact_residual = _pinned(program.residual())
    program.range_fit = chosen


def _pinned(residual: LearnedRange | None) -> bool:
    """Give a residual the image's steps if it fits into as many; whether it does."""
    if residual is None:
        return False
    lower, upper = residual.ends()
    fits = residual.quant_min * _LEVEL <= lower and upper <= residual.quant_max * _LEVEL
    if fits:
        residual.pin(_LEVEL)
    return fits


def _best(program: QuantizedProgram, observed: Sequence[Batch], settings: QuantizeSettings) -> Fit:
    if settings.steps:
        return "least-squares"
    for bounds in program.ranges:
        # Or it would observe once more.
        bounds.fit(None)
    with program.in_float(), torch.no_grad():
        taught = [program(batch.noisy, batch.sigma) for batch in observed]
    lost = {fit: _lost(program, observed, taught, fit, correct=settings.bias_correction) for fit in _TRIED}
    return min(_TRIED, key=lambda fit: lost[fit])


def _lost(
    program: QuantizedProgram, observed: Sequence[Batch], taught: Sequence[Tensor], fit: Fit, *, correct: bool
) -> float:
    """What the integers lose with such ranges on the observed images, the mean of 10 log10(1 + share) in dB."""
    for bounds in program.ranges:
        bounds.fit(fit)
    _pinned(program.residual())
    before = {name: value.detach().clone() for name, value in program.module.named_parameters()}
    if correct:
        correct_biases(program, observed)
    with torch.no_grad():
        shares = [
            share(program(batch.noisy, batch.sigma), output, batch.clean)
            for batch, output in zip(observed, taught, strict=True)
        ]
        program.shift_back()
        # What was taken off and added again need not be what it was, to the last bit.
        for name, value in program.module.named_parameters():
            value.copy_(before[name])
    return float(10 * torch.log10(1 + torch.cat(shares)).mean())
