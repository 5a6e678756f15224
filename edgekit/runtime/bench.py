"""How fast bundles are here, side by side: everything in turns in one run, so that all of it meets the same machine."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit._version import __version__
from edgekit.bundle import reader
from edgekit.bundle.reader import Bundle
from edgekit.errors import RecipeError, UnknownNameError
from edgekit.runtime import pixels, tiling
from edgekit.runtime.check import default_of
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.engines.base import Profiler
from edgekit.runtime.memory import peak_memory
from edgekit.runtime.one_tile import fill_one_tile
from edgekit.runtime.slow_layers import Blame, by_profile, by_report
from edgekit.runtime.turns import MIN_RUNS, in_turns
from edgekit.runtime.verdict import int8_share

# The baseline where none is asked for, and the word that asks for none.
DEFAULT_BASELINE, NO_BASELINE = "fp32", "none"

# The first run packs weights and fills caches; by the third an engine that compiles for a size has done so.
_WARM_UP = 3
# Load of a machine that does nothing else.
_IDLE = 0.5


@dataclass(frozen=True)
class Timed:
    """One model file, timed: runs of the Denoiser on an image whose useful pixels fill one tile.

    Attributes:
        bundle: where the bundle lies, as it was given.
        name, target, variant: what it is, e.g. "dsunet-s", "tflite", "int8".
        engine, library, kernels, threads: what ran it, as `edgekit.runtime.engines.base.Engine` tells.
        runs: how many were timed.
        p50_ms, p90_ms, p99_ms: percentiles of one run, in milliseconds.
        useful_pixels: of one run; the halo is computed too, and not counted.
        ms_per_megapixel, fastest_ms_per_megapixel: of useful pixels, by the median and by the fastest run.
        megapixels_per_second: throughput, by the median.
        baseline: the variant of the same bundle that it is compared with; None if there is none, or it is that itself.
        ratio: how many times faster than the baseline, by the medians; None likewise.
        peak_memory: bytes that opening and running it adds to a process of its own, the engine's library included;
            None where it was not measured.
        int8_share: share of MACs in int8, 0..1; None where neither engine nor manifest tells.
        slow: for an int8 file that is slower than its float baseline here: the layers to blame.
        made_for: the library that the file is made for, where another one stood in for it here, e.g. "TensorRT".
    """

    bundle: str
    name: str
    target: str
    variant: str
    engine: str
    library: str
    kernels: str
    threads: int
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    useful_pixels: int
    ms_per_megapixel: float
    fastest_ms_per_megapixel: float
    megapixels_per_second: float
    baseline: str | None
    ratio: float | None
    peak_memory: int | None
    int8_share: float | None
    slow: Blame | None
    made_for: str = ""

    @property
    def label(self) -> str:
        """E.g. "build/dsunet-s-tflite.edgekit int8": two builds of one model have one name."""
        return f"{self.bundle} {self.variant}"


@dataclass(frozen=True)
class Bench:
    """What `bench` measured.

    Attributes:
        timed: one entry a model file, in the order given; a bundle's baseline follows it.
        notes: what must be known to read the figures: a busy machine, an int8 file slower than float, no memory figure.
        versions: of edgekit, Python, numpy and the engines' libraries.
        machine: processor, system, processors this process may use, load when it began (None where unknown).
    """

    timed: tuple[Timed, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    machine: dict[str, Any]

    @property
    def fastest(self) -> Timed:
        """The least milliseconds per megapixel, by the median; a stand-in's only where nothing else was timed."""
        return min(self.timed, key=lambda entry: (bool(entry.made_for), entry.ms_per_megapixel))

    def line(self) -> str:
        """The result on one line, e.g. "fastest: a.edgekit int8, 55.4 ms/MP (18.1 MP/s), 2.34x its fp32, 1 thread"."""
        best = self.fastest
        against = f", {best.ratio:.2f}x its {best.baseline}" if best.ratio is not None else ""
        threads = f"{best.threads} thread{'s' if best.threads > 1 else ''}"
        return (
            f"fastest: {best.label}, {best.ms_per_megapixel:.3g} ms/MP ({best.megapixels_per_second:.3g} MP/s)"
            f"{against}, {threads}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it, with `line` computed."""
        return {"line": self.line(), **asdict(self)}


@dataclass(frozen=True)
class _Contender:
    """An open model file that takes part.

    Attributes:
        baseline: place among the contenders of what it is compared with; None if there is none.
    """

    bundle: Bundle
    denoiser: Denoiser
    image: NDArray[np.uint8]
    sigma: float
    baseline: int | None

    def run(self) -> object:
        return self.denoiser(self.image, sigma=self.sigma)


def bench(
    paths: Sequence[str | os.PathLike[str]],
    *,
    variant: str | None = None,
    baseline: str | None = None,
    threads: int | None = None,
    runs: int = 30,
    seconds: float = 30.0,
) -> Bench:
    """Time bundles against each other and against their own float variant, in turns.

    Args:
        paths: the bundles, folders or zips. One may come twice: the difference is the measurement's own.
        variant: which model file of each; None is the default one.
        baseline: the variant of each bundle that is timed beside it; None is fp32 where the bundle has it, "none" none.
        threads: CPU threads, the same for all; None is as many as there are, at most 4.
        runs: timed runs of each, at most.
        seconds: no round begins after that long; 3 are made in any case.
    Raises: RecipeError: no bundle, or runs, seconds or threads out of range. UnknownNameError: a bundle has no such
        variant. BundleError, MissingExtraError, EngineError: as `edgekit.runtime.denoiser.open`.
    """
    _validate(paths, runs, seconds)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with ExitStack() as stack:
        contenders = _open(paths, variant, baseline, threads, stack)
        times = in_turns([contender.run for contender in contenders], runs, seconds, _WARM_UP)
        memory = [peak_memory(c.bundle.folder, c.denoiser.variant.name, c.denoiser.engine.threads) for c in contenders]
        timed = tuple(_timed(at, contenders, times, memory[at][0]) for at in range(len(contenders)))
    problems = [
        f"peak memory of {t.label}: {problem}" for t, (_, problem) in zip(timed, memory, strict=True) if problem
    ]
    return Bench(timed, _notes(timed, load, problems), _versions(timed), _machine(load))


def _validate(paths: Sequence[str | os.PathLike[str]], runs: int, seconds: float) -> None:
    if not paths:
        raise RecipeError("no bundle to time: give at least one, a folder or zip that `edgekit compress` wrote")
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < MIN_RUNS:
        raise RecipeError(f"runs is {runs!r}: expected a whole number of at least {MIN_RUNS}")
    if not (math.isfinite(seconds) and seconds > 0):
        raise RecipeError(f"seconds is {seconds!r}: expected a number above 0")


def _open(
    paths: Sequence[str | os.PathLike[str]],
    variant: str | None,
    baseline: str | None,
    threads: int | None,
    stack: ExitStack,
) -> list[_Contender]:
    """Open every model file that takes part; the same number of threads for all."""
    contenders: list[_Contender] = []
    for path in paths:
        bundle = stack.enter_context(reader.read(path))
        names = [v.name for v in bundle.manifest.variants]
        chosen = bundle.manifest.default_variant if variant is None else variant
        if baseline is None:
            other = DEFAULT_BASELINE if DEFAULT_BASELINE in names else None
        else:
            other = None if baseline == NO_BASELINE else baseline
        for name in (chosen, other):
            if name is not None and name not in names:
                raise UnknownNameError.unknown(f"variant of {bundle.manifest.name}", name, names)
        image, sigma = fill_one_tile(bundle)
        pair = [chosen] if other is None or other == chosen else [chosen, other]
        for at, name in enumerate(pair):
            denoiser = stack.enter_context(Denoiser.from_bundle(bundle, name, threads))
            threads = denoiser.engine.threads if threads is None else threads
            # The baseline comes right after what is held against it.
            against = len(contenders) + 1 if len(pair) == 2 and at == 0 else None
            contenders.append(_Contender(bundle, denoiser, image, sigma, against))
    return contenders


def _timed(
    at: int, contenders: Sequence[_Contender], times: Sequence[NDArray[np.float64]], memory: int | None
) -> Timed:
    contender = contenders[at]
    manifest, variant, engine = contender.bundle.manifest, contender.denoiser.variant, contender.denoiser.engine
    taken = times[at] * 1e3
    p50, p90, p99 = (float(value) for value in np.percentile(taken, (50, 90, 99)))
    pixels_a_run = len(contender.image) ** 2
    megapixels = pixels_a_run / 1e6
    other = None if contender.baseline is None else contenders[contender.baseline]
    ratio = None if contender.baseline is None else float(np.median(times[contender.baseline])) * 1e3 / p50
    slower = other is not None and ratio is not None and ratio < 1
    floating = other is not None and not other.denoiser.variant.integer
    return Timed(
        bundle=str(contender.bundle.source),
        name=manifest.name,
        target=manifest.target,
        variant=variant.name,
        engine=engine.name,
        library=engine.library,
        kernels=engine.kernels,
        threads=engine.threads,
        runs=len(taken),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        useful_pixels=pixels_a_run,
        ms_per_megapixel=p50 / megapixels,
        fastest_ms_per_megapixel=float(taken.min()) / megapixels,
        megapixels_per_second=megapixels / p50 * 1e3,
        baseline=None if other is None else other.denoiser.variant.name,
        ratio=ratio,
        peak_memory=memory,
        int8_share=_share(contender),
        slow=_blame(contender, other) if other is not None and slower and floating and variant.integer else None,
        made_for=variant.made_for,
    )


def _share(contender: _Contender) -> float | None:
    """Share of MACs in int8: as the engine counts them, else of the layer report, if that is about this variant."""
    macs, manifest = contender.denoiser.engine.macs, contender.bundle.manifest
    total = sum(macs.values())
    if total:
        return macs.get("int8", 0) / total
    reported = manifest.layers and contender.denoiser.variant == default_of(manifest)
    return int8_share(manifest.layers) if reported else None


def _blame(contender: _Contender, other: _Contender) -> Blame:
    """Why an int8 file is slower than a float one: by the engine's own profile where it has one."""
    manifest, engine = contender.bundle.manifest, contender.denoiser.engine
    integer, floating = _profile(contender), _profile(other)
    if integer:
        return by_profile(integer, floating)
    # The report is about the default variant: that of a float bundle says nothing of an int8 file beside it.
    return by_report(manifest.layers if default_of(manifest).integer else (), engine.kernels, engine.operators)


def _profile(contender: _Contender) -> dict[str, float] | None:
    """Milliseconds by layer of one tile; None where the engine cannot tell."""
    denoiser = contender.denoiser
    if not isinstance(denoiser.engine, Profiler):
        return None
    specs = {spec.role: spec for spec in denoiser.variant.inputs}
    whole = tiling.window(contender.image, 0, 0, denoiser.tile, denoiser.tile)
    inputs = {specs["image"].name: pixels.encode(whole, specs["image"])}
    if denoiser.sigma_range is not None:
        inputs[specs["sigma"].name] = pixels.encode_sigma(contender.sigma, specs["sigma"])
    return dict(denoiser.engine.profile(inputs))


def _notes(timed: Sequence[Timed], load: float | None, problems: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if load is not None and load > _IDLE:
        notes.append(f"the machine was busy (load {load:.1f} when it began): times are too long and ratios uncertain")
    for entry in timed:
        if entry.made_for:
            notes.append(
                f"{entry.label} was not run on {entry.made_for}: {entry.library} computed it in its place; nothing is "
                "known of its speed there"
            )
        if entry.slow is not None and entry.ratio is not None:
            slower, floating = entry.ms_per_megapixel, entry.ms_per_megapixel * entry.ratio
            notes.append(
                f"{entry.label} is slower than its {entry.baseline} here: {slower:.3g} ms/MP against {floating:.3g} "
                f"({entry.ratio:.2f}x); {entry.slow.told()}"
            )
    return (*notes, *dict.fromkeys(problems))


def _versions(timed: Sequence[Timed]) -> dict[str, str]:
    plain = {"edgekit": __version__, "python": platform.python_version(), "numpy": np.__version__}
    # "ai-edge-litert 2.3.0"; what says no version keeps its whole name.
    libraries = (entry.library.rpartition(" ") for entry in timed)
    return {**plain, **{name or version: version for name, _, version in libraries}}


def _machine(load: float | None) -> dict[str, Any]:
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": platform.machine(), "system": platform.platform(), "processors": here, "load": load}
