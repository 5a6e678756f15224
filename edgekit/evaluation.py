"""How well bundles and models denoise images of one's own, all of them under the same noise."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.bundle import reader
from edgekit.errors import DataError, RecipeError, ShapeError, UnknownNameError
from edgekit.models import checkpoints, importers
from edgekit.models.base import DenoiserModel
from edgekit.runtime import denoiser as runtime
from edgekit.runtime.estimate import estimate_sigma
from edgekit.runtime.quality import psnr, ssim
from edgekit.train.images import Picture, open_images
from edgekit.train.noise import as_published
from edgekit.train.validation import denoise

# The noise levels that the field reports.
SIGMAS = (5.0, 15.0, 25.0, 50.0)
# SSIM's window.
_LEAST_SIDE = 11
_BUNDLES = (".edgekit", ".zip")

Image = NDArray[np.uint8]
Progress = Callable[[str, int, int, str], None]
# Noisy image, uint8 or float64 in 0..1 [H, W, C], and the level in 8-bit units, to the clean one, uint8.
_Denoise = Callable[[NDArray[Any], float], Image]


@dataclass(frozen=True)
class Score:
    """Means over images: PSNR in dB, SSIM at most 1."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Level:
    """One noise level.

    Attributes:
        sigma: standard deviation in 8-bit units; None for pairs, which bring their own noise.
        noisy: the noisy images, clipped and rounded to 8 bits.
        found: what each of the denoisers made of them.
    """

    sigma: float | None
    noisy: Score
    found: tuple[Score, ...]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        data: the folder.
        names: the denoisers as they were named, bundles with their variant.
        images: how many were measured.
        skipped: files that were left out, and why.
        unclipped: whether the noisy images were neither clipped nor rounded.
        told: what the denoisers were told: "sigma" (as it was added), "rms" (of noisy - clean) or "auto".
        levels: the figures.
    """

    data: str
    names: tuple[str, ...]
    images: int
    skipped: tuple[str, ...]
    unclipped: bool
    told: str
    levels: tuple[Level, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def evaluate(
    what: Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    *,
    sigma: Sequence[float] | str | None = None,
    model: str | None = None,
    variant: str | None = None,
    unclipped: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure denoisers on a folder of images.

    Clean images get white Gaussian noise as the field's test scripts draw it, clipped and rounded to 8 bits, as a
    device sees it. Outputs are rounded to 8 bits. Bundles run by the engine that is installed here, models in float by
    torch. Arguments are those of `edgekit.api.evaluate`.

    Raises: RecipeError: levels that the data cannot have; ShapeError: denoisers of gray and of colour images together;
        DataError; UnknownNameError; CheckpointError; BundleError; EngineError; MissingExtraError.
    """
    if not what:
        raise RecipeError("nothing to evaluate: name bundles or models, e.g. build/dsunet-s-tflite.edgekit or dsunet-s")
    with ExitStack() as stack:
        opened = [_open(os.fspath(one), stack, model, variant, threads, unclipped=unclipped) for one in what]
        kinds = {channels for _, channels, _ in opened}
        if len(kinds) > 1:
            told = ", ".join(f"{name}: {'gray' if channels == 1 else 'colour'}" for name, channels, _ in opened)
            raise ShapeError(f"denoisers of gray and of colour images cannot be compared ({told}): run them apart")
        source = open_images(data, channels=kinds.pop(), patch=_LEAST_SIDE, validation_share=0)
        levels, told = _levels(sigma, paired=source.paired, unclipped=unclipped)
        rows, total = [], len(levels) * len(source.training)
        for number, level in enumerate(levels):
            scores: list[list[Score]] = []
            for place, picture in enumerate(source.training):
                if progress:
                    progress("evaluate", number * len(source.training) + place, total, picture.name)
                scores.append([*_scores(picture, level, told, [run for _, _, run in opened], unclipped=unclipped)])
            noisy, *found = (_mean(column) for column in zip(*scores, strict=True))
            rows.append(Level(None if source.paired else level, noisy, tuple(found)))
        if progress:
            progress("evaluate", total, total, "")
        names = tuple(name for name, _, _ in opened)
        return Evaluation(str(data), names, len(source.training), source.skipped, unclipped, told, tuple(rows))


