"""Quantize: ranges observed on noisy batches, then learned with the weights (QAT), the float model as teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from edgekit.compress.batches import Batch, Batches, Progress, silent
from edgekit.compress.bias_correction import correct_biases
from edgekit.compress.equalise import equalise
from edgekit.compress.evaluate import Tiles, evaluate
from edgekit.compress.lessons import fingerprint
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.qat import learn
from edgekit.compress.ranges import fit_ranges
from edgekit.compress.record import SIGMAS, Size, StageRecord
from edgekit.compress.rounding import round_together
from edgekit.compress.scheme import Scheme
from edgekit.compress.steps import Checkpoint
from edgekit.errors import TrainingError
from edgekit.models.base import DenoiserModel
from edgekit.recipe import QuantizeSettings


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
    progress = progress or silent
    teacher = model.eval()
    before = evaluate(teacher, tiles, sigmas)
    program = QuantizedProgram(model, scheme, sigma_range)
    observed = [batches(step) for step in range(settings.calibration_batches)]
    equalised = observe(program, observed, settings)
    calibrated = evaluate(program, tiles, sigmas)
    if on_calibrated is not None:
        on_calibrated(program)
    after = calibrated
    rounded: dict[str, float] = {}
    if not settings.steps and settings.rounding == "together":
        rounded = round_together(program, teacher, observed, progress)
        after = evaluate(program, tiles, sigmas) if rounded else calibrated
    if settings.steps:
        # What `auto` came to, so that asking for it is the same run.
        given = settings.model_dump() | {"range_fit": program.range_fit}
        run = fingerprint(observed, model, scheme={**asdict(scheme), "wide": sorted(scheme.wide)}, **given)
        learn(program, teacher, settings, batches, progress, Checkpoint(checkpoint, run))
        progress(settings.steps, settings.steps, "held-out tiles")
        after = evaluate(program, tiles, sigmas)
    size = Size(model.macs_per_pixel(), model.parameter_count())
    how = f"{settings.steps} steps of QAT" if settings.steps else "calibration alone"
    how += ", weights of a layer rounded together" if rounded else ""
    fitted = ", ranges fitted image by image" if program.range_fit == "per-image" else ""
    exact = ", the residual in steps of one level" if program.exact_residual else ""
    even = f", channels of {len(equalised)} tensors equalised" if equalised else ""
    record = StageRecord(
        stage="quantize",
        what=f"int8 for {scheme.name}, {settings.calibration_batches} batches observed{fitted}{exact}{even}, {how}",
        before=size,
        after=size,
        db_before=before,
        db_after=after,
        seconds=time.perf_counter() - began,
        details={
            "db_calibrated": {f"{s:g}": db for s, db in calibrated.items()},
            "steps": settings.steps,
            "range_fit": program.range_fit,
        }
        | ({"equalised": equalised} if equalised else {})
        | ({"rounded": rounded} if rounded else {}),
    )
    return program, record


def observe(program: QuantizedProgram, observed: Sequence[Batch], settings: QuantizeSettings) -> dict[str, float]:
    """Set the ranges of a new program from noisy batches, and correct its biases: post-training quantization.

    Returns: the tensors whose channels were equalised, see `equalise`.
    """
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
    fit_ranges(program, observed, settings)
    equalised = {}
    if settings.equalisation:
        equalised = equalise(program, observed, fit=settings.range_fit != "extremes")
    if settings.bias_correction:
        correct_biases(program, observed)
    return equalised
