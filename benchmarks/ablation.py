"""Which means of compression pay: each alone, at equal steps, several seeds, on held-out training images.

Nothing here sees the test sets: what is on by default was chosen by these figures. Rows that an earlier run finished
are kept. Seeds change the order of batches, their noise, and random weights; the held-out crops are the same for all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# So that `python benchmarks/ablation.py` finds its neighbours as `python -m benchmarks.ablation` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results
from benchmarks.console import leave, say, show
from benchmarks.contestants import STUDENT, TEACHER
from benchmarks.sets import SHARED, SIGMAS
from benchmarks.tables import ablation_table as table
from edgekit import models
from edgekit.bundle.reader import sha256
from edgekit.compress.batches import Batches
from edgekit.compress.distill import distill
from edgekit.compress.evaluate import Denoise, evaluate
from edgekit.compress.prune import prune
from edgekit.compress.quantize import quantize
from edgekit.errors import DataError
from edgekit.models import DenoiserModel, checkpoints
from edgekit.recipe import DistillSettings, PruneSettings, QuantizeSettings, TrainSettings
from edgekit.targets import registry
from edgekit.train.images import ImageSource, open_images
from edgekit.train.sampling import batches

# The student that is trained from nothing: small, so that a row takes a minute.
_FROM_NOTHING = "dsunet-n"
# Held-out crops: how many, and their side.
_CROPS, _SIDE = 24, 160
# Modules of one resolution, of the student and of its teacher; an adapter stands between their widths.
_OWN_FEATURES = {"features": {"middle": "middle"}, "feature_weight": 0.01}
_FEATURES = {"features": {"middle": "decoder.1"}, "feature_weight": 0.01}
_ALONE = {"output_weight": 0.0, "clean_weight": 1.0}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: what it is compared within.
        name: of the row.
        run: by laboratory, gives what is judged.
    """

    group: str
    name: str
    run: Callable[[Laboratory], Denoise]


@dataclass
class Laboratory:
    """What the rows of one seed share.

    Attributes:
        source: the images.
        crops: held-out crops, uint8 [K, H, W, C].
        seed: of this series.
        steps: of a training; three times as many from nothing.
        cache: folder of the teacher's outputs.
    """

    source: ImageSource
    crops: NDArray[np.uint8]
    seed: int
    steps: int
    cache: Path

    @cached_property
    def batches(self) -> Batches:
        """Training batches of this seed."""
        return batches(self.source, TrainSettings(batch=8, patch=96, seed=self.seed))

    @cached_property
    def original(self) -> DenoiserModel:
        """The shipped student."""
        return models.load(STUDENT)

    @cached_property
    def teacher(self) -> DenoiserModel:
        """The shipped teacher."""
        return models.load(TEACHER)

    def pruned(self, criterion: str = "taylor", ratio: float = 0.25) -> DenoiserModel:
        """The shipped student with channels gone, nothing trained."""
        settings = PruneSettings(criterion=criterion, ratio=ratio)
        return prune(self.original, settings, self.batches, self.crops[:2])[0]

    def trained(
        self, student: DenoiserModel, teacher: DenoiserModel | None, *, times: int = 1, **settings: Any
    ) -> DenoiserModel:
        """A student after so many times the series' steps."""
        chosen = DistillSettings(steps=times * self.steps, seed=self.seed, **settings)
        kind = "none" if teacher is None else teacher.arch + str(teacher.parameter_count())
        cache = self.cache / f"{kind}-{self.seed}-{chosen.cache_batches}-{len(chosen.features)}.safetensors"
        return distill(student, teacher, chosen, self.batches, self.crops[:2], cache=cache)[0]

    @cached_property
    def recovered(self) -> DenoiserModel:
        """What the default compression quantizes."""
        return self.trained(self.pruned(), self.original)

    def small(self) -> DenoiserModel:
        """A small student with random weights."""
        torch.manual_seed(self.seed)
        return models.create(_FROM_NOTHING)

    def integers(self, **settings: Any) -> Denoise:
        """The recovered student in TFLite's integers."""
        chosen = QuantizeSettings(**settings)
        scheme = registry.get("tflite").scheme()
        program, _ = quantize(self.recovered, scheme, chosen, self.batches, self.crops[:2], sigma_range=(0.0, 55 / 255))
        return program


