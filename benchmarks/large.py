"""A 12-megapixel photo: what cutting it into tiles costs over the bare engine, and how much memory it takes.

The engine on one tile, and the Denoiser on an image of 4000x3000, in turns; the fastest run of each counts. A tile
computes its halo too, so even without any overhead an image costs (T / (T - 2h))^2 of what its pixels alone would;
*over the halo* is what is spent beyond that, by windows that do not divide the image evenly and by everything that is
not the engine. Memory is what a process of its own holds at most while it denoises, over what it held with the model
loaded and run once: the image and its result are in it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

# So that `python benchmarks/large.py` finds its neighbours as `python -m benchmarks.large` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results, sets
from benchmarks.console import leave, say, show
from benchmarks.contestants import STUDENT
from edgekit.bundle import reader
from edgekit.runtime import memory, pixels, tiling
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.turns import in_turns

HEIGHT, WIDTH = 3000, 4000
SIGMA = 25


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--bundles", nargs="+", type=Path, help="build/dsunet-s-tflite.edgekit and -openvino.edgekit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "large.json")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of is not None:
        print(json.dumps(_memory(options.memory_of, options.threads)))
        return 0
    default = [sets.ROOT / "build" / f"{STUDENT}-{target}.edgekit" for target in ("tflite", "openvino")]
    rows = [_row(path, options) for path in options.bundles or default]
    results.save(
        options.out,
        {
            "settings": {"rounds": options.rounds, "threads": options.threads, "image": [HEIGHT, WIDTH]},
            "machine": results.machine(),
            "versions": results.versions(),
            "rows": rows,
        },
    )
    lines = [
        [r["bundle"], f"{r['image_ms']:.0f}", f"{r['ms_per_megapixel']:.1f}", f"{r['halo_factor']:.3f}",
         f"{r['windows_factor']:.3f}", f"{100 * r['over_halo']:+.1f}%", f"{100 * r['over_windows']:+.1f}%",
         f"{r['memory'] / 1e6:.0f}"]
        for r in rows
    ]  # fmt: skip
    columns = [
        "bundle",
        "ms",
        "ms/MP",
        "halo's own",
        "windows",
        "over the halo",
        "over the windows",
        "MB above the model",
    ]
    show(f"{WIDTH}x{HEIGHT}, {options.threads} thread", columns, lines, texts=1)
    say(f"written to {options.out}")
    return 0


def _photo() -> sets.Image:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def _row(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    say(f"{path.name}: {options.rounds} rounds")
    with ExitStack() as stack:
        bundle = stack.enter_context(reader.read(path))
        denoiser = stack.enter_context(Denoiser.from_bundle(bundle, None, options.threads))
        specs = {spec.role: spec for spec in denoiser.variant.inputs}
        photo, tile = _photo(), denoiser.tile
        fit = denoiser.engine.any_size
        cut = list(tiling.tiles(HEIGHT, WIDTH, tile, denoiser.halo, denoiser.stride, fit=fit))
        feed = {specs["image"].name: pixels.encode(photo[:tile, :tile], specs["image"])}
        if "sigma" in specs:
            feed[specs["sigma"].name] = pixels.encode_sigma(SIGMA, specs["sigma"])
        # A tile takes milliseconds: many runs of it for one of the image.
        runs = [lambda: [denoiser.engine.run(feed) for _ in range(10)], lambda: denoiser(photo, sigma=SIGMA)]
        tiles, image = in_turns(runs, options.rounds, math.inf, warm_up=1)
        per_pixel = float(tiles.min()) / 10 / tile**2
        halo = (tile / (tile - 2 * denoiser.halo)) ** 2
        windows = sum(row.size * column.size for row, column in cut) / (HEIGHT * WIDTH)
        spent = float(image.min()) / (per_pixel * HEIGHT * WIDTH)
        library = denoiser.engine.library
    command = [sys.executable, "-m", "benchmarks.large", "--memory-of", str(path), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        "bundle": path.name,
        "library": library,
        "tile": tile,
        "halo": denoiser.halo,
        "windows": len(cut),
        "image_ms": round(1e3 * float(image.min()), 1),
        "tile_ms": round(1e2 * float(tiles.min()), 3),
        "ms_per_megapixel": round(1e9 * float(image.min()) / (HEIGHT * WIDTH), 2),
        "halo_factor": round(halo, 4),
        "windows_factor": round(windows, 4),
        "over_halo": round(spent / halo - 1, 4),
        "over_windows": round(spent / windows - 1, 4),
        **json.loads(done.stdout.splitlines()[-1]),
    }


def _memory(path: Path, threads: int) -> dict[str, int]:
    """Bytes at most while the photo is denoised, over those held once a tile was."""
    with reader.read(path) as bundle, Denoiser.from_bundle(bundle, None, threads) as denoiser:
        small = np.zeros((denoiser.tile // 2, denoiser.tile // 2, 3), np.uint8)
        denoiser(small, sigma=SIGMA)
        memory.forget_high_water()
        loaded = memory.high_water() or 0
        denoiser(_photo(), sigma=SIGMA)
        return {"loaded": loaded, "memory": (memory.high_water() or 0) - loaded}


if __name__ == "__main__":
    leave(main)
