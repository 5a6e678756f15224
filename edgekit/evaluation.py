"""How well bundles and models denoise images of one's own, all of them under the same noise."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit import models
from edgekit.bundle import reader
from edgekit.errors import DataError, RecipeError, ShapeError, UnknownNameError
from edgekit.models import checkpoints, importers
from edgekit.models.base import DenoiserModel
from edgekit.runtime import denoiser as runtime
from edgekit.runtime.estimate import estimate_sigma
from edgekit.runtime.quality import ssim
from edgekit.runtime.verdict import decibels
from edgekit.train.images import Picture, open_images
from edgekit.train.noise import as_published
from edgekit.train.validation import SIGMAS, denoise

_log = logging.getLogger(__name__)

# SSIM's window.
_LEAST_SIDE = 11

Image = NDArray[np.uint8]
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Score:
    """Means over images: PSNR in dB (that of equal images is 110), SSIM at most 1."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Level:
    """One noise level.

    Attributes:
        sigma: standard deviation in 8-bit units; of pairs what was told, None where each was told its own.
        noisy: of the noisy images, as the denoisers get them.
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
        paired: whether it holds pairs.
        names: the denoisers as they were named, bundles with their variant.
        images: how many were measured.
        skipped: files that were left out, and why.
        unclipped: whether the noisy images were neither clipped nor rounded.
        told: what the denoisers were told: "sigma" (a level by its number), "rms" (of noisy - clean) or "auto".
        levels: the figures.
        notes: what to know about them, in sentences.
    """

    data: str
    paired: bool
    names: tuple[str, ...]
    images: int
    skipped: tuple[str, ...]
    unclipped: bool
    told: str
    levels: tuple[Level, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


@dataclass(frozen=True)
class _Denoiser:
    """What is measured.

    Attributes:
        name: for the table.
        channels: of its images.
        span: lowest and highest level that it takes, in 8-bit units; None where it takes any.
        run: a noisy image, uint8 or float64 in 0..1 [H, W, C], with C 1 for a gray one, and the level; to uint8.
    """

    name: str
    channels: int
    span: tuple[float, float] | None
    run: Callable[[NDArray[Any], float], Image]


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

    Raises: RecipeError: levels that the data or a bundle cannot have, settings that apply to nothing; ShapeError:
        denoisers of gray and of colour images together; DataError; UnknownNameError; CheckpointError; BundleError;
        EngineError; MissingExtraError.
    """
    names = list(dict.fromkeys(os.fspath(one) for one in what))
    if not names:
        raise RecipeError("nothing to evaluate: name bundles or models, e.g. build/dsunet-s-tflite.edgekit or dsunet-s")
    bundles = [one for one in names if _is_bundle(one)]
    nameless = [one for one in names if not (one in bundles or importers.accepts(one) or checkpoints.says_model(one))]
    _check_used(bundles, nameless, model, {"variant": variant, "threads": threads}, unclipped=unclipped)
    with ExitStack() as stack:
        opened = [
            _bundle(one, stack, variant, threads) if one in bundles else _model(one, model if one in nameless else None)
            for one in names
        ]
        kinds = {one.channels for one in opened}
        if len(kinds) > 1:
            listed = ", ".join(f"{one.name}: {'gray' if one.channels == 1 else 'colour'}" for one in opened)
            raise ShapeError(f"denoisers of gray and of colour images cannot be compared ({listed}): run them apart")
        source = open_images(data, channels=kinds.pop(), patch=1, validation_share=0)
        pictures, small = _large_enough(source.training)
        levels, told = _levels(sigma, opened, paired=source.paired, unclipped=unclipped)
        rows, total = [], len(levels) * len(pictures)
        for number, level in enumerate(levels):
            scores = []
            for place, picture in enumerate(pictures):
                if progress:
                    progress("evaluate", number * len(pictures) + place, total, picture.name)
                scores.append([*_scores(picture, level, told, opened, unclipped=unclipped)])
            noisy, *found = (_mean(column) for column in zip(*scores, strict=True))
            rows.append(Level(level, noisy, tuple(found)))
        if progress:
            progress("evaluate", total, total, "")
        return Evaluation(
            data=str(data),
            paired=source.paired,
            names=_apart([one.name for one in opened], names),
            images=len(pictures),
            skipped=(*source.skipped, *small),
            unclipped=unclipped,
            told=told,
            levels=tuple(rows),
            notes=tuple(_as_made(one) for one in names if importers.takes_weights(one)),
        )


def _is_bundle(one: str) -> bool:
    """Raises: UnknownNameError: neither a bundle, nor weights, nor a network's file."""
    path = Path(one)
    if one in checkpoints.shipped() or importers.accepts(one) or path.suffix in checkpoints.SUFFIXES:
        return False
    if path.suffix in reader.SUFFIXES or (one and path.is_dir()):
        return True
    if one in models.names():
        raise RecipeError(f"{one} comes without weights: name a file of them, and --model {one} if it does not say so")
    known = [
        "a bundle (.edgekit, .zip)",
        f"a weight file ({', '.join(checkpoints.SUFFIXES)})",
        "a network's file (net.py:make, .pt2, .onnx, .keras)",
        *checkpoints.shipped(),
    ]
    raise UnknownNameError.unknown("bundle or weights", one, known)


def _check_used(
    bundles: Sequence[str],
    nameless: Sequence[str],
    model: str | None,
    of_bundles: dict[str, object],
    *,
    unclipped: bool,
) -> None:
    """Raises: RecipeError: a setting that none of the denoisers reads, or that one of them cannot have.

    Args:
        nameless: weight files that do not say which model they are of.
        of_bundles: settings that bundles alone read.
    """
    if unclipped and bundles:
        raise RecipeError(
            f"{bundles[0]} takes images of 8 bits: unclipped noise is for models; leave unclipped out, or the bundle"
        )
    for setting, value in of_bundles.items():
        if value is not None and not bundles:
            raise RecipeError(f"{setting} is {value!r}, but there is no bundle that would read it: leave it out")
    if nameless and model is None:
        raise RecipeError(
            f"{nameless[0]} does not say which model it is of: name it with --model, `edgekit models` lists them"
        )
    if model is not None and nameless and importers.accepts(model) and not importers.takes_weights(model):
        raise RecipeError(
            f"model is {model!r}, which brings its own weights: name it in place of {nameless[0]}, or the model that "
            "the weights are of, as edgekit's name or net.py:make"
        )
    if model is not None and not nameless:
        raise RecipeError(f"model is {model!r}, but every one says itself what it is of: leave it out")


def _bundle(one: str, stack: ExitStack, variant: str | None, threads: int | None) -> _Denoiser:
    try:
        denoiser = stack.enter_context(runtime.open(one, variant=variant, threads=threads))
    except UnknownNameError as error:
        raise UnknownNameError(f"{one}: {error}") from error

    def run(noisy: NDArray[Any], level: float) -> Image:
        flat = noisy[..., 0] if noisy.shape[2] == 1 else noisy
        return np.asarray(denoiser(flat, sigma=level), np.uint8).reshape(noisy.shape)

    return _Denoiser(
        f"{Path(one).resolve().name} {denoiser.variant.name}", denoiser.channels, denoiser.sigma_range, run
    )


def _model(one: str, name: str | None) -> _Denoiser:
    if name is not None and importers.takes_weights(name):
        network = importers.load(name, Path(one))
    else:
        network = importers.load(one) if importers.accepts(one) else checkpoints.load(one, name)
    return _Denoiser(one, network.channels, None, lambda noisy, level: _in_float(network, noisy, level))


def _as_made(one: str) -> str:
    """Said of FILE.py:FACTORY alone, which may or may not have loaded weights."""
    return (
        f"{one} was measured as its factory returns it, with fresh weights unless it loads some; weights in a file are "
        f"measured by edgekit evaluate WEIGHTS.pth --model {one}"
    )


def _in_float(network: DenoiserModel, noisy: NDArray[Any], level: float) -> Image:
    scaled = noisy / 255 if noisy.dtype == np.uint8 else noisy
    if gray := noisy.shape[2] < network.channels:
        # As the runtime does it.
        scaled, level = scaled.repeat(network.channels, axis=2), level * runtime.GRAY
    image = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32))[None]
    clean = denoise(network, image, torch.tensor([level / 255], dtype=torch.float32))
    if gray:
        clean = clean.mean(1, keepdim=True)
    return np.asarray((clean[0] * 255).round().permute(1, 2, 0).numpy(), np.uint8)


