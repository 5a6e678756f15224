"""Milliseconds per megapixel of useful pixels: float and INT8, one thread and two, beside the published FFDNet.

Timed is the engine (LiteRT, or OpenVINO with --target openvino) on one tile, everything loaded. Useful are the pixels
of a tile that a denoised image is made of: the halo, which neighbouring tiles compute again, is paid for and not
counted. The contestants run in turns, so that whatever the machine does besides hits all of them, and the fastest of
the rounds counts. What cutting, mirroring and putting together add is measured too, with the Denoiser on an image of
two by two tiles.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# So that `python benchmarks/latency.py` finds its neighbours as `python -m benchmarks.latency` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import contestants, results, sets
from benchmarks.console import leave, say, show
from benchmarks.contestants import STUDENT
from benchmarks.exports import export
from benchmarks.sets import SHARED
from edgekit.bundle import reader
from edgekit.bundle.reader import Bundle
from edgekit.errors import RecipeError
from edgekit.runtime import pixels, tiling
from edgekit.runtime.denoiser import Denoiser

PEER = "ffdnet-color"
# What of each model is timed: as in benchmarks.quality.FIGURES.
COMPRESSED, WHOLE = {"fp32": "fp32", "int8": "int8"}, {"original": "fp32", "calibrated": "int8"}


@dataclass(frozen=True)
class Timed:
    """One thing to time.

    Attributes:
        facts: what the results say of it.
        run: runs it once.
    """

    facts: dict[str, Any]
    run: Callable[[], object]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    options = _parse(arguments)
    weights = contestants.weights_of(options.weights)
    names = contestants.measured(options.models, [STUDENT, PEER], weights)
    name = "latency" if options.target == "tflite" else f"latency-{options.target}"
    out = options.out or results.default(name, quick=options.rounds < 7 or bool(weights))
    place = options.bundle or sets.ROOT / "build" / f"{STUDENT}-{options.target}.edgekit"
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is busy (load {load:.1f}): times will be too long and ratios uncertain")
    with ExitStack() as stack:
        timed: list[Timed] = []
        for name in names:
            contestant = contestants.load(name, weights=weights, kair=options.kair)
            say(f"{name}: exporting, or opening an earlier export")
            whole = stack.enter_context(export(contestant, options.tile, target=options.target))
            for threads in options.threads:
                timed += _tiles(whole, WHOLE, threads, stack)
                if name == STUDENT:
                    bundle = stack.enter_context(reader.read(place))
                    timed += _tiles(bundle, COMPRESSED, threads, stack)
                    timed.append(_image(bundle, "int8", threads, stack))
        say(f"{len(timed)} contestants, {options.rounds} rounds")
        rows = [row(entry, times) for entry, times in zip(timed, in_turns(timed, options.rounds), strict=True)]
    found = {
        "settings": {"rounds": options.rounds, "threads": options.threads},
        "machine": {**results.machine(), "load": round(load, 2)},
        "versions": results.versions(),
        "rows": rows,
        "ratios": ratios(rows),
    }
    results.save(out, found)
    _print(found)
    say(f"written to {out}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--target", choices=["tflite", "openvino"], default="tflite")
    parser.add_argument("--bundle", type=Path, help=f"build/{STUDENT}-TARGET.edgekit")
    parser.add_argument("--kair", type=Path, default=SHARED / "weights" / "kair", help="folder of published weights")
    parser.add_argument("--models", nargs="+", help=", ".join(contestants.NAMES))
    parser.add_argument("--weights", nargs="+", default=[], metavar="NAME=FILE", help="instead of the shipped ones")
    parser.add_argument("--tile", type=int, default=512, help="of the exported models; a bundle has its own")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7, help="fewer than 7 are a quick look, written to build/")
    parser.add_argument("--out", type=Path, help="benchmarks/results/latency.json")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or min(options.threads) < 1:
        raise RecipeError(f"--rounds {options.rounds}, --threads {options.threads}: expected at least 1")
    return options


def _facts(bundle: Bundle, figure: str, variant: str, denoiser: Denoiser, threads: int) -> dict[str, Any]:
    files = next(v.files for v in bundle.manifest.variants if v.name == variant)
    return {
        "model": bundle.manifest.name,
        "figure": figure,
        "threads": threads,
        "through": "engine",
        "tile": denoiser.tile,
        "halo": denoiser.halo,
        "useful_pixels": tiling.step(denoiser.tile, denoiser.halo, denoiser.stride) ** 2,
        "macs_per_pixel": round(bundle.manifest.model.macs_per_pixel, 1),
        "bytes": sum(bundle.path(file).stat().st_size for file in files),
        "sha256": bundle.manifest.files[files[0]],
        "library": denoiser.engine.library,
        "kernels": denoiser.engine.kernels,
    }


def _tiles(bundle: Bundle, figures: dict[str, str], threads: int, stack: ExitStack) -> list[Timed]:
    """The engine on one tile, for some of a bundle's model files."""
    found = []
    for figure, variant in figures.items():
        denoiser = stack.enter_context(Denoiser.from_bundle(bundle, variant, threads))
        specs = {spec.role: spec for spec in denoiser.variant.inputs}
        shape = (denoiser.tile, denoiser.tile, denoiser.channels)
        feed = {specs["image"].name: pixels.encode(_picture(shape), specs["image"])}
        if "sigma" in specs:
            feed[specs["sigma"].name] = pixels.encode_sigma(25, specs["sigma"])

        def run(denoiser: Denoiser = denoiser, feed: dict[str, Any] = feed) -> object:
            return denoiser.engine.run(feed)

        found.append(Timed(_facts(bundle, figure, variant, denoiser, threads), run))
    return found