def _open(
    one: str, stack: ExitStack, model: str | None, variant: str | None, threads: int | None, *, unclipped: bool
) -> tuple[str, int, _Denoise]:
    """Its name, the channels of its images, and what it does."""
    if _is_bundle(one):
        if unclipped:
            raise RecipeError(
                f"{one} takes images of 8 bits: unclipped noise is for models; leave --unclipped out, or the bundle"
            )
        denoiser = stack.enter_context(runtime.open(one, variant=variant, threads=threads))
        return f"{Path(one).name} {denoiser.variant.name}", denoiser.channels, _bundle(denoiser)
    network = _network(one, model)
    return one, network.channels, _float(network)


def _is_bundle(one: str) -> bool:
    if one in checkpoints.shipped():
        return False
    if Path(one).suffix in _BUNDLES or (Path(one) / reader.MANIFEST).exists():
        return True
    if not (Path(one).exists() or Path(one).suffix in checkpoints.SUFFIXES or importers.accepts(one)):
        known = ["a bundle (.edgekit, .zip)", "a weight file", *checkpoints.shipped()]
        raise UnknownNameError.unknown("bundle or weights", one, known)
    return False


def _network(one: str, model: str | None) -> DenoiserModel:
    if importers.accepts(one):
        return importers.load(one)
    return checkpoints.load(one, None if "arch" in checkpoints.metadata(one) else model)


def _bundle(denoiser: runtime.Denoiser) -> _Denoise:
    def run(noisy: NDArray[Any], level: float) -> Image:
        gray = noisy.shape[2] == 1
        clean = denoiser(noisy[..., 0] if gray else noisy, sigma=level)
        return np.asarray(clean[..., None] if gray else clean, np.uint8)

    return run


def _float(network: DenoiserModel) -> _Denoise:
    def run(noisy: NDArray[Any], level: float) -> Image:
        scaled = noisy / 255 if noisy.dtype == np.uint8 else noisy
        image = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32))[None]
        clean = denoise(network, image, torch.tensor([level / 255], dtype=torch.float32))
        return np.asarray((clean[0] * 255).round().permute(1, 2, 0).numpy(), np.uint8)

    return run


def _levels(sigma: Sequence[float] | str | None, *, paired: bool, unclipped: bool) -> tuple[tuple[float, ...], str]:
    """The levels to measure at, and what denoisers are told: for pairs one level, NaN where each image has its own."""
    if isinstance(sigma, str) and sigma != "auto":
        raise RecipeError(f"sigma is {sigma!r}: expected levels in 8-bit units, or 'auto' for pairs")
    numbers = () if sigma is None or isinstance(sigma, str) else tuple(float(level) for level in sigma)
    if wrong := [level for level in numbers if not 0 <= level <= 255]:
        raise RecipeError(f"sigma is {wrong[0]:g}: expected levels of 0 to 255, in 8-bit units")
    if not paired:
        if sigma == "auto":
            raise RecipeError("sigma auto is for pairs: clean images get noise of levels that you name, e.g. 15,25")
        return numbers or SIGMAS, "sigma"
    if unclipped:
        raise RecipeError("pairs bring 8-bit noise of their own: leave unclipped out")
    if len(numbers) > 1:
        raise RecipeError(f"{len(numbers)} noise levels for pairs, which bring their own noise: name one, or 'auto'")
    return (numbers, "sigma") if numbers else ((math.nan,), "auto" if sigma == "auto" else "rms")


def _scores(
    picture: Picture, level: float, told: str, denoisers: Sequence[_Denoise], *, unclipped: bool
) -> Iterator[Score]:
    """Of the noisy image, then of what each denoiser makes of it."""
    clean, given = picture.pixels()
    noisy: NDArray[Any]
    if given is None:
        noisy = clean / 255 + as_published(clean.shape, level / 255)
        seen = (noisy.clip(0, 1) * 255).round().astype(np.uint8)
    else:
        noisy, seen = given, given
        if told == "auto":
            level = estimate_sigma(given[..., 0] if given.shape[2] == 1 else given).sigma
        elif told == "rms":
            level = float(np.sqrt(np.mean(np.square(given.astype(np.float64) - clean))))
    yield Score(psnr(seen, clean), ssim(seen, clean))
    for run in denoisers:
        output = run(noisy if unclipped else seen, level)
        yield Score(psnr(output, clean), ssim(output, clean))


def _mean(scores: Sequence[Score]) -> Score:
    if any(math.isinf(score.psnr) for score in scores):
        raise DataError("a noisy image equals its clean one: its PSNR has no number; leave such pairs out")
    return Score(*(float(np.mean([getattr(score, name) for score in scores])) for name in ("psnr", "ssim")))
