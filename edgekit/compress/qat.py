"""Quantization-aware training: ranges and weights learned together, then what integers cannot say by weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.compress.batches import Batch, Batches, Progress
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.share import share
from edgekit.compress.steps import Checkpoint, finite
from edgekit.errors import RecipeError
from edgekit.losses import weighted
from edgekit.models.base import DenoiserModel
from edgekit.recipe import QuantizeSettings
from edgekit.schedule import Average, cosine

# A share of the float model's error that is not worth learning: 0.0004 dB. Near 0 a root has no end of a slope.
_NOTHING = 1e-4
# Of the first phase's rate of ranges: they are near where they belong.
_SETTLED_RANGES = 0.3
# With fewer steps than these the second phase is left out.
_FEWEST_SETTLING = 20
# How much of the past the average of the second phase holds; nothing jumps there.
_SETTLED_EMA = 0.95


@dataclass(frozen=True)
class _Phase:
    """Steps `first` to `last`, with the rates of what learns in them."""

    first: int
    last: int
    rates: Mapping[nn.Parameter, float]
    range_rate: float
    ema: float


def learn(
    program: QuantizedProgram,
    teacher: DenoiserModel,
    settings: QuantizeSettings,
    batches: Batches,
    progress: Progress,
    checkpoint: Checkpoint,
) -> None:
    """Learn a program whose ranges were observed, in two phases.

    In the first, weights and ranges learn. A weight that ends near the middle between two integers jumps with every
    small step, and no average of such weights is rounded as any of them was: what comes out is partly chance. So in
    the second phase, the last `settle_share` of the steps, weights stand still, and ranges and biases, which are
    fine enough not to be rounded, adapt to the integers that there are.

    Args:
        program: learned in place.
        teacher: the float model.
        settings: as for `quantize`.
        batches: training batches by step number; the first `calibration_batches` are those that were observed.
        progress: called after every step.
        checkpoint: of this run.
    Raises: RecipeError: nothing to learn from. TrainingError: the loss or its gradient is not finite.
    Source: the jumps, Nagel et al. 2022, arXiv:2203.11086, who freeze weights one by one.
    """
    if not (settings.teacher_weight or settings.clean_weight):
        raise RecipeError(
            "teacher_weight and clean_weight are 0: nothing would tell the integers what to do; raise one"
        )
    ranges = [p for bounds in program.ranges for p in bounds.parameters() if p.requires_grad]
    state = checkpoint.load()
    start = 0 if state is None else int(state["step"])
    if state is not None:
        program.module.load_state_dict(state["program"])
    for phase in _phases(program, settings):
        # A run that stopped at the end of a phase still has to take that phase's average.
        if phase.last < start or phase.first == phase.last:
            continue
        optimizer = torch.optim.Adam(
            [
                *({"params": [p], "peak": rate} for p, rate in phase.rates.items()),
                {"params": ranges, "peak": phase.range_rate},
            ]
        )
        average = Average([*phase.rates, *ranges], phase.ema)
        if state is not None and start > phase.first:
            optimizer.load_state_dict(state["optimizer"])
            average.load_state_dict(state["average"])
        moving = {id(p) for p in phase.rates}
        still = [p for p in _weights(program).values() if p.requires_grad and id(p) not in moving]
        for parameter in still:
            parameter.requires_grad_(False)
        for step in range(max(start, phase.first), phase.last):
            for group in optimizer.param_groups:
                group["lr"] = cosine(step - phase.first, phase.last - phase.first, group["peak"], settings.warmup)
            value = _step(program, teacher, settings, batches, checkpoint, optimizer, step, list(phase.rates), ranges)
            average.update(step - phase.first)
            done = step + 1
            if done % settings.save_every == 0 or done == settings.steps:
                checkpoint.save(
                    step=done,
                    program=program.module.state_dict(),
                    optimizer=optimizer.state_dict(),
                    average=average.state_dict(),
                )
            progress(done, settings.steps, f"loss {value:.4f}")
        average.apply()
        for parameter in still:
            parameter.requires_grad_(True)


def rates(program: QuantizedProgram, rate: float) -> dict[str, float]:
    """The peak rate of each convolution's weight and bias by name: `rate` in units of the layer's own scale.

    Adam moves every number by the rate, whatever its size. In step, n inputs move an output by n times the rate, while
    weights of root mean square w make it of the order of w times the root of n. So the unit is w / sqrt(n), and a
    rate means the same relative change in a layer of 9 large weights as in one of 864 small ones.

    What belongs to no convolution - a slope, a norm's scale, a constant of an imported network - is not named: it is
    not rounded, and stands still.

    Source: as Adam's rates are scaled by width in Yang et al. 2022, arXiv:2203.03466.
    """
    kernels = program.kernels()
    scale = {k.weight: float(program.module.get_parameter(k.weight).detach().square().mean().sqrt()) for k in kernels}
    units = {k.weight: scale[k.weight] / k.inputs**0.5 for k in kernels}
    # A layer of zeros has no scale: the middle of the others'.
    above = sorted(unit for unit in units.values() if unit > 0)
    middle = above[len(above) // 2] if above else 1.0
    found: dict[str, float] = {}
    for kernel in kernels:
        found[kernel.weight] = rate * (units[kernel.weight] or middle)
        if kernel.bias is not None:
            found.setdefault(kernel.bias, found[kernel.weight])
    # In the module's order, in which gradients are summed for clipping: the last bits are the same in every run.
    return {name: found[name] for name in _weights(program) if name in found}


def _weights(program: QuantizedProgram) -> dict[str, nn.Parameter]:
    """Every parameter but the ranges, by name."""
    ranges = {id(p) for bounds in program.ranges for p in bounds.parameters()}
    return {name: p for name, p in program.module.named_parameters() if id(p) not in ranges}


def _phases(program: QuantizedProgram, settings: QuantizeSettings) -> tuple[_Phase, _Phase]:
    peaks = rates(program, settings.weight_learning_rate)
    every = {program.module.get_parameter(name): peak for name, peak in peaks.items()}
    names = {kernel.bias for kernel in program.kernels()}
    biases = {p: settings.bias_learning_rate for p, name in zip(every, peaks, strict=True) if name in names}
    still = round(settings.settle_share * settings.steps)
    # Fewer steps would move biases at full rate and stop there.
    middle = settings.steps - (still if still >= _FEWEST_SETTLING else 0)
    return (
        _Phase(0, middle, every, settings.range_learning_rate, settings.ema),
        _Phase(middle, settings.steps, biases, _SETTLED_RANGES * settings.range_learning_rate, _SETTLED_EMA),
    )


def _step(
    program: QuantizedProgram,
    teacher: DenoiserModel,
    settings: QuantizeSettings,
    batches: Batches,
    checkpoint: Checkpoint,
    optimizer: torch.optim.Optimizer,
    step: int,
    weights: list[nn.Parameter],
    ranges: list[nn.Parameter],
) -> float:
    batch = batches(settings.calibration_batches + step)
    loss = _loss(program, teacher, settings, batch)
    # Of ranges, a few scalars that are not clipped and so the first to run away.
    rate = optimizer.param_groups[-1]["lr"]
    value = finite(loss, "loss", stage="quantize", step=step, rate=rate, checkpoint=checkpoint)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(weights, settings.clip_norm)
    # Ranges are not clipped: a few scalars, each with a rate of its own kind.
    norm = norm + torch.nn.utils.get_total_norm([p.grad for p in ranges if p.grad is not None])
    finite(norm, "gradient", stage="quantize", step=step, rate=rate, checkpoint=checkpoint)
    optimizer.step()
    return value


def _loss(program: QuantizedProgram, teacher: DenoiserModel, settings: QuantizeSettings, batch: Batch) -> Tensor:
    """The distance to the float model's output, relative to that model's own error; and to the clean images.

    An image whose squared distance to the float output is a share s of the float model's own squared error loses about
    10 log10(1 + s) dB. What counts is the root of s: of s itself low noise, which loses most, has nearly all, and high
    noise ends no better than it began (docs/int8-experiments.md). And where integers can do what floats do, this is
    next to nothing, unlike the distance to a clean image, which stays large whatever is learned.
    """
    output = program(batch.noisy, batch.sigma)
    loss = output.new_zeros(())
    if settings.teacher_weight:
        with torch.no_grad():
            # In float32: what bfloat16 rounds away is more than what is left to learn at low noise.
            taught = teacher(batch.noisy.contiguous(memory_format=torch.channels_last), batch.sigma)
        loss = loss + settings.teacher_weight * (share(output, taught, batch.clean) + _NOTHING).sqrt().mean()
    if settings.clean_weight:
        loss = loss + settings.clean_weight * weighted({"l1": 1.0}, output, batch.clean, batch.sigma)
    return loss
