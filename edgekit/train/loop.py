"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric

from edgekit.models.base import DenoiserModel
from edgekit.recipe import TrainSettings
from edgekit.train import losses, noise, patches
from edgekit.train.ema import WeightAverage


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine down to a hundredth of a percent of the peak."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * progress)))


def fit(
    model: DenoiserModel,
    images: Sequence[patches.Image],
    settings: TrainSettings,
    folder: Path,
    validate: Callable[[DenoiserModel], dict[str, float]] | None = None,
) -> DenoiserModel:
    """Train; returns the averaged model. A checkpoint in `folder` is resumed."""
    fabric = Fabric(accelerator="cpu", precision=settings.precision)
    torch.manual_seed(settings.seed)
    model = model.to(memory_format=torch.channels_last)
    average = WeightAverage(model, settings.ema)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    wrapped, optimizer = fabric.setup(model, optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, start = folder / "last.ckpt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    log = (folder / "log.jsonl").open("a")
    began, sums = time.perf_counter(), 0.0
    for step in range(start, settings.steps):
        rng = patches.step_rng(settings.seed, step, fabric.global_rank)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        clean = patches.batch(images, settings.batch, settings.patch, settings.augment, rng)
        noisy, sigma = noise.draw(clean, settings.noise, generator)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        output = wrapped(noisy, sigma)
        loss = losses.weighted(settings.loss, output.float(), clean, sigma if settings.balance_sigma else None)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        fabric.clip_gradients(wrapped, optimizer, max_norm=settings.clip_norm)
        optimizer.step()
        average.update(model, step)
        sums += loss.item()
        done = step + 1
        if done % settings.save_every == 0 or done == settings.steps:
            record = {
                "step": done,
                "loss": sums / settings.save_every,
                "seconds": time.perf_counter() - began,
            }
            if validate and (done % settings.validate_every == 0 or done == settings.steps):
                record |= validate(average.model)
            sums = 0.0
            log.write(json.dumps(record) + "\n")
            log.flush()
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(
                {
                    "model": model.state_dict(),
                    "ema": average.model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                },
                temporary,
            )
            temporary.replace(checkpoint)
    return average.model
