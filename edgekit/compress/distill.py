"""Distillation: recovery training of a pruned student on what a teacher makes of the same noisy images."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.compress.batches import Batches, Progress, silent
from edgekit.compress.evaluate import Tiles, evaluate
from edgekit.compress.features import FeatureLoss, tapped
from edgekit.compress.lessons import OUTPUT, Lesson, Lessons, Taught, fingerprint, teach
from edgekit.compress.record import SIGMAS, Size, StageRecord
from edgekit.compress.steps import Checkpoint, finite
from edgekit.errors import RecipeError, UnknownNameError
from edgekit.losses import LOSSES, weighted
from edgekit.models.base import DenoiserModel
from edgekit.muon import Muon
from edgekit.precision import resolve
from edgekit.recipe import DistillSettings
from edgekit.schedule import Average, cosine


def distill(
    student: DenoiserModel,
    teacher: DenoiserModel | None,
    settings: DistillSettings,
    batches: Batches,
    tiles: Tiles,
    *,
    sigmas: Sequence[float] = SIGMAS,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    cache: Path | None = None,
) -> tuple[DenoiserModel, StageRecord]:
    """Train the student on the teacher's outputs and the clean images.

    The first `settings.cache_batches` batches, or as many as there are steps, are drawn once and the teacher runs once
    over them; the student then cycles through them in a new order each time, flipped and rotated at random together
    with the teacher's outputs.

    Args:
        student: untouched.
        teacher: untouched; None trains on the clean images alone.
        batches: the noisy images to train on.
        tiles: held-out images to judge by.
        sigmas: noise levels that the record's dB are for, in 8-bit units.
        progress: told the teacher's batches and the student's steps that are done, of both together.
        checkpoint: file to resume from when it exists, and to save to every `settings.save_every` steps.
        cache: file that keeps the teacher's outputs; a file of another teacher or other batches is written anew.
    Returns: the trained copy of the student, its weights averaged over the last steps, and the record.
    Raises:
        RecipeError: settings that contradict each other, the student or the teacher.
        UnknownNameError: the loss, or a module named in `settings.features`.
        TrainingError: the loss or its gradient is not finite; the last good checkpoint stays.
        CheckpointError: the checkpoint is of another run or cannot be read or written.
    """
    _validate(student, teacher, settings)
    began = time.perf_counter()
    before = evaluate(student, tiles, sigmas)
    trained = copy.deepcopy(student).requires_grad_(True)
    losses = _train(trained, teacher, settings, batches, progress or silent, checkpoint, cache)
    trained.train(student.training)
    size = Size(student.macs_per_pixel(), student.parameter_count())
    record = StageRecord(
        stage="distill",
        what=f"{settings.steps} steps on the {f'outputs of {teacher.arch}' if teacher else 'clean images'}",
        before=size,
        after=size,
        db_before=before,
        db_after=evaluate(trained, tiles, sigmas),
        seconds=time.perf_counter() - began,
        details={"settings": settings.model_dump(), "teacher": teacher.arch if teacher else None, "losses": losses},
    )
    return trained, record


def _validate(student: DenoiserModel, teacher: DenoiserModel | None, settings: DistillSettings) -> None:
    if settings.loss not in LOSSES:
        raise UnknownNameError.unknown("loss", settings.loss, LOSSES)
    if not settings.steps:
        raise RecipeError("distillation.steps is 0: expected at least 1; a recipe with 0 leaves the stage out")
    if teacher is not None and teacher.channels != student.channels:
        raise RecipeError(
            f"teacher {teacher.arch} has {teacher.channels} channels, student {student.arch} {student.channels}: "
            "choose a teacher of the same kind of images, or none"
        )
    if bool(settings.feature_weight) != bool(settings.features):
        raise RecipeError(
            f"feature_weight is {settings.feature_weight} and features name {len(settings.features)} modules: "
            "give both, or neither"
        )
    if teacher is None and settings.feature_weight:
        raise RecipeError(f"feature_weight is {settings.feature_weight} without a teacher: name one, or set it to 0")
    if teacher is not None and settings.clean_weight and not settings.output_weight and not settings.feature_weight:
        raise RecipeError(
            f"output_weight and feature_weight are 0: the teacher {teacher.arch} would not be used; raise one, or "
            "choose no teacher"
        )
    if not settings.clean_weight and (teacher is None or not settings.output_weight):
        raise RecipeError(
            f"clean_weight is 0 and there is {'no output_weight' if teacher else 'no teacher'}: nothing would tell the "
            "student what to do; raise clean_weight"
        )


def _train(
    student: DenoiserModel,
    teacher: DenoiserModel | None,
    settings: DistillSettings,
    batches: Batches,
    progress: Progress,
    checkpoint_path: Path | None,
    cache: Path | None,
) -> list[float]:
    """Train in place. Returns the mean loss of each twentieth of the run."""
    pool = [batches(step) for step in range(settings.pool)]
    checkpoint = Checkpoint(checkpoint_path, fingerprint(pool, student, teacher, **settings.model_dump()))
    prepared = len(pool) if teacher else 0
    total = prepared + settings.steps
    taught: list[Taught] = [{} for _ in pool]
    device = next(student.parameters()).device
    if teacher is not None:
        taught = teach(
            teacher,
            pool,
            features=sorted(set(settings.features.values())),
            half=half(settings, device),
            device=device,
            cache=cache,
            progress=lambda done: progress(done, total, "teacher"),
        )
    lessons = Lessons(pool, taught, settings.seed)
    learner = _Learner(student, settings, lessons.draw(0))
    if (state := checkpoint.load()) is not None:
        learner.load_state_dict(state)
    for step in range(len(learner.losses), settings.steps):
        loss = learner.learn(lessons.draw(step), checkpoint)
        done = step + 1
        if done % settings.save_every == 0 or done == settings.steps:
            checkpoint.save(step=done, **learner.state_dict())
        progress(prepared + done, total, f"loss {loss:.4f}")
    progress(total, total, "held-out tiles")
    learner.finish()
    return [float(np.mean(part)) for part in np.array_split(learner.losses, min(20, settings.steps))]


class _Learner:
    """The student while it trains: with its optimiser, the average of its weights, and the adapters of its features."""

    def __init__(self, student: DenoiserModel, settings: DistillSettings, example: Lesson) -> None:
        self._settings = settings
        self._device = next(student.parameters()).device
        self._half = half(settings, self._device)
        self._student = student.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._imitation: FeatureLoss | None = None
        if settings.features:
            with torch.no_grad(), tapped(student, settings.features) as features:
                student(example.noisy.to(self._device), example.sigma.to(self._device))
            self._imitation = FeatureLoss(settings.features, features, example.taught, settings.seed).to(self._device)
        modules = [m for m in (student, self._imitation) if m is not None]
        self._parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        kind = Muon if settings.optimizer == "muon" else torch.optim.AdamW
        self._optimizer = kind(
            [{"params": self._parameters}], lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self._average = Average(self._parameters, settings.ema)
        self.losses: list[float] = []

    def learn(self, lesson: Lesson, checkpoint: Checkpoint) -> float:
        """Take one step. Returns the loss. Raises: TrainingError: the loss or its gradient is not finite."""
        settings, step = self._settings, len(self.losses)
        rate = cosine(step, settings.steps, settings.learning_rate, settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(lesson)
        value = finite(loss, "loss", stage="distill", step=step, rate=rate, checkpoint=checkpoint)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, settings.clip_norm)
        finite(norm, "gradient", stage="distill", step=step, rate=rate, checkpoint=checkpoint)
        self._optimizer.step()
        self._average.update(step)
        self.losses.append(value)
        return value

    def _loss(self, lesson: Lesson) -> Tensor:
        settings = self._settings
        clean, noisy, sigma = (t.to(self._device) for t in lesson[:3])
        taught = {name: t.to(self._device) for name, t in lesson.taught.items()}
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._half)
        with autocast, tapped(self._student, settings.features) as features:
            output = self._student(noisy, sigma).float()
            loss = torch.zeros((), device=self._device)
            if self._imitation is not None:
                loss = settings.feature_weight * self._imitation(features, taught)
        mix = {settings.loss: 1.0}
        balance = sigma if settings.balance_sigma else None
        if settings.clean_weight:
            loss = loss + settings.clean_weight * weighted(mix, output, clean, balance)
        if settings.output_weight and OUTPUT in taught:
            loss = loss + settings.output_weight * weighted(mix, output, taught[OUTPUT], balance)
        return loss

    def finish(self) -> None:
        """Leave the averaged weights in the student, in the plain memory layout that files are written from."""
        self._average.apply()
        self._student.to(memory_format=torch.contiguous_format)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "student": self._student.state_dict(),
            "adapters": self._imitation.state_dict() if self._imitation is not None else {},
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.state_dict(),
            "losses": list(self.losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._student.load_state_dict(state["student"])
        if self._imitation is not None:
            self._imitation.load_state_dict(state["adapters"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._average.load_state_dict(state["average"])
        self.losses = list(state["losses"])


def half(settings: DistillSettings, device: torch.device) -> bool:
    """Whether the stage runs under bfloat16 autocast on a device."""
    return resolve(settings.precision, device.type) == "bf16-mixed"
