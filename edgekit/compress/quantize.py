"""Quantize: ranges observed on noisy batches, then learned with the weights (QAT), the float model as teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from edgekit.compress.batches import Batch, Batches, Progress, silent
from edgekit.compress.bias_correction import correct_biases
from edgekit.compress.evaluate import Tiles, evaluate
from edgekit.compress.lessons import fingerprint
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.record import SIGMAS, Size, StageRecord
from edgekit.compress.scheme import Scheme
from edgekit.compress.steps import Checkpoint, finite
from edgekit.errors import RecipeError, TrainingError
from edgekit.losses import weighted
from edgekit.models.base import DenoiserModel
from edgekit.recipe import QuantizeSettings
from edgekit.schedule import Average, cosine

# Mean squared error of rounding an image to 8 bits, in units of 0..1: no image is expected to be better.
_ROUNDING = 1 / 255**2 / 12


def quantize(
    model: DenoiserModel,
    scheme: Scheme,
    settings: QuantizeSettings,
    batches: Batches,
    tiles: Tiles,
    *,
    sigma_range: tuple[float, float],
    sigmas: Sequence[float] = SIGMAS,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    on_calibrated: Callable[[QuantizedProgram], None] | None = None,
) -> tuple[QuantizedProgram, StageRecord]:
    """Turn a float model into a quantized program.

    Args:
        model: the float model, [N, C, H, W] in 0..1; not touched. It is the teacher as well.
        scheme: the target's integers.
        settings: steps 0 is calibration alone (post-training quantization).
        batches: training batches by step number.
        tiles: held-out images for the record's dB.
        sigma_range: noise range in 0..1.
        sigmas: noise levels that the record's dB are for, in 8-bit units.
        checkpoint: file to resume from when it exists, and to save to every `settings.save_every` steps.
        on_calibrated: given the program before anything is learned, when in float it still is the model.
    Raises: TrainingError: the loss became NaN; the last good checkpoint is kept.
    """
    began = time.perf_counter()
    teacher = model.eval()
    before = evaluate(teacher, tiles, sigmas)
    program = QuantizedProgram(model, scheme, sigma_range)
    observed = [batches(step) for step in range(settings.calibration_batches)]
    observe(program, observed, settings)
    calibrated = evaluate(program, tiles, sigmas)
    if on_calibrated is not None:
        on_calibrated(program)
    after = calibrated
    if settings.steps:
        run = fingerprint(
            observed, model, scheme={**asdict(scheme), "wide": sorted(scheme.wide)}, **settings.model_dump()
        )
        _learn(program, teacher, settings, batches, progress or silent, Checkpoint(checkpoint, run))
        after = evaluate(program, tiles, sigmas)
    size = Size(model.macs_per_pixel(), model.parameter_count())
    how = f"{settings.steps} steps of QAT" if settings.steps else "calibration alone"
    record = StageRecord(
        stage="quantize",
        what=f"int8 for {scheme.name}, {settings.calibration_batches} batches observed, {how}",
        before=size,
        after=size,
        db_before=before,
        db_after=after,
        seconds=time.perf_counter() - began,
        details={"db_calibrated": {f"{s:g}": db for s, db in calibrated.items()}, "steps": settings.steps},
    )
    return program, record


def observe(program: QuantizedProgram, observed: Sequence[Batch], settings: QuantizeSettings) -> None:
    """Set the ranges of a new program from noisy batches, and correct its biases: post-training quantization."""
    with program.in_float(), torch.no_grad():
        for batch in observed:
            program(batch.noisy, batch.sigma)
    levels = torch.cat([batch.sigma for batch in observed])
    program.observed = (float(levels.min()), float(levels.max()))
    for bounds in program.ranges:
        if not (torch.isfinite(bounds.lower) and torch.isfinite(bounds.upper)):
            raise TrainingError(
                f"quantize: activations span {bounds.lower.item():g} to {bounds.upper.item():g} in calibration: "
                "expected finite values; look for NaN in the weights or images"
            )
        bounds.learn(fit=settings.range_fit == "least-squares")
    if settings.bias_correction:
        correct_biases(program, observed)


def _learn(
    program: QuantizedProgram,
    teacher: DenoiserModel,
    settings: QuantizeSettings,
    batches: Batches,
    progress: Progress,
    checkpoint: Checkpoint,
) -> None:
    if not (settings.teacher_weight or settings.clean_weight):
        raise RecipeError(
            "teacher_weight and clean_weight are 0: nothing would tell the integers what to do; raise one"
        )
    ranges = [p for bounds in program.ranges for p in bounds.parameters() if p.requires_grad]
    known = {id(p) for bounds in program.ranges for p in bounds.parameters()}
    weights = [p for p in program.module.parameters() if id(p) not in known]
    peaks = (settings.learning_rate, settings.range_learning_rate)
    optimizer = torch.optim.Adam([{"params": weights}, {"params": ranges}])
    average = Average([*weights, *ranges], settings.ema)
    start = 0
    if (state := checkpoint.load()) is not None:
        program.module.load_state_dict(state["program"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        start = state["step"]
    for step in range(start, settings.steps):
        batch = batches(settings.calibration_batches + step)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = cosine(step, settings.steps, peak, settings.warmup)
        loss = _loss(program, teacher, settings, batch)
        rate = optimizer.param_groups[0]["lr"]
        value = finite(loss, "loss", stage="quantize", step=step, rate=rate, checkpoint=checkpoint)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(weights, settings.clip_norm)
        # Ranges are not clipped: a few scalars, each with a rate of its own kind.
        norm = norm + torch.nn.utils.get_total_norm([p.grad for p in ranges if p.grad is not None])
        finite(norm, "gradient", stage="quantize", step=step, rate=rate, checkpoint=checkpoint)
        optimizer.step()
        average.update(step)
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


def _loss(program: QuantizedProgram, teacher: DenoiserModel, settings: QuantizeSettings, batch: Batch) -> Tensor:
    """The distance to the float model's output, relative to that model's own error; and to the clean images.

    An image whose squared distance to the float output is a share s of the float model's own squared error loses about
    10 log10(1 + s) dB: each level of noise counts as the dB that it loses. And where integers can do what floats do,
    this is zero, unlike the distance to a clean image, which stays large whatever is learned.
    """
    output = program(batch.noisy, batch.sigma)
    loss = output.new_zeros(())
    if settings.teacher_weight:
        with torch.no_grad():
            # In float32: what bfloat16 rounds away is more than what is left to learn at low noise.
            taught = teacher(batch.noisy.contiguous(memory_format=torch.channels_last), batch.sigma)
        own = (taught - batch.clean).square().flatten(1).mean(1) + _ROUNDING
        loss = loss + settings.teacher_weight * ((output - taught).square().flatten(1).mean(1) / own).mean()
    if settings.clean_weight:
        loss = loss + settings.clean_weight * weighted({"l1": 1.0}, output, batch.clean, batch.sigma)
    return loss
