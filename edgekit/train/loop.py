"""The training loop."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from edgekit import feature_loss, losses
from edgekit.batch import Batch
from edgekit.errors import CheckpointError, RecipeError, ShapeError, TrainingError
from edgekit.models.base import DenoiserModel
from edgekit.precision import resolve
from edgekit.recipe import TrainSettings
from edgekit.schedule import cosine
from edgekit.train import neighbours, noise, told
from edgekit.train.ema import WeightAverage
from edgekit.train.groups import parameter_groups
from edgekit.train.images import ImageSource
from edgekit.train.journal import LOG, Journal
from edgekit.train.optimizers import optimizer
from edgekit.train.processes import as_launched, join, together
from edgekit.train.replay import Mixed, Replay
from edgekit.train.sampling import batches, stream
from edgekit.train.state import FILE, load_state, save_state, weights_digest
from edgekit.train.validation import denoise, evaluate, sample, to_tensor, validation_levels

_log = logging.getLogger(__name__)

# Settings that change what is written when, and who computes it, not what is learned: a resumed run may have others.
# What counts of the processes and their batches is the batch that they make together.
FREE = {"save_every", "tensorboard", "batch", "devices", "num_nodes", "strategy", "process_timeout"}


class Progress(Protocol):
    """`progress(done, total, text)` is told how far training is; text is short, e.g. "loss 0.0123"."""

    def __call__(self, done: int, total: int, text: str = "") -> None: ...


def fit(
    model: DenoiserModel,
    source: ImageSource,
    settings: TrainSettings,
    folder: Path,
    *,
    teacher: DenoiserModel | None = None,
    replay: Replay | None = None,
    progress: Progress | None = None,
    identity: Mapping[str, str] | None = None,
    on_start: Callable[[], None] | None = None,
) -> DenoiserModel:
    """Train a model, or go on with the run that `folder` holds.

    Writes `last.ckpt` (every `save_every` steps, whole or not at all), `log.jsonl`, and TensorBoard's files on request.
    A run that was killed and resumed ends in the same weights, bit for bit, as one that was not.

    Args:
        model: trained in place.
        source: images of the model's channels.
        settings: everything else.
        folder: where the run's files stand; it is made.
        teacher: a better model; its output is a share `teacher_weight` of the target.
        replay: old images and noise that a share of each batch is drawn from; validation is on the new ones.
        progress: called after every step, and before held-out images are measured.
        identity: what else the run depends on, by name; a run with another identity is not resumed.
        on_start: called on the first process, once all have found that the run can begin.
    Returns: the averaged model, in eval mode on the CPU; with `patience`, as it was at its best validation.
    Raises:
        RecipeError: settings that do not fit the model or each other, or not the run that is resumed.
        TrainingError: the loss is no longer finite, or another process of the run is gone; the last checkpoint is kept.
        CheckpointError: a checkpoint cannot be read or written.
    """
    check(model, source, settings, teacher)
    fabric, settings = _fabric(as_launched(settings))
    torch.manual_seed(settings.seed)
    with together(folder):
        run = _Run(fabric, model, source, settings, folder, teacher, identity or {}, replay)
        return run.train(progress, on_start)


def check(model: DenoiserModel, source: ImageSource, settings: TrainSettings, teacher: DenoiserModel | None) -> None:
    """Find what is wrong with a run before anything is written. Raises: what `fit` raises, but for the run itself."""
    noise.get(settings.noise.model)
    batches(source, settings)
    parameter_groups(model, settings)
    # An unknown loss is named here, and weights that are missing.
    black = torch.zeros(1, source.channels, 16, 16)
    losses.weighted(settings.loss, black, black, learned=feature_loss.learned(settings.loss, settings.feature_weights))
    if not settings.loss or min(settings.loss.values()) < 0 or sum(settings.loss.values()) == 0:
        raise RecipeError(
            f"loss is {settings.loss}: expected weights of at least 0, one of them above, e.g. {{'l1': 1.0}}"
        )
    for role, network in (("model", model), ("teacher", teacher)):
        if network is None:
            continue
        if network.channels != source.channels:
            images = f"open the images with channels={network.channels}"
            fix = "choose another teacher, or none" if role == "teacher" else images
            raise ShapeError(
                f"the {role} {network.arch} takes images of {network.channels} channel(s), these have "
                f"{source.channels}: {fix}"
            )
        if role == "model" and settings.self_supervised != "none":
            neighbours.check(source, settings, network.stride, teacher=teacher is not None)
        if settings.patch % network.stride:
            below = settings.patch // network.stride * network.stride
            raise RecipeError(
                f"patch is {settings.patch}: the {role} {network.arch} takes multiples of {network.stride}; take "
                f"{f'{below} or ' if below else ''}{below + network.stride}"
            )
    if settings.noise.level == "auto" and settings.patch < told.LEAST_SIDE and not source.paired:
        raise RecipeError(
            f"patch is {settings.patch}: noise.level auto is read from {told.LEAST_SIDE} pixels on; use a larger "
            "patch, or noise.level rms"
        )
    if teacher is not None and not settings.teacher_weight:
        raise RecipeError(
            f"teacher_weight is 0: the teacher {teacher.arch} would not be used; raise it, or choose no teacher"
        )
    if settings.patience and not source.held_out:
        raise RecipeError(
            f"patience is {settings.patience}, but no image is held out to validate on: set validation_share above 0"
        )
    replicated = ("auto", "dp", "ddp")
    if not settings.strategy.startswith(replicated):
        raise RecipeError(
            f"strategy is {settings.strategy!r}: expected one that keeps the whole model on every device "
            f"({', '.join(replicated)} and its variants); these models are small"
        )


def _fabric(settings: TrainSettings) -> tuple[Fabric, TrainSettings]:
    """Fabric on the devices that the settings name, launched, and the settings with the precision that "auto" means."""
    fabric, settings = _chosen(settings)
    join(fabric.launch, settings)
    return fabric, settings


def check_devices(settings: TrainSettings) -> None:
    """Raises: RecipeError: devices or a precision that cannot be had here."""
    _chosen(as_launched(settings))


def _chosen(settings: TrainSettings) -> tuple[Fabric, TrainSettings]:
    # Its messages about what it chose would interrupt the progress bar; warnings still come through.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fp16 is not supported on CPU")  # refused below
            where: dict[str, Any] = {
                "accelerator": settings.accelerator,
                "devices": settings.devices,
                "num_nodes": settings.num_nodes,
                "strategy": settings.strategy,
            }
            if settings.precision == "auto":
                chosen = resolve("auto", Fabric(**where).device.type)
                settings = settings.model_copy(update={"precision": chosen})
            where["precision"] = settings.precision
            fabric = Fabric(**where)
    except (ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(
            f"accelerator {settings.accelerator!r}, devices {settings.devices!r}, strategy {settings.strategy!r} and "
            f"precision {settings.precision!r} do not work here ({reason}): accelerator cpu with devices 1, "
            "strategy auto and precision auto does anywhere"
        ) from error
    if isinstance(fabric.strategy, DDPStrategy):
        # Its constructor takes this, too, but then which kind of DDP "auto" means would have to be decided here.
        fabric.strategy._timeout = timedelta(seconds=settings.process_timeout)
    if settings.precision == "16-mixed" and fabric.device.type == "cpu":
        # Fabric would take bfloat16 instead, and the recipe would say otherwise.
        raise RecipeError("precision is '16-mixed', which needs a GPU: expected bf16-mixed or 32-true on a CPU")
    return fabric, settings


class _Run:
    """One run: everything that a step touches."""

    def __init__(
        self,
        fabric: Fabric,
        model: DenoiserModel,
        source: ImageSource,
        settings: TrainSettings,
        folder: Path,
        teacher: DenoiserModel | None,
        identity: Mapping[str, str],
        replay: Replay | None,
    ) -> None:
        self.fabric, self.source, self.settings, self.folder = fabric, source, settings, folder
        self.model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.wrapped, self.optimizer = fabric.setup(model, optimizer(parameter_groups(model, settings), settings))
        self.average = WeightAverage(model, settings.ema)
        self.teacher: DenoiserModel | None = None
        if teacher is not None:
            self.teacher = teacher.to(fabric.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.teacher.eval().requires_grad_(False)
        self.replay = replay
        self.learned = feature_loss.learned(settings.loss, settings.feature_weights)
        self.identity = _identity(model, source, settings, teacher, fabric) | _replayed(replay) | dict(identity)
        self.step, self.rate = 0, 0.0
        # Of the steps since the last record; of the validations so far.
        self.loss_sum, self.loss_count = 0.0, 0
        self.best: dict[str, Any] = {"psnr": -math.inf, "step": 0, "waited": 0, "weights": None}

    def train(self, progress: Progress | None, on_start: Callable[[], None] | None) -> DenoiserModel:
        self.resume()
        first = self.fabric.is_global_zero
        if first and (self.step >= self.settings.steps or self.stalled()):
            _log.warning("training in %s was complete after %d steps: none was taken now", self.folder, self.step)
        if first and on_start:
            on_start()
        journal = Journal(self.folder, self.step, self.settings.tensorboard) if first else None
        began = time.perf_counter() - (journal.seconds if journal else 0)
        accumulate, total = self.settings.accumulate, self.settings.steps
        sampler = self.sampler(rank=self.fabric.global_rank, world=self.fabric.world_size)
        ahead = self.fabric.device.type != "cpu"
        drawn = stream(sampler, self.step * accumulate, total * accumulate, ahead=ahead)
        try:
            with closing(drawn):
                while self.step < total and not self.stalled():
                    loss = self.one_step([next(drawn) for _ in range(accumulate)])
                    if progress and first and self.validates:
                        progress(self.step, total, "held-out images")
                    self.record(journal, began)
                    if progress and first:
                        progress(self.step, total, f"loss {loss:.4f}")
        finally:
            if journal:
                journal.close()
        weights = self.best["weights"] if self.settings.patience else None
        if weights:
            self.average.model.load_state_dict(weights)
        # The average was not to learn; what is returned may. Not every reader takes another layout than the plain one.
        trained: DenoiserModel = self.average.model.requires_grad_(True).to("cpu")
        return trained.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]

    def sampler(self, **part: int) -> Callable[[int], Batch]:
        if self.replay is None:
            return batches(self.source, self.settings, **part)
        return Mixed(self.source, self.settings, self.replay, **part)

    def resume(self) -> None:
        given: dict[str, str] = self.fabric.broadcast(self.identity)
        for name, value in given.items():
            if self.identity[name] != value:
                # Precision "auto" among others: one processor multiplies bfloat16, another does not.
                raise RecipeError(
                    f"process {self.fabric.global_rank} runs with another {name} than process 0: "
                    f"{self.identity[name]}, there {value}; start all with the same settings, images and weights"
                )
        state = load_state(self.folder, self.identity)
        found = -1 if state is None else int(state["step"])
        steps = torch.as_tensor(self.fabric.all_gather(torch.tensor([found], device=self.fabric.device)))
        if bool((steps != found).any()):
            raise CheckpointError(
                f"process {self.fabric.global_rank} found step {found} in {self.folder / FILE}, another one found "
                "another: expected one folder on a disk that every node sees; name it with --out"
            )
        if state is None:
            if self.fabric.is_global_zero and (self.folder / LOG).exists():
                _log.warning("%s holds no checkpoint yet: training begins anew", self.folder)
            return
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.best = state["step"], state["best"]
        self.loss_sum, self.loss_count = state["loss_sum"], state["loss_count"]

    def save(self) -> None:
        if self.fabric.is_global_zero:
            state = {
                "run": self.identity,
                "step": self.step,
                "model": self.model.state_dict(),
                "ema": self.average.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "loss_sum": self.loss_sum,
                "loss_count": self.loss_count,
                "best": self.best,
            }
            save_state(self.folder, state)
        self.fabric.barrier()

    def stalled(self) -> bool:
        """True when as many validations as `patience` allows brought nothing."""
        return 0 < self.settings.patience <= int(self.best["waited"])

    def one_step(self, parts: list[Batch]) -> float:
        """One optimiser step on the batches given, whose losses are averaged. Returns the loss."""
        settings = self.settings
        rate = self.rate = cosine(self.step, settings.steps, settings.learning_rate, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.fabric.device)
        for i, part in enumerate(parts):
            # With several devices gradients are exchanged once a step, after the last part.
            waits = self.fabric.world_size > 1 and i + 1 < len(parts)
            with self.fabric.no_backward_sync(self.wrapped) if waits else nullcontext():
                loss = self.loss(self.fabric.to_device(part), i) / len(parts)
                self.fabric.backward(loss)
            total += loss.detach()
        norm = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=self.settings.clip_norm, error_if_nonfinite=False
        )
        value = self.finite(total, norm, rate)
        self.optimizer.step()
        self.average.update(self.step)
        self.step += 1
        self.loss_sum += value
        self.loss_count += 1
        return value

    def loss(self, batch: Batch, part: int = 0) -> Tensor:
        balance = batch.sigma if self.settings.balance_sigma else None
        if self.settings.self_supervised != "none":
            return self.self_supervised_loss(batch, part, balance)
        noisy = batch.noisy.contiguous(memory_format=torch.channels_last)
        output = self.wrapped(noisy, batch.sigma).float()
        loss = losses.weighted(self.settings.loss, output, batch.clean, balance, learned=self.learned)
        if self.teacher is None:
            return loss
        with torch.no_grad(), self.fabric.autocast():
            taught = self.teacher(noisy, batch.sigma).float()
        share = self.settings.teacher_weight
        imitated = losses.weighted(self.settings.loss, output, taught, balance, learned=self.learned)
        return (1 - share) * loss + share * imitated

    def self_supervised_loss(self, batch: Batch, part: int, balance: Tensor | None) -> Tensor:
        settings = self.settings
        # Without state, as the batches are drawn: a resumed run draws what the unbroken one would.
        rng = np.random.default_rng([settings.seed, self.step, part])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        weight = settings.self_supervised_weight * self.step / settings.steps
        return neighbours.loss(
            self.wrapped,
            batch.noisy,
            batch.sigma,
            weight,
            generator,
            lambda output, other: losses.weighted(settings.loss, output, other, balance, learned=self.learned),
            self.fabric.global_rank,
            self.fabric.world_size,
        )

    def finite(self, loss: Tensor, norm: Tensor | None, rate: float) -> float:
        """The loss as a number; on every process the same answer, so that none waits for one that stopped."""
        if self.fabric.world_size > 1:
            loss = self.fabric.all_reduce(loss, reduce_op="mean")  # type: ignore[assignment]
        value, length = float(loss), 0.0 if norm is None else float(norm)
        # Float16's loss scaling probes for infinite gradients, and skips such a step.
        if math.isfinite(value) and (math.isfinite(length) or self.settings.precision == "16-mixed"):
            return value
        path = self.folder / FILE
        kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was due before"
        raise TrainingError(
            f"training stopped at step {self.step + 1}: the loss is {value:g} and the gradient's norm {length:g} at a "
            f"learning rate of {rate:.2g}; {kept}: begin a new run from its weights with a lower learning_rate, "
            "and look for damaged images"
        )

    @property
    def validates(self) -> bool:
        """Whether the averaged model is to be judged after this step."""
        due = self.step == self.settings.steps or self.step % self.settings.validate_every == 0
        return due and bool(self.source.held_out)

    def record(self, journal: Journal | None, began: float) -> None:
        """Validate, write down, save: each where its time has come."""
        settings, step = self.settings, self.step
        last = step == settings.steps
        saves = last or step % settings.save_every == 0
        if self.validates or saves:
            record: dict[str, Any] = {"step": step, "loss": self.loss_sum / self.loss_count}
            record["learning_rate"] = self.rate
            self.loss_sum, self.loss_count = 0.0, 0
            if self.validates:
                record |= self.validate(journal)
            if journal:
                journal.write(record | {"seconds": round(time.perf_counter() - began, 3)})
        # A run that ends here early is saved, too.
        if saves or self.stalled():
            self.save()

    def validate(self, journal: Journal | None) -> dict[str, float]:
        """PSNR and SSIM of the averaged model on the held-out images; remembers the best."""
        scores: dict[str, float] = {}
        if journal:
            scores = self.measure()
            self.show(journal)
        scores = self.fabric.broadcast(scores)
        psnrs = [value for name, value in scores.items() if name.startswith("psnr")]
        psnr = sum(psnrs) / len(psnrs)
        if psnr > self.best["psnr"]:
            weights = {k: v.detach().cpu().clone() for k, v in self.average.model.state_dict().items()}
            kept = weights if self.settings.patience else None
            self.best = {"psnr": psnr, "step": self.step, "waited": 0, "weights": kept}
        else:
            self.best["waited"] += 1
        return scores

    def measure(self) -> dict[str, float]:
        added, held_out = self.settings.noise, self.source.held_out
        if self.settings.self_supervised != "none":
            with self.fabric.autocast():
                return {"psnr": round(neighbours.score(self.average.model, held_out), 3)}
        if self.source.paired or added.model != "gaussian":
            found = evaluate(self.average.model, held_out, noise_settings=added, autocast=self.fabric.autocast)
            return {"psnr": round(found.psnr, 3), "ssim": round(found.ssim, 4)}
        scores: dict[str, float] = {}
        for sigma in validation_levels(added):
            found = evaluate(self.average.model, held_out, sigma, autocast=self.fabric.autocast)
            scores |= {f"psnr_{sigma:g}": round(found.psnr, 3), f"ssim_{sigma:g}": round(found.ssim, 4)}
        return scores

    def show(self, journal: Journal) -> None:
        if not self.settings.tensorboard:
            return
        added = self.settings.noise
        sigma = 25.0 if added.model == "gaussian" and added.sigma[0] <= 25 <= added.sigma[1] else None
        if self.settings.self_supervised != "none":
            pixels = self.source.held_out[0].pixels()[0]
            clean = noisy = to_tensor(pixels)
            level = torch.tensor([neighbours.level(pixels)])
        else:
            clean, noisy, level = sample(self.source.held_out[0], sigma, added)
        output = denoise(self.average.model, noisy, level, self.fabric.autocast)
        journal.images("held out: noisy, denoised, clean", [noisy, output, clean], self.step)


def _replayed(replay: Replay | None) -> dict[str, str]:
    if replay is None:
        return {}
    noises = ", ".join(json.dumps(noise.model_dump(mode="json")) for noise in replay.noises)
    return {"replay": f"{replay.share:g} from {replay.source.digest[:12]}, {noises}"}


def _identity(
    model: DenoiserModel, source: ImageSource, settings: TrainSettings, teacher: DenoiserModel | None, fabric: Fabric
) -> dict[str, str]:
    """What decides the weights that a run ends in, by name, for the message when it differs."""
    chosen = settings.model_dump(mode="json")
    taught = "none"
    if teacher is not None:
        taught = f"{teacher.arch} {weights_digest(teacher)}"
    return {
        "model": f"{model.arch} {json.dumps(model.config())}",
        "set of images": f"{len(source.training)} of {source.digest[:12]}",
        "teacher": taught,
        "global batch": str(fabric.world_size * settings.batch),
        **{name: json.dumps(value) for name, value in chosen.items() if name not in FREE},
    }