def _large_enough(pictures: Sequence[Picture]) -> tuple[list[Picture], list[str]]:
    found = [picture for picture in pictures if min(picture.shape[:2]) >= _LEAST_SIDE]
    small = [
        f"{picture.name} is {picture.shape[1]}x{picture.shape[0]}, smaller than SSIM's window of {_LEAST_SIDE}"
        for picture in pictures
        if min(picture.shape[:2]) < _LEAST_SIDE
    ]
    if not found:
        raise DataError(f"no image is large enough to be measured: {small[0]}; use larger ones")
    return found, small


def _levels(
    sigma: Sequence[float] | str | None, opened: Sequence[_Denoiser], *, paired: bool, unclipped: bool
) -> tuple[tuple[float | None, ...], str]:
    """The levels to measure at, and what denoisers are told: for pairs one level, None where each image has its own."""
    if isinstance(sigma, str) and sigma != "auto":
        raise RecipeError(f"sigma is {sigma!r}: expected levels in 8-bit units, or 'auto' for pairs")
    numbers = () if sigma is None or isinstance(sigma, str) else tuple(dict.fromkeys(float(level) for level in sigma))
    if wrong := [level for level in numbers if not 0 < level <= 255]:
        raise RecipeError(f"sigma is {wrong[0]:g}: expected levels above 0 and up to 255, in 8-bit units")
    for one in opened:
        low, high = one.span or (0.0, 255.0)
        if wrong := [level for level in numbers if not low <= level <= high]:
            raise RecipeError(
                f"sigma is {wrong[0]:g}: {one.name} takes {low:g} to {high:g}; name levels that all of them take"
            )
    if not paired:
        if sigma == "auto":
            raise RecipeError("sigma auto is for pairs: clean images get noise of levels that you name, e.g. 15,25")
        shared = tuple(float(s) for s in SIGMAS if all(o.span is None or o.span[0] <= s <= o.span[1] for o in opened))
        if not numbers and not shared:
            raise RecipeError("no usual noise level lies in the ranges of all: name levels that do (sigma)")
        if not numbers and (missing := [level for level in SIGMAS if level not in shared]):
            _log.warning("%s", _left_out(missing, opened))
        return numbers or shared, "sigma"
    if unclipped:
        raise RecipeError("pairs bring 8-bit noise of their own: leave unclipped out")
    if len(numbers) > 1:
        raise RecipeError(f"{len(numbers)} noise levels for pairs, which bring their own noise: name one, or 'auto'")
    return (numbers, "sigma") if numbers else ((None,), "auto" if sigma == "auto" else "rms")


