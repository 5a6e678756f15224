"""What pruning and integers cost on real camera noise: bundles on CC60, through the runtime, by `sigma="auto"`.

The same images as `benchmarks.real` takes, and the same figure: PSNR, the mean over the images. A bundle's float file
is the pruned network before it was quantized; what pruning lost shows beside the float model of `benchmarks.real`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# So that `python benchmarks/real_int8.py` finds its neighbours as `python -m benchmarks.real_int8` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results, sets
from benchmarks.console import leave, say, show
from benchmarks.real import pairs
from edgekit.bundle import reader
from edgekit.bundle.reader import Bundle
from edgekit.errors import BundleError
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.quality import psnr


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_int8", description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, help="of colour models, that `edgekit compress` wrote")
    parser.add_argument("--data", type=Path, default=sets.SHARED / "data" / "real" / "CC60", help="noisy/ and mean/")
    parser.add_argument("--limit", type=int, help="only so many images, the first by name: a quick look")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    found = pairs(options.data)[: options.limit]
    rows = []
    for path in options.bundles:
        with reader.read(path) as bundle:
            rows.append(measure(bundle, found))
    out = options.out or results.default("real-int8", quick=options.limit is not None)
    results.save(out, {**results.about({"images": len(found)}), "rows": rows})
    lines = [[r["name"], r["target"], *(f"{r[key]:.2f}" for key in ("noisy", "fp32", "int8"))] for r in rows]
    show(f'CC60, {len(found)} images, dB by sigma="auto"', ["model", "target", "noisy", "FP32", "INT8"], lines, texts=2)
    say(f"written to {out}")
    return 0


def measure(bundle: Bundle, found: Sequence[tuple[sets.Image, sets.Image]]) -> dict[str, Any]:
    """One row for a bundle: dB of the input, of its float file and of its integers.

    Raises: BundleError: it holds no integers, or no float file beside them.
    """
    manifest = bundle.manifest
    names = {v.name: v for v in manifest.variants}
    default = names[manifest.default_variant]
    if "fp32" not in names or not default.integer:
        raise BundleError(f"{bundle.source} holds {', '.join(names)}: expected an INT8 bundle with its fp32 file")
    row: dict[str, Any] = {
        "name": manifest.name,
        "target": manifest.target,
        "sha256": manifest.files[default.file],
        "macs_removed": round(1 - manifest.model.macs_per_pixel / manifest.model.original_macs_per_pixel, 3),
        "noisy": round(float(np.mean([psnr(noisy, clean) for noisy, clean in found])), 3),
    }
    for key, variant in (("fp32", "fp32"), ("int8", manifest.default_variant)):
        with Denoiser.from_bundle(bundle, variant) as denoiser:
            figures = [psnr(denoiser(noisy, sigma="auto"), clean) for noisy, clean in found]
        row[key] = round(float(np.mean(figures)), 3)
        say(f"{manifest.name} for {manifest.target}, {variant}: {row[key]:.2f} dB, {row['noisy']:.2f} before")
    return row


if __name__ == "__main__":
    leave(main)
