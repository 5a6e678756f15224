"""What a run writes down as it goes: log.jsonl, and TensorBoard's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgekit.errors import MissingExtraError, TrainingError
from edgekit.models.checkpoints import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG = "log.jsonl"


class Journal:
    """Records of a run: one JSON object a line, and the same as TensorBoard scalars where that is wanted.

    Args:
        folder: where log.jsonl stands; TensorBoard's files go to `tensorboard/` below it.
        start: the step the run starts or resumes at; records of later steps, which a killed run left, are removed.
        tensorboard: write TensorBoard files, too.
    Raises: MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, start: int, tensorboard: bool) -> None:
        self.path = folder / LOG
        kept = [record for record in read_log(self.path) if record["step"] <= start]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self.seconds = float(kept[-1]["seconds"]) if kept else 0.0
        self._writer: SummaryWriter | None = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError.needs("the setting tensorboard", "tensorboard", "train") from error
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; it has "step" and "seconds".

        Raises: TrainingError: the disk is full.
        """
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise TrainingError(f"cannot write {self.path}: {error.strerror}; free some space, then resume") from error
        if self._writer:
            for name, value in record.items():
                if name != "step":
                    self._writer.add_scalar(name, value, record["step"])

    def images(self, name: str, images: list[Tensor], step: int) -> None:
        """Show images [1, C, H, W] in 0..1 side by side in TensorBoard."""
        if self._writer:
            self._writer.add_image(name, torch.cat(images, 3)[0].clamp(0, 1), step)

    def close(self) -> None:
        """Flush and close TensorBoard's files."""
        if self._writer:
            self._writer.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log.jsonl; a last line that was cut short by a kill is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