def _image(bundle: Bundle, variant: str, threads: int, stack: ExitStack) -> Timed:
    """The Denoiser on an image of exactly two by two tiles."""
    denoiser = stack.enter_context(Denoiser.from_bundle(bundle, variant, threads))
    tile, halo, stride = denoiser.tile, denoiser.halo, denoiser.stride
    # The second window ends at its own right halo.
    side = -halo // stride * stride + tiling.step(tile, halo, stride) + tile - halo
    image = _picture((side, side, denoiser.channels))
    facts = _facts(bundle, variant, variant, denoiser, threads)
    return Timed({**facts, "through": "denoiser", "useful_pixels": side**2}, lambda: denoiser(image, sigma=25))


def _picture(shape: tuple[int, ...]) -> sets.Image:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def in_turns(timed: Sequence[Timed], rounds: int, clock: Callable[[], float] = time.perf_counter) -> list[list[float]]:
    """Run every contestant once a round, after one run each that does not count.

    Args:
        clock: seconds.
    Returns: milliseconds of each run, a list for each contestant.
    """
    for entry in timed:
        entry.run()
    times: list[list[float]] = [[] for _ in timed]
    for number in range(rounds):
        for entry, mine in zip(timed, times, strict=True):
            began = clock()
            entry.run()
            mine.append(1000 * (clock() - began))
        say(f"round {number + 1} of {rounds}")
    return times


def row(entry: Timed, times: Sequence[float]) -> dict[str, Any]:
    """A row of the results: the fastest run and the median, and the fastest per megapixel of useful pixels."""
    best = min(times)
    return {
        **entry.facts,
        "ms": round(best, 3),
        "ms_median": round(statistics.median(times), 3),
        "ms_per_megapixel": round(best / entry.facts["useful_pixels"] * 1e6, 2),
    }


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as long as the compressed INT8 student each row of the same threads takes."""
    found = []
    for one in rows:
        ours = [r for r in rows if (r["model"], r["figure"], r["through"]) == (STUDENT, "int8", "engine")]
        ours = [r for r in ours if r["threads"] == one["threads"]]
        if ours:
            times = one["ms_per_megapixel"] / ours[0]["ms_per_megapixel"]
            key = {name: one[name] for name in ("model", "figure", "through", "threads")}
            found.append({**key, "times": round(times, 3)})
    return found


def _print(found: dict[str, Any]) -> None:
    from benchmarks.quality import FIGURES

    longer = {(r["model"], r["figure"], r["through"], r["threads"]): r["times"] for r in found["ratios"]}
    lines = []
    for entry in found["rows"]:
        key = (entry["model"], entry["figure"], entry["through"], entry["threads"])
        name = FIGURES[entry["figure"]]
        cells = [entry["model"], name, entry["through"], str(entry["threads"]), f"{entry['tile']}, {entry['halo']}"]
        ratio = f"{longer[key]:.2f}" if key in longer else ""
        lines.append([*cells, f"{entry['ms']:.1f}", f"{entry['ms_per_megapixel']:.1f}", ratio])
    columns = ["model", "what", "through", "threads", "tile, halo", "ms", "ms/MP useful", "times INT8"]
    show(f"fastest of {found['settings']['rounds']}, in turns", columns, lines, texts=3)


if __name__ == "__main__":
    leave(main)