def _left_out(levels: Sequence[float], opened: Sequence[_Denoiser]) -> str:
    """Which levels nothing is measured at, and whose range is why."""
    spans = [(one.name, one.span) for one in opened if one.span is not None]
    narrow = [
        f"{name} takes {span[0]:g} to {span[1]:g}"
        for name, span in spans
        if any(not span[0] <= level <= span[1] for level in levels)
    ]
    return f"left out: sigma {', '.join(f'{level:g}' for level in levels)}; {', '.join(narrow)}"


def _scores(
    picture: Picture, level: float | None, told: str, denoisers: Sequence[_Denoiser], *, unclipped: bool
) -> Iterator[Score]:
    """Of the noisy image, then of what each denoiser makes of it."""
    clean, given = picture.pixels()
    if all(_is_gray(image) for image in (clean, given) if image is not None):
        # A file of one channel, which colour models were handed three times over: its noise is one, too.
        clean, given = clean[..., :1], given if given is None else given[..., :1]
    noisy: NDArray[Any]
    if given is None:
        assert level is not None
        noisy = clean / 255 + as_published(clean.shape, level / 255)
        if not unclipped:
            noisy = (noisy.clip(0, 1) * 255).round().astype(np.uint8)
    else:
        noisy = given
    if level is None:
        seen = noisy[..., 0] if noisy.shape[2] == 1 else noisy
        rms = float(np.sqrt(np.mean(np.square(noisy.astype(np.float64) - clean))))
        level = estimate_sigma(seen).sigma if told == "auto" else rms
    yield _score(noisy, clean / 255 if unclipped else clean)
    for one in denoisers:
        # A pair's own level may lie beyond what a bundle takes.
        low, high = one.span or (0.0, 255.0)
        yield _score(one.run(noisy, min(max(level, low), high)), clean)


def _is_gray(image: Image) -> bool:
    return bool((image == image[..., :1]).all())


def _score(image: NDArray[Any], clean: NDArray[Any]) -> Score:
    return Score(decibels(image, clean), ssim(image, clean))


def _mean(scores: Sequence[Score]) -> Score:
    return Score(*(float(np.mean([getattr(score, name) for score in scores])) for name in ("psnr", "ssim")))


def _apart(names: Sequence[str], paths: Sequence[str]) -> tuple[str, ...]:
    """Names for the table; the whole path where two are alike."""
    often = Counter(names)
    return tuple(name if often[name] == 1 else path for name, path in zip(names, paths, strict=True))
