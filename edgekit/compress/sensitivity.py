"""What each quantized tensor costs alone: dB lost by noise level, activations and weights apart, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgekit.bundle.manifest import Sensitivity
from edgekit.compress.batches import Progress, silent
from edgekit.compress.evaluate import NoisyTiles, Tiles, evaluate
from edgekit.compress.fake_quant import LearnedRange
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.pt2e import FakeQuantizeBase
from edgekit.compress.record import SIGMAS

# Tiles that it is measured on: enough to rank tensors, in some 15 seconds for a student.
_TILES = 3
# A channel is wide when it fills so much of its tensor's range; a range is set by few when at most so many are wide.
_WIDE, _FEW = 0.5, 1 / 8
# A level counts as seen when calibration came so near, as a share of the level or of the span of what was seen.
_NEAR = 0.1
# Share of a tensor's values outside its range from which that counts as the cause.
_CUT = 0.01


def sensitivity(
    program: QuantizedProgram, tiles: Tiles, sigmas: Sequence[float] = SIGMAS, progress: Progress = silent
) -> tuple[Sensitivity, ...]:
    """Quantize one tensor at a time and measure what the image loses against the program in float.

    Where the image and sigma enter as integers, these are left out: they are given, and exact for 8-bit images.

    Args:
        program: with ranges, learned or observed.
        tiles: held-out tiles, of which the first few are used.
        sigmas: noise levels in 8-bit units.
        progress: told how many tensors are measured.
    Returns: one entry a tensor, activations in the order they are written, then weights; dB may be negative, where
        rounding happens to help.
    """
    few: Tiles
    if isinstance(tiles, NoisyTiles):
        few = NoisyTiles(tiles.clean[:_TILES], tiles.noisy[:_TILES], tiles.sigma[:_TILES])
    else:
        few = tiles[:_TILES]
    tensors = program.tensors()
    weights = [(layer.name, layer.weight) for layer in program.layers() if layer.weight is not None]
    total = len(tensors) + len(weights)
    found: list[Sensitivity] = []

    def tell() -> None:
        progress(len(found), total, "what each tensor costs")

    tell()
    watched = _watch(program, few, sigmas)
    with program.in_float():
        reference = evaluate(program, few, sigmas)

    def lost(*quantizers: FakeQuantizeBase) -> dict[str, float]:
        with program.only(*quantizers):
            found = evaluate(program, few, sigmas)
        return {f"{level:g}": round(reference[level] - db, 4) for level, db in found.items()}

    for name, bounds in tensors:
        told = lost(bounds)
        causes = (_unseen(program, told), _cause(bounds, watched[bounds]))
        found.append(Sensitivity(name, "activations", told, "; ".join(filter(None, causes))))
        tell()
    for name, weight in weights:
        found.append(Sensitivity(name, "weights", lost(weight)))
        tell()
    return tuple(found)


@dataclass
class _Seen:
    """What went through an activation quantizer: the parts of a concatenation share one, and values that are moved.

    Attributes:
        ends: lowest and highest value of each channel, by the number of channels, in the order they came.
        outside: values outside of `bounds`.
        count: values.
    """

    ends: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    outside: int = 0
    count: int = 0
    bounds: tuple[float, float] = field(default=(0.0, 0.0))

    def add(self, x: Tensor) -> None:
        # A constant that is added or multiplied may be one number, or one a channel.
        channels = x.detach().reshape(1, -1) if x.dim() < 2 else x.detach().transpose(0, 1).flatten(1)
        lower, upper = channels.amin(1), channels.amax(1)
        before = self.ends.get(len(lower), (lower, upper))
        self.ends[len(lower)] = torch.minimum(before[0], lower), torch.maximum(before[1], upper)
        self.outside += int(((x < self.bounds[0]) | (x > self.bounds[1])).sum())
        self.count += x.numel()


def _watch(program: QuantizedProgram, tiles: Tiles, sigmas: Sequence[float]) -> dict[LearnedRange, _Seen]:
    """Run the program in float and look at every tensor that would be rounded."""
    seen: dict[LearnedRange, _Seen] = {}
    handles = []
    for _, bounds in program.tensors():
        scale, zero_point = (float(t) for t in bounds.calculate_qparams())
        ends = ((q - zero_point) * scale for q in (bounds.quant_min - 0.5, bounds.quant_max + 0.5))
        entry = seen[bounds] = _Seen(bounds=(next(ends), next(ends)))
        handles.append(bounds.register_forward_pre_hook(lambda _, inputs, entry=entry: entry.add(inputs[0])))
    try:
        with program.in_float():
            evaluate(program, tiles, sigmas)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _unseen(program: QuantizedProgram, lost: Mapping[str, float]) -> str:
    """Whether a tensor loses most at a noise level that its range never saw."""
    if program.observed is None or not lost:
        return ""
    low, high = (255 * level for level in program.observed)
    level = max(lost, key=lost.__getitem__)
    worst = float(level)
    # Random levels never reach the ends of their range.
    margin = max(1.0, _NEAR * (high - low), _NEAR * worst)
    if lost[level] <= 0 or low - margin <= worst <= high + margin:
        return ""
    return f"calibration saw no sigma {f'below {low:.3g}' if worst < low else f'above {high:.3g}'}"


def _cause(bounds: LearnedRange, seen: _Seen) -> str:
    """Why a tensor may lose more than others, in words; "" where nothing stands out."""
    if not seen.count:
        return ""
    cut = seen.outside / seen.count
    if cut > _CUT:
        return f"saturation: {cut:.1%} of its values lie outside its range"
    span = float(
        max(upper.amax() for _, upper in seen.ends.values()) - min(low.amin() for low, _ in seen.ends.values())
    )
    for lower, upper in seen.ends.values():
        if wide := int(((upper - lower) > _WIDE * span).sum()):
            count = len(upper)
            return f"its range is set by {wide} of {count} channels" if wide <= _FEW * count else ""
    return ""
