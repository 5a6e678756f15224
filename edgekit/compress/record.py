"""What a stage did: the record that each leaves behind."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

# The noise levels, in 8-bit units, at which every stage is judged.
SIGMAS = (5, 15, 25, 50)


@dataclass(frozen=True)
class Size:
    """MACs per input pixel and parameters of a model."""

    macs_per_pixel: float
    parameters: int


@dataclass(frozen=True)
class StageRecord:
    """What a stage did to the model.

    Attributes:
        stage: "original", "prune", "distill" or "quantize".
        what: one line in words, e.g. "removed 24.8% of MACs by Taylor score".
        before, after: the model's size.
        db_before, db_after: PSNR in dB by sigma (8-bit units) on held-out tiles, clipped 8-bit input, rounded output.
        seconds: wall time.
        details: stage-specific figures (widths, steps, losses).
    """

    stage: str
    what: str
    before: Size
    after: Size
    db_before: dict[float, float]
    db_after: dict[float, float]
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: sigmas become strings."""
        record = asdict(self)
        for key in ("db_before", "db_after"):
            record[key] = {f"{s:g}": db for s, db in record[key].items()}
        return record
