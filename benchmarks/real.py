"""Real camera noise: the best fixed sigma against `sigma="auto"`, and models against each other.

CC60 holds crops of JPEG photographs of still scenes by five cameras and lens settings, and the mean of some 500 shots
of each (Nam et al. 2016, doi:10.1109/CVPR.2016.186; crops of Xu et al. 2018, arXiv:1806.04329). No model was trained on
it, and no constant of the estimate was chosen by it.

The float model runs in torch on whole images, its output rounded to 8 bits; the estimate is the runtime's. PSNR is the
mean over the images. The best fixed sigma is chosen with the clean images at hand, which nobody has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# So that `python benchmarks/real.py` finds its neighbours as `python -m benchmarks.real` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results, sets
from benchmarks.console import leave, say, show
from benchmarks.contestants import CAMERA, STUDENT
from edgekit.bundle.reader import sha256
from edgekit.errors import DataError
from edgekit.models import checkpoints
from edgekit.runtime import images
from edgekit.runtime.estimate import estimate_sigma
from edgekit.runtime.quality import psnr

# Fixed levels that are tried, in 8-bit units.
SIGMAS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 25, 30, 40, 50)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[STUDENT, CAMERA], help="shipped names or weight files")
    parser.add_argument("--data", type=Path, default=sets.SHARED / "data" / "real" / "CC60", help="noisy/ and mean/")
    parser.add_argument("--limit", type=int, help="only so many images, the first by name: a quick look")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    found = pairs(options.data)[: options.limit]
    rows = [row for name in options.models for row in measure(name, found)]
    out = options.out or results.default("real", quick=options.limit is not None)
    results.save(out, {**results.about({"images": len(found), "sigmas": list(SIGMAS)}), "rows": rows})
    lines = [
        [r["model"], f"{r['noisy']:.2f}", f"{r['fixed']:.2f}", f"{r['fixed_sigma']:g}", f"{r['auto']:.2f}",
         f"{r['auto'] - r['fixed']:+.2f}", f"{r['auto_sigma']:.1f}", f"{r['white']:.2f}", f"{r['white_sigma']:.1f}",
         f"{r['best']:.2f}"]
        for r in rows
    ]  # fmt: skip
    columns = ["model", "noisy", "best fixed", "sigma", "auto", "to fixed", "mean", "white auto", "mean", "best each"]
    show(f"CC60, {len(found)} images, dB; float in torch", columns, lines)
    say(f"written to {out}")
    return 0


def pairs(folder: Path) -> list[tuple[sets.Image, sets.Image]]:
    """The noisy and the mean image of each crop, in the order of their names. Raises: DataError."""
    sides = [folder / "noisy", folder / "mean"]
    if not all(side.is_dir() for side in sides):
        raise DataError(f"no noisy/ and mean/ at {folder}: put CC60 at ../shared/data/real, or name it with --data")
    noisy, clean = ([images.load(path).pixels for path in images.list_images(side)] for side in sides)
    if [i.shape for i in noisy] != [i.shape for i in clean]:
        raise DataError(f"{folder}: noisy/ and mean/ do not hold the same images")
    return list(zip(noisy, clean, strict=True))


def measure(name: str, found: Sequence[tuple[sets.Image, sets.Image]]) -> list[dict[str, Any]]:
    """One row for a model: dB of the input, at the best fixed sigma, by the estimate, and by that for white noise."""
    import torch

    from edgekit import models
    from edgekit.runtime.correlated import correlated_level
    from edgekit.train.validation import denoise, to_tensor

    model = models.load(name).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fixed, auto, white, input_, levels, plain = [], [], [], [], [], []
    for k, (noisy, clean) in enumerate(found):
        shown = to_tensor(noisy)

        def score(sigma: float, shown: Any = shown, clean: sets.Image = clean) -> float:
            output = denoise(model, shown, torch.tensor([sigma / 255]))
            return psnr((output[0].permute(1, 2, 0) * 255).round().byte().numpy(), clean)

        input_.append(psnr(noisy, clean))
        fixed.append([score(sigma) for sigma in SIGMAS])
        estimate = estimate_sigma(noisy, (0.0, 55.0))
        # What the estimate was before it knew correlated noise: a gray image gets it still.
        alone = max(estimate_sigma(noisy[..., c]).raw for c in range(3)) if correlated_level(noisy) else estimate.raw
        levels.append(estimate.sigma)
        plain.append(alone)
        auto.append(score(estimate.sigma))
        white.append(score(alone))
        say(f"{name} {k + 1} of {len(found)}: {input_[-1]:.2f} dB, auto {estimate.sigma:.1f} {auto[-1]:.2f} dB")
    mean = np.mean(fixed, axis=0)
    row = {
        "model": name,
        "sha256": sha256(checkpoints.shipped().get(name, Path(name))),
        "noisy": float(np.mean(input_)),
        "fixed": float(mean.max()),
        "fixed_sigma": SIGMAS[int(mean.argmax())],
        "auto": float(np.mean(auto)),
        "auto_sigma": float(np.mean(levels)),
        "white": float(np.mean(white)),
        "white_sigma": float(np.mean(plain)),
        "best": float(np.max(fixed, axis=1).mean()),
        "by_sigma": {f"{s}": round(float(db), 3) for s, db in zip(SIGMAS, mean, strict=True)},
    }
    return [{key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}]


if __name__ == "__main__":
    leave(main)
