"""The fixed pool of batches that a student learns from, and what the teacher makes of them, computed once."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgekit.compress.batches import Batch
from edgekit.compress.features import tapped
from edgekit.errors import CheckpointError
from edgekit.models.base import DenoiserModel

# The teacher's output image, among its features by module name; no module's name is "output image".
OUTPUT = "output image"

# What a teacher makes of a batch: the output image, and features by module name, float16 [N, C, H, W]. Half precision
# is an error of at most 0.06 of an 8-bit level, and halves memory and disk.
Taught = dict[str, Tensor]


class Lesson(NamedTuple):
    """A batch and what the teacher makes of it."""

    clean: Tensor
    noisy: Tensor
    sigma: Tensor
    taught: Taught


class Lessons:
    """A pool of batches that a student cycles through.

    Each cycle goes through the pool in a new order, and each visit flips and rotates the whole batch at random, the
    teacher's outputs alike. Order and turns follow from the seed and the step number alone.

    Args:
        pool: the batches.
        taught: what the teacher makes of each, empty dictionaries without one.
        seed: of order and turns.
    """

    def __init__(self, pool: Sequence[Batch], taught: Sequence[Taught], seed: int) -> None:
        self._pool = pool
        self._taught = taught
        self._seed = seed

    def draw(self, step: int) -> Lesson:
        """The lesson of a step, float32, channels last in memory."""
        cycle, place = divmod(step, len(self._pool))
        index = np.random.default_rng([self._seed, 0, cycle]).permutation(len(self._pool))[place]
        rng = np.random.default_rng([self._seed, 1, step])
        quarters, mirror = int(rng.integers(4)), bool(rng.integers(2))

        def turned(images: Tensor) -> Tensor:
            images = torch.rot90(images.flip(3) if mirror else images, quarters, (2, 3))
            return images.float().contiguous(memory_format=torch.channels_last)

        batch = self._pool[index]
        taught = {name: turned(images) for name, images in self._taught[index].items()}
        return Lesson(turned(batch.clean), turned(batch.noisy), batch.sigma, taught)


def fingerprint(pool: Sequence[Batch], *models: DenoiserModel | None, **settings: object) -> str:
    """A hash of images, models (architecture and weights) and settings: equal when a run would be the same."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for model in models:
        if model is None:
            digest.update(b"none")
            continue
        digest.update(json.dumps([model.arch, model.config()], sort_keys=True).encode())
        for name, value in model.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    for batch in pool:
        for tensor in batch:
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def teach(
    teacher: DenoiserModel,
    pool: Sequence[Batch],
    *,
    features: Sequence[str] = (),
    half: bool,
    device: torch.device,
    cache: Path | None = None,
    progress: Callable[[int], None],
) -> list[Taught]:
    """Run the teacher once over the pool, or read what it made of it before.

    Args:
        features: modules of the teacher whose outputs are kept too.
        half: run under bfloat16 autocast, which the output image survives.
        cache: file to read when it is of this teacher and pool, and to write otherwise.
        progress: told how many batches are done.
    Raises: CheckpointError: the cache cannot be written.
    """
    run = fingerprint(pool, teacher, features=list(features), half=half)
    if cache is not None and (stored := _read(cache, run, len(pool))) is not None:
        progress(len(pool))
        return stored
    taught = []
    work = copy.deepcopy(teacher).eval().to(device)
    work.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half), tapped(work, features) as outputs:
        for number, batch in enumerate(pool):
            noisy = batch.noisy.to(device).contiguous(memory_format=torch.channels_last)
            image = work(noisy, batch.sigma.to(device))
            taught.append({name: t.half().cpu() for name, t in {OUTPUT: image, **outputs}.items()})
            progress(number + 1)
    if cache is not None:
        _write(cache, run, taught)
    return taught


def _read(cache: Path, run: str, count: int) -> list[Taught] | None:
    """The stored outputs; None when there are none, they are another run's, or the file is damaged."""
    from safetensors import SafetensorError, safe_open

    if not cache.exists():
        return None
    taught: list[Taught] = [{} for _ in range(count)]
    try:
        with safe_open(cache, framework="pt") as file:
            if (file.metadata() or {}).get("run") != run:
                return None
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                number, name = key.split(":", 1)
                taught[int(number)][name] = file.get_tensor(key)
    except (OSError, SafetensorError, ValueError, IndexError):
        return None
    return taught


def _write(cache: Path, run: str, taught: Sequence[Taught]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"{number}:{name}": t.contiguous() for number, item in enumerate(taught) for name, t in item.items()}
    temporary = cache.with_name(cache.name + ".tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"run": run})
        temporary.replace(cache)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write the teacher's outputs to {cache}: {error}; free some space or choose another folder"
        ) from error
