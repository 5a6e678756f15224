"""Replay: old images with their old noise among the new ones, so that a model that learns does not forget."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from edgekit.batch import Batch
from edgekit.recipe import NoiseSettings, TrainSettings
from edgekit.train.images import ImageSource
from edgekit.train.sampling import Sampler


@dataclass(frozen=True)
class Replay:
    """What is shown again.

    Attributes:
        source: old images, or ones that stand for them.
        noises: the noises that the model knows, which take turns, one or more; pairs bring their own.
        share: of the images of a batch, 0..1.
    Source: rehearsal, Robins 1995, doi:10.1080/09540099550039318.
    """

    source: ImageSource
    noises: tuple[NoiseSettings, ...]
    share: float


class Mixed:
    """`mixed(step)` draws the batch of a step: new images, then old ones. See `Sampler`.

    Args:
        source, settings, rank, world: the new images, as for `Sampler`.
        replay: the old ones. Where the share is no whole number of images, it is met over several steps.
    Raises: DataError: an image is smaller than the crop.
    """

    def __init__(
        self, source: ImageSource, settings: TrainSettings, replay: Replay, rank: int = 0, world: int = 1
    ) -> None:
        self._new = Sampler(source, settings)
        # Streams of their own: new and old crops must not lie at the same places.
        self._old = [
            Sampler(replay.source, settings.model_copy(update={"noise": noise}), stream=1 + k)
            for k, noise in enumerate(replay.noises)
        ]
        self._share = replay.share
        self._count = world * settings.batch
        self._mine = slice(rank * settings.batch, (rank + 1) * settings.batch)

    def __call__(self, step: int) -> Batch:
        """Draw the batch of a step."""
        wanted = self._share * self._count
        old = range(math.floor(step * wanted + 1e-9), math.floor((step + 1) * wanted + 1e-9))
        # The old images are numbered through the run, and their noises take turns.
        turns = [sum(i % len(self._old) == k for i in old) for k in range(len(self._old))]
        counts = [self._count - len(old), *turns]
        parts = [s.draw(step, count) for s, count in zip((self._new, *self._old), counts, strict=True) if count]
        return Batch(*(torch.cat(fields)[self._mine] for fields in zip(*parts, strict=True)))
