"""PSNR and SSIM: models x image sets x noise levels, float and INT8, through the runtime.

Noise is Gaussian and seeded; the input is clipped and rounded to 8 bits and so is the output, as on a device. Beside
it stands the unclipped column: the float model in torch on noise that was neither clipped nor rounded, as papers
measure. Figures are means over the images of a set.

What is done is kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

# So that `python benchmarks/quality.py` finds its neighbours as `python -m benchmarks.quality` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import contestants, published, results, sets
from benchmarks.console import leave, say, show
from benchmarks.contestants import CAMERA, ONLY, OTHERS, PEERS, STUDENT, TEACHER, Contestant
from benchmarks.exports import export, tile_for
from benchmarks.sets import SETS, SHARED, SIGMAS, Image, ImageSet
from edgekit.bundle import reader
from edgekit.bundle.golden import Golden
from edgekit.bundle.reader import Bundle
from edgekit.errors import BundleError, RecipeError
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.quality import psnr, ssim

# Figures of a row and what they are, in the order of the tables.
FIGURES = {
    "noisy": "the input",
    "unclipped": "FP32, unclipped noise, torch",
    "original": "FP32",
    "calibrated": "INT8, calibration alone",
    "fp32": "compressed, FP32",
    "int8": "compressed, INT8",
}
# The longest side of the sets' images: tiles of the exported originals cover it.
_SIDE = 500

# Model, set, sigma.
Key = tuple[str, str, int]
# (noisy image, sigma) -> clean image; what of its input is clipped is the figure's matter.
Run = Callable[[NDArray[Any], float], Image]


@dataclass(frozen=True)
class Column:
    """One figure of a row: how to get a runner, and what it runs.

    Attributes:
        sha256: of the file whose figures these are: weights, or a model file.
        open: makes a runner for one thread, closed by the stack.
        clipped: the runner gets uint8 as a device would; else float64 in 8-bit units.
        each: also keep the figure of each image.
    """

    sha256: str
    open: Callable[[ExitStack], Run]
    clipped: bool = True
    each: bool = False


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0, or 1 when a published figure is not reproduced."""
    options = _parse(arguments)
    weights = contestants.weights_of(options.weights)
    names = contestants.measured(options.models, contestants.NAMES, weights)
    out = options.out or results.default("quality", quick=options.limit is not None or bool(weights))
    settings = {"seed": options.seed, "limit": options.limit}
    rows, models = ({}, {}) if options.fresh else _kept(out, settings)
    images = [sets.read(options.data, name, options.limit) for name in options.sets]
    done: list[Key] = []
    began = time.perf_counter()
    with ThreadPoolExecutor(options.workers, initializer=one_thread) as pool:
        for name in names:
            contestant = contestants.load(name, weights=weights, kair=options.kair)
            with ExitStack() as stack:
                models[name] = contestant.facts()
                columns = _columns(contestant, options, stack, models[name])
                rows = {key: row for key, row in rows.items() if key[0] != name or not _stale(row, columns)}
                for chosen, sigma in _plan(contestant, images, options):
                    key = (name, chosen.name, sigma)
                    kept = rows.get(key, {"images": 0})
                    before = kept["figures"] if kept["images"] == len(chosen.images) else {}
                    wanted = {figure: column for figure, column in columns.items() if figure not in before}
                    if wanted:
                        row = measure(name, chosen, sigma, wanted, pool, options.workers, options.seed)
                        rows[key] = {**row, "figures": {**before, **row["figures"]}}
                        say(_line(row))
                        _save(out, settings, models, rows)
                    done.append(key)
    measured = [rows[key] for key in done]
    show("PSNR in dB", *_table(measured), texts=2)
    say(f"{time.perf_counter() - began:.0f} s; written to {out}")
    problems = _problems(measured) if options.limit is None else []
    for problem in problems:
        say(f"wrong: {problem}")
    return 1 if problems else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "test", help="folder of the image sets")
    parser.add_argument("--kair", type=Path, default=SHARED / "weights" / "kair", help="folder of published weights")
    parser.add_argument("--bundle", type=Path, default=sets.ROOT / "build" / f"{STUDENT}-tflite.edgekit")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help=", ".join(SETS))
    parser.add_argument("--sigmas", nargs="+", type=int, default=list(SIGMAS), help="8-bit units")
    parser.add_argument("--models", nargs="+", help=", ".join(contestants.NAMES))
    parser.add_argument("--weights", nargs="+", default=[], metavar="NAME=FILE", help="instead of the shipped ones")
    parser.add_argument("--full", action="store_true", help="the peers, too, at every level and through the runtime")
    parser.add_argument("--limit", type=int, help="so many images a set: a quick look, written to build/")
    parser.add_argument("--workers", type=int, default=min(4, results.cores()), help="images at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="benchmarks/results/quality.json")
    parser.add_argument("--fresh", action="store_true", help="measure anew what was measured before")
    options = parser.parse_args(arguments)
    for flag in ("limit", "workers"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise RecipeError(f"--{flag} is {value}: expected at least 1")
    return options


def one_thread() -> None:
    """Start a worker: torch keeps to one thread."""
    # Images are the threads; and sums in another order would be other figures.
    import torch

    torch.set_num_threads(1)


def _kept(out: Path, settings: Mapping[str, Any]) -> tuple[dict[Key, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Rows and models that an earlier run left, if it was of the same settings and versions."""
    found = results.kept(out, settings)
    rows = {(row["model"], row["set"], row["sigma"]): row for row in found.get("rows", ())}
    return rows, {model["name"]: model for model in found.get("models", ())}


def _stale(row: Mapping[str, Any], columns: Mapping[str, Column]) -> bool:
    """Whether a kept row is of other files than those that are measured now."""
    return any(name in columns and columns[name].sha256 != f["sha256"] for name, f in row["figures"].items())


def _save(out: Path, settings: Mapping[str, Any], models: Mapping[str, Any], rows: Mapping[Key, Any]) -> None:
    order = {name: place for place, name in enumerate([*contestants.NAMES, *SETS])}
    content = {
        **results.about(settings),
        "figures": FIGURES,
        "models": [models[name] for name in sorted(models, key=order.__getitem__)],
        "rows": [rows[key] for key in sorted(rows, key=lambda key: (order[key[0]], order[key[1]], key[2]))],
    }
    results.save(out, content)


def _plan(
    contestant: Contestant, images: Sequence[ImageSet], options: argparse.Namespace
) -> Iterator[tuple[ImageSet, int]]:
    """The rows of a model: each set of its kind and each level; of a peer, where a figure is published."""
    for chosen in images:
        if SETS[chosen.name] != contestant.model.channels:
            continue
        for sigma in options.sigmas:
            if sigma not in ONLY.get(contestant.name, (sigma,)):
                continue
            known = (contestant.name, chosen.name, sigma) in published.FIGURES
            if contestant.name not in PEERS or options.full or known:
                yield chosen, sigma


def _columns(
    contestant: Contestant, options: argparse.Namespace, stack: ExitStack, fact: dict[str, Any]
) -> dict[str, Column]:
    """The figures of a model: its own, and those of the bundle if it is the one that was compressed."""
    model = contestant.model
    found = {
        "unclipped": Column(
            contestant.sha256,
            lambda stack: lambda image, sigma: published.denoise(model, image, sigma),
            clipped=False,
            each=contestant.name in PEERS,
        )
    }
    if contestant.name in PEERS and not options.full:
        return found
    say(f"{contestant.name}: exporting, or opening an earlier export")
    # A teacher teaches in float; it goes to no device.
    precision = "fp32" if contestant.name in (CAMERA, TEACHER, *OTHERS) else "int8"
    whole = stack.enter_context(export(contestant, tile_for(model, _SIDE), precision=precision))
    found["original"] = through_runtime(whole, "fp32")
    if precision == "int8":
        found["calibrated"] = through_runtime(whole, "int8")
    if contestant.name == STUDENT:
        bundle = stack.enter_context(reader.read(options.bundle))
        same_origin(bundle, whole)
        found["fp32"] = through_runtime(bundle, "fp32")
        found["int8"] = through_runtime(bundle, "int8")
        fact["compressed_macs_per_pixel"] = round(bundle.manifest.model.macs_per_pixel, 1)
        fact["compressed_parameters"] = bundle.manifest.model.parameters
        fact["stages"] = [stage["what"] for stage in bundle.manifest.stages]
    return found


def same_origin(bundle: Bundle, whole: Bundle) -> None:
    """Refuse a bundle that was compressed from other weights than those it is compared with.

    Raises: BundleError.
    """
    golden = bundle.golden()
    with Denoiser.from_bundle(whole, "fp32", 1) as denoiser:
        ours = denoiser(golden.noisy[0], sigma=float(golden.sigma[0])).astype(int)
    theirs = Golden.to_uint8(golden.fp32_original[0])
    # Two float engines differ by a rounding at most.
    if np.abs(ours - theirs).max() > 1:
        raise BundleError(
            f"{bundle.source} was compressed from other weights than those of {whole.manifest.name}: run `edgekit "
            "compress --target tflite --force` again, or name the bundle with --bundle"
        )


def through_runtime(bundle: Bundle, variant: str) -> Column:
    """A figure of a bundle's variant, as the runtime computes it with one thread."""
    file = next(v.file for v in bundle.manifest.variants if v.name == variant)

    def open_one(stack: ExitStack) -> Run:
        denoiser = stack.enter_context(Denoiser.from_bundle(bundle, variant, 1))
        return lambda image, sigma: denoiser(image, sigma=sigma)

    return Column(bundle.manifest.files[file], open_one)


def measure(
    model: str,
    chosen: ImageSet,
    sigma: int,
    columns: Mapping[str, Column],
    pool: ThreadPoolExecutor,
    workers: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure one row.

    Args:
        columns: the figures to measure, by name.
        pool: runs the images; `workers` runners are opened for it.
        seed: of the noise.
    Returns: a row of the results.
    """
    clipped = {k: sets.to_bytes(sets.noisy(clean, sigma, k, seed)) for k, clean in enumerate(chosen.images)}
    inputs = [psnr(clipped[k], clean) for k, clean in enumerate(chosen.images)]
    figures: dict[str, dict[str, Any]] = {"noisy": {"psnr": round(float(np.mean(inputs)), 4)}}
    for name, column in columns.items():
        began = time.perf_counter()
        with ExitStack() as stack:
            runners: SimpleQueue[Run] = SimpleQueue()
            for _ in range(workers):
                runners.put(column.open(stack))

            def one(k: int, column: Column = column, runners: SimpleQueue[Run] = runners) -> tuple[float, float]:
                clean = chosen.images[k]
                image = clipped[k] if column.clipped else sets.noisy_as_published(clean, sigma)
                run = runners.get()
                try:
                    result = run(image, sigma)
                finally:
                    runners.put(run)
                return psnr(result, clean), ssim(result, clean)

            scores = list(pool.map(one, range(len(chosen.images))))
        decibels, similarity = (float(np.mean(column)) for column in zip(*scores, strict=True))
        figure: dict[str, Any] = {
            "psnr": round(decibels, 4),
            "ssim": round(similarity, 5),
            "sha256": column.sha256,
            "seconds": round(time.perf_counter() - began, 2),
        }
        if column.each:
            figure["each"] = [round(score[0], 3) for score in scores]
        figures[name] = figure
    return {
        "model": model,
        "set": chosen.name,
        "sigma": sigma,
        "images": len(chosen.images),
        "megapixels": round(chosen.megapixels, 3),
        "figures": figures,
    }


def _line(row: Mapping[str, Any]) -> str:
    figures = ", ".join(f"{name} {figure['psnr']:.2f}" for name, figure in row["figures"].items())
    seconds = sum(figure.get("seconds", 0) for figure in row["figures"].values())
    return f"{row['model']} {row['set']} sigma {row['sigma']}: {figures} ({seconds:.0f} s)"


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = [name for name in FIGURES if any(name in row["figures"] for row in rows)]
    lines = []
    for row in rows:
        cells = [f"{row['figures'][n]['psnr']:.2f}" if n in row["figures"] else "" for n in names]
        lines.append([row["model"], row["set"], str(row["sigma"]), *cells])
    return ["model", "set", "sigma", *(FIGURES[name] for name in names)], lines


def _problems(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [
        published.wrong(row["model"], row["set"], row["sigma"], row["figures"]["unclipped"]["psnr"]) for row in rows
    ]
    return [problem for problem in found if problem]


if __name__ == "__main__":
    leave(main)