# From nothing more is to be learned.
_LARGE: dict[str, Any] = {"cache_batches": 256, "times": 3}
_SQUARES: dict[str, Any] = {"steps": 0, "range_fit": "least-squares"}
_NEAREST: dict[str, Any] = {**_SQUARES, "rounding": "nearest"}
_EXTREMES = {**_NEAREST, "range_fit": "extremes", "bias_correction": False}
ROWS = (
    Row("from nothing", "clean images alone", lambda lab: lab.trained(lab.small(), None, **_ALONE, **_LARGE)),
    Row("from nothing", "+ the teacher's outputs", lambda lab: lab.trained(lab.small(), lab.teacher, **_LARGE)),
    Row(
        "from nothing",
        "+ outputs and features",
        lambda lab: lab.trained(lab.small(), lab.teacher, **_FEATURES, **_LARGE),
    ),
    Row("recovery", "clean images alone", lambda lab: lab.trained(lab.pruned(), None, **_ALONE)),
    Row("recovery", "+ the original's outputs", lambda lab: lab.recovered),
    Row("recovery", "+ its outputs and features", lambda lab: lab.trained(lab.pruned(), lab.original, **_OWN_FEATURES)),
    Row("recovery", f"+ outputs of {TEACHER}", lambda lab: lab.trained(lab.pruned(), lab.teacher)),
    *(
        Row(
            f"pruned by {ratio:.0%}",
            name,
            lambda lab, criterion=criterion, ratio=ratio: lab.trained(lab.pruned(criterion, ratio), lab.original),
        )
        for ratio in (0.25, 0.5)
        for criterion, name in (
            ("l1", "L1 norm"),
            ("taylor-sum", "Taylor, as published"),
            ("taylor", "Taylor, readers weighed together"),
        )
    ),
    Row("integers", "float", lambda lab: lab.recovered),
    Row("integers", "calibration, extremes", lambda lab: lab.integers(**_EXTREMES)),
    Row("integers", "+ least squared error", lambda lab: lab.integers(**_NEAREST, bias_correction=False)),
    Row("integers", "+ bias correction", lambda lab: lab.integers(**_NEAREST)),
    Row("integers", "+ weights of a layer rounded together", lambda lab: lab.integers(**_SQUARES)),
    Row(
        "integers",
        "QAT to the clean image",
        lambda lab: lab.integers(clean_weight=1.0, teacher_weight=0.0, settle_share=0.0),
    ),
    Row("integers", "QAT to the float output", lambda lab: lab.integers(settle_share=0.0)),
    Row("integers", "+ weights still at the end", lambda lab: lab.integers()),
)


def main(arguments: Sequence[str]) -> int:
    """Run the ablation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "train", help="folder of training images")
    parser.add_argument("--steps", type=int, default=1000, help="of every training but QAT's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", help=", ".join(dict.fromkeys(row.group for row in ROWS)))
    parser.add_argument("--threads", type=int, default=results.cores())
    parser.add_argument("--out", type=Path, default=results.FOLDER / "ablation.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    source = open_images(options.data, channels=3, patch=96, validation_share=0.05, seed=0)
    shipped = checkpoints.shipped()
    settings = {
        "steps": options.steps,
        "images": source.digest,
        "crops": _CROPS,
        "student": sha256(shipped[STUDENT]),
        "teacher": sha256(shipped[TEACHER]),
    }
    rows: list[dict[str, Any]] = results.kept(options.out, settings).get("rows", [])
    crops = np.stack(list(_crops(source)))
    order = [(row.group, row.name) for row in ROWS]
    with tempfile.TemporaryDirectory() as cache:
        for seed in options.seeds:
            lab = Laboratory(source, crops, seed, options.steps, Path(cache))
            for row in ROWS:
                known = {(r["group"], r["name"], r["seed"]) for r in rows}
                if (row.group, row.name, seed) in known or (options.groups and row.group not in options.groups):
                    continue
                began = time.perf_counter()
                found = evaluate(row.run(lab), crops, SIGMAS)
                psnr = {f"{level:g}": round(db, 4) for level, db in found.items()}
                told = {"group": row.group, "name": row.name, "seed": seed, "psnr": psnr}
                rows.append({**told, "seconds": round(time.perf_counter() - began, 1)})
                # As they build on each other, not as they were run.
                rows.sort(key=lambda r: (r["seed"], order.index((r["group"], r["name"]))))
                say(f"seed {seed}  {row.group}: {row.name}: {psnr}")
                results.save(options.out, {**results.about(settings), "rows": rows})
    show("Mean dB over the noise levels, and its spread over the seeds", *table(rows), texts=2)
    return 0


def _crops(source: ImageSource) -> Iterator[NDArray[np.uint8]]:
    """Crops of held-out pictures, one each, in turn until there are enough."""
    rng = np.random.default_rng(0)
    large = [p for p in source.held_out if min(p.shape[:2]) >= _SIDE]
    if not large:
        raise DataError(f"{source.name}: no held-out image is {_SIDE} pixels high and wide: add larger ones")
    for number in range(_CROPS):
        clean, _ = large[number % len(large)].pixels()
        top, left = (int(rng.integers(side - _SIDE + 1)) for side in clean.shape[:2])
        yield clean[top : top + _SIDE, left : left + _SIDE].copy()


if __name__ == "__main__":
    leave(main)
