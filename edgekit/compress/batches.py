"""How training batches reach a stage: drawn by step number, so that a resumed stage sees what the whole one would."""

from __future__ import annotations

from typing import Protocol

from edgekit.batch import Batch

__all__ = ["Batch", "Batches", "Progress", "silent"]


class Batches(Protocol):
    """`batches(step)` draws the batch of a step; the same step gives the same batch, in any order and any process."""

    def __call__(self, step: int) -> Batch: ...


class Progress(Protocol):
    """`progress(done, total, text)` is told how far a stage is; text is short, e.g. "loss 0.0123"."""

    def __call__(self, done: int, total: int, text: str = "") -> None: ...


def silent(done: int, total: int, text: str = "") -> None:
    """The progress of a stage that nobody watches."""
