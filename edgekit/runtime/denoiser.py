"""The denoiser: images of any size and depth through one model file of a bundle."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekit.bundle import reader
from edgekit.bundle.manifest import Manifest, TensorSpec, Variant
from edgekit.bundle.reader import Bundle
from edgekit.errors import EngineError, RecipeError, ShapeError, UnknownNameError
from edgekit.runtime import pixels, tiling
from edgekit.runtime.engines.base import DEFAULTS, Engine, EngineOptions, run_all
from edgekit.runtime.engines.registry import open_engine
from edgekit.runtime.estimate import SigmaEstimate, estimate_sigma
from edgekit.runtime.iso import sigma_of_iso

# More threads than this gain nothing on tiles, and on a phone the fifth core is a slow one.
_MOST_THREADS = 4
# Noise may lift a float image out of 0..1, but not this far: then it is an image in 0..255.
_FLOAT_RANGE = (-1.0, 2.0)
_ALPHA = {2: 1, 4: 3}
# A gray image gives a colour model three times the same noise, where it knows three independent ones, whose mean has
# 1 / sqrt(3) of their level: told the level itself, it takes most of the noise for texture. On held-out gray images
# 1.6 and 1.7 are the best factors at every level, 2.7 to 4.5 dB above 1 (dsunet-s, INT8).
GRAY = 1.65
# In 8-bit units; half a float32 step at 255.
_ROUNDING = 1e-5


class Denoiser:
    """Removes noise from images, tile by tile, with one model file of a bundle.

    Open one with `edgekit.open(path)`, and close it or use `with`. Calls from several threads take turns.

    Attributes:
        engine: the open engine; tells its library and which kernels run (`edgekit.runtime.engines.base.Engine`).
        variant: the model file in use, as the manifest describes it.
        manifest: the bundle's manifest.
    """

    def __init__(self, engine: Engine, manifest: Manifest, variant: Variant) -> None:
        """Wrap an open engine; `open` and `from_bundle` are the usual ways.

        Raises: EngineError: the variant's tensors are not those of a denoiser. ShapeError: its tile is too small.
        """
        self.engine = engine
        self.manifest = manifest
        self.variant = variant
        self._image = _tensor(variant, "image", variant.inputs)
        self._clean = _tensor(variant, "clean", variant.outputs)
        self._sigma = None if manifest.model.blind else _tensor(variant, "sigma", variant.inputs)
        for spec in (self._image, self._clean):
            pixels.check_image_tensor(spec)
            height, width, channels = _dimensions(spec)
            if channels != self.channels or {height, width} - {-1, self.tile}:
                raise EngineError(
                    f"tensor {spec.name!r} of {variant.file} is {width}x{height} with {channels} channels, the "
                    f"manifest says {self.tile}x{self.tile} with {self.channels}: they are not of one export"
                )
        tiling.step(self.tile, self.halo, self.stride)
        self._bundle: Bundle | None = None
        self._fits = True
        # What a stream asks its images from may call in between.
        self._lock = threading.RLock()

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        variant: str | None = None,
        threads: int | None = None,
        options: EngineOptions = DEFAULTS,
    ) -> Denoiser:
        """Open a model file of a bundle; the bundle stays the caller's to close, after the denoiser.

        Args:
            bundle: from `edgekit.bundle.reader.read`.
            variant: which model file, e.g. "int8" or "fp16"; None is the bundle's default.
            threads: CPU threads; None is as many as there are, at most 4.
            options: device, hint and cache, for engines that know them.
        Raises: UnknownNameError: no such variant, or no engine for it. RecipeError: threads, options.
            MissingExtraError: the engine's library is not installed. EngineError: the model file is corrupt, or not
            what the manifest says.
        """
        manifest = bundle.manifest
        name = manifest.default_variant if variant is None else variant
        chosen = next((v for v in manifest.variants if v.name == name), None)
        if chosen is None:
            raise UnknownNameError.unknown("variant", name, (v.name for v in manifest.variants))
        count = _processors() if threads is None else threads
        options = replace(options, tile=bundle.manifest.tile)
        engine = open_engine(chosen, bundle.path(chosen.file), count, options=options)
        try:
            return cls(engine, manifest, chosen)
        except BaseException:
            engine.close()
            raise

    @contextmanager
    def whole_tiles(self) -> Iterator[None]:
        """Run windows of the whole tile alone, also where smaller ones would do: what large images are made of."""
        self._fits = False
        try:
            yield
        finally:
            self._fits = True

    @property
    def tile(self) -> int:
        """Side in pixels of the square that the model takes at once."""
        return self.manifest.tile

    @property
    def halo(self) -> int:
        """Receptive radius in pixels: how far a pixel's result depends on its surroundings."""
        return self.manifest.model.halo

    @property
    def stride(self) -> int:
        """The network's grid in pixels."""
        return self.manifest.model.stride

    @property
    def channels(self) -> int:
        """Channels the model was made for: 1 (gray) or 3 (RGB). Images of the other kind work too."""
        return self.manifest.model.channels

    @property
    def sigma_range(self) -> tuple[float, float] | None:
        """Noise levels the model takes, in 8-bit units; None for a blind model, which takes none."""
        return None if self._sigma is None else self.manifest.sigma

    def __call__(self, image: ArrayLike, sigma: float | str | None = None) -> NDArray[Any]:
        """Remove the noise of an image.

        The result does not depend on the tiles: see `edgekit.runtime.tiling` for how it is defined. Beside the image
        and its result (with alpha, a second copy of that), memory holds one tile. An 8-bit model keeps the fine bits of
        uint16 and float images: the noise it found in the upper 8 is subtracted.

        Args:
            image: uint8, uint16 or float (0..1, which noise may exceed), [H, W] or [H, W, C] with C 1 (gray),
                2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha), any size. Alpha is passed through untouched. A gray
                image goes through a colour model three times over, which is told 1.65 times the noise level (as much as
                it takes at most), and is averaged; a colour image goes through a gray model channel by channel.
            sigma: standard deviation of the noise in 8-bit units (25 is 25/255 for a float image), within
                `sigma_range`; or "auto", see `estimate`. A blind model ignores it.
        Returns: the clean image, same shape and dtype; floats within 0..1.
        Raises: ShapeError: rank, size, channels, dtype, or values that are not finite or not in 0..1.
            RecipeError: sigma is missing or out of range. EngineError: the engine failed.
        Warns: UserWarning: an estimated sigma lay outside the range and was clamped to it.
        """
        (clean,) = self._stream(iter([self._job(image, sigma)]))
        return clean

    def many(self, jobs: Iterable[tuple[ArrayLike, float | str | None]]) -> Iterator[NDArray[Any]]:
        """Remove the noise of many images, one after the other; with `hint="throughput"` several tiles at once.

        The engine then need not wait at the end of each image: tiles of the next one run beside the last of the one
        before. A few images are in memory at a time. Other calls may come in between two results.

        Args:
            jobs: images and their noise levels, as for a call; asked for as they are needed.
        Returns: the clean images in order.
        Raises, Warns: as a call; what was wrong with an image ends the stream.
        """
        return self._stream(self._job(image, sigma) for image, sigma in jobs)

    def _stream(self, jobs: Iterator[_Job]) -> Iterator[NDArray[Any]]:
        under_way: deque[_Job] = deque()

        def shown() -> Iterator[NDArray[Any]]:
            for job in jobs:
                under_way.append(job)
                yield job.shown

        cleaned = self._run(shown(), under_way)
        while True:
            # For each result anew, not across a yield: a stream may be read by one thread after another.
            with self._lock:
                clean = next(cleaned, None)
            if clean is None:
                return
            job = under_way.popleft()
            if job.alpha is not None:
                clean = np.concatenate([clean, job.alpha], axis=2)
            yield clean.reshape(job.shape)

    def estimate(self, image: ArrayLike) -> SigmaEstimate:
        """The noise level that `sigma="auto"` would use: see `edgekit.runtime.estimate.estimate_sigma` for its limits.

        Args:
            image: as for a call, at least 3x3; alpha is ignored.
        Raises: ShapeError: as for a call, or smaller than 3x3.
        """
        array = np.asarray(image)
        colours = _colours(array)
        shown = array[..., None] if array.ndim == 2 else array[..., :colours]
        _check_values(shown)
        return estimate_sigma(shown, self.manifest.sigma)

    def sigma_of_iso(self, iso: float) -> float | None:
        """The noise level, in 8-bit units, that the bundle's table gives for an ISO setting; None for a blind model.

        Raises: RecipeError: the bundle has no such table, or the ISO lies outside it.
        """
        if self.sigma_range is None and not self.manifest.iso_sigma:
            # A table, which others are told to make, would be of no use to this one.
            raise RecipeError(
                f"iso is {iso:g}, but {self.manifest.name} has no table of ISO and sigma, and is blind: leave it out"
            )
        level = sigma_of_iso(self.manifest.iso_sigma, iso)
        return None if self.sigma_range is None else level

    def close(self) -> None:
        """Free the model, and the bundle if `open` opened it. Closing twice is allowed."""
        with self._lock:  # a call in another thread ends first
            self.engine.close()
        if self._bundle is not None:
            self._bundle.close()

    def __enter__(self) -> Denoiser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        levels = "blind" if self.sigma_range is None else f"sigma {self.sigma_range[0]:g}..{self.sigma_range[1]:g}"
        return (
            f"<Denoiser {self.manifest.name!r} {self.variant.name}: {self.channels} channels, tile {self.tile}, "
            f"halo {self.halo}, {levels}, {self.engine.library} ({self.engine.kernels}), {self.engine.threads} threads>"
        )

    def _level(self, shown: NDArray[Any], sigma: float | str | None) -> float | None:
        allowed = self.sigma_range
        if allowed is None:
            return None
        words = f"{allowed[0]:g} to {allowed[1]:g} in 8-bit units, or 'auto'"
        if isinstance(sigma, str) and sigma == "auto":
            found = estimate_sigma(shown, allowed)
            if found.clamped:
                warnings.warn(
                    f"estimated sigma {found.raw:.1f} is outside what {self.manifest.name} takes ({allowed[0]:g} to "
                    f"{allowed[1]:g}): using {found.sigma:g}",
                    UserWarning,
                    stacklevel=4,  # whoever called __call__
                )
            return found.sigma
        if sigma is None:
            raise RecipeError(f"{self.manifest.name} needs a noise level: give sigma, {words}")
        try:
            level = math.nan if isinstance(sigma, (str, bool)) else float(sigma)
        except (TypeError, ValueError):
            level = math.nan
        # Written so that a NaN fails. Float32 levels may miss an end of the range by a rounding.
        if not allowed[0] - _ROUNDING <= level <= allowed[1] + _ROUNDING:
            raise RecipeError(f"sigma is {sigma!r}: {self.manifest.name} takes {words}")
        return level

    def _told(self, level: float | None, colours: int) -> float | None:
        """What the model is told: more than the level for a gray image in a colour model, up to what it takes."""
        if level is None or colours >= self.channels:
            return level
        return min(level * GRAY, self.manifest.sigma[1])

    def _job(self, image: ArrayLike, sigma: float | str | None) -> _Job:
        array = np.asarray(image)
        colours = _colours(array)
        planes = array[..., None] if array.ndim == 2 else array
        shown = planes[..., :colours]
        _check_values(shown)
        level = self._told(self._level(shown, sigma), colours)
        feed = {}
        if self._sigma is not None and level is not None:
            feed[self._sigma.name] = pixels.encode_sigma(level, self._sigma)
        alpha = planes[..., colours:] if colours < planes.shape[2] else None
        # A gray model takes a colour image channel by channel.
        parts = colours if colours > self.channels else 1
        return _Job(shown, array.shape, alpha, feed, parts)

    def _run(self, images: Iterator[NDArray[Any]], under_way: deque[_Job]) -> Iterator[NDArray[Any]]:
        """Clean images, of those that `images` gives, whose jobs stand in `under_way` from then on."""
        waiting: deque[tuple[NDArray[Any], int]] = deque()

        def feeds(windows: Iterator[NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
            for window in windows:
                job = under_way[-1]
                whole = window.astype(window.dtype.newbyteorder("="), copy=False)
                for part in np.split(whole, job.parts, axis=2):
                    waiting.append((part, job.parts))
                    seen = np.repeat(part, self.channels, axis=2) if part.shape[2] < self.channels else part
                    yield {self._image.name: pixels.encode(seen, self._image), **job.feed}

        def mapper(windows: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
            parts: list[NDArray[Any]] = []
            for output in run_all(self.engine, feeds(windows)):
                part, count = waiting.popleft()
                parts.append(pixels.decode(output, self._clean, part))
                if len(parts) == count:
                    yield parts[0] if count == 1 else np.concatenate(parts, axis=2)
                    parts = []

        # Where the engine takes any size, no more is computed at the lower and right border than must be.
        fit = self._fits and self.engine.any_size
        return tiling.run_mapped(images, mapper, tile=self.tile, halo=self.halo, stride=self.stride, fit=fit)


@dataclass(frozen=True)
class _Job:
    """An image on its way: its colours [H, W, C], its own shape, its alpha, what the model is told, and how many times
    each window is run.
    """

    shown: NDArray[Any]
    shape: tuple[int, ...]
    alpha: NDArray[Any] | None
    feed: dict[str, NDArray[Any]]
    parts: int


def open(
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    threads: int | None = None,
    device: str = "",
    hint: str = "latency",
    cache: str | os.PathLike[str] | None = None,
) -> Denoiser:
    """Open a bundle for denoising.

    Args:
        path: the bundle, folder or zip.
        variant: which model file, e.g. "int8" or "fp16"; None is the bundle's default.
        threads: CPU threads; None is as many as there are, at most 4.
        device: what runs it, as the engine names it: "CPU", "GPU", "NPU" or "AUTO" for OpenVINO (only CPU is tested).
        hint: "latency", or "throughput" for many images: OpenVINO then works on several tiles at once.
        cache: folder for compiled models (OpenVINO), so that the next start is faster.
    Raises: BundleError: the bundle is incomplete, altered, newer than this reader, or unsafe; and what
        `Denoiser.from_bundle` raises.
    """
    bundle = reader.read(path)
    try:
        options = EngineOptions(device, hint, None if cache is None else Path(cache))
        denoiser = Denoiser.from_bundle(bundle, variant, threads, options)
    except BaseException:
        bundle.close()
        raise
    denoiser._bundle = bundle
    return denoiser


def _processors() -> int:
    # In a container os.cpu_count counts the machine's.
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_THREADS, here)


def _tensor(variant: Variant, role: str, specs: tuple[TensorSpec, ...]) -> TensorSpec:
    found = [spec for spec in specs if spec.role == role]
    if len(found) != 1:
        raise EngineError(f"{variant.file} has {len(found)} {role} tensors: expected 1; export the bundle again")
    return found[0]


def _dimensions(spec: TensorSpec) -> tuple[int, int, int]:
    if spec.layout == "NCHW":
        return spec.shape[2], spec.shape[3], spec.shape[1]
    return spec.shape[1], spec.shape[2], spec.shape[3]


def _colours(image: NDArray[Any]) -> int:
    """How many channels are colour, the rest being alpha; refuses what is no image."""
    if image.ndim not in (2, 3):
        raise ShapeError(f"image has shape {list(image.shape)}: expected [H, W] or [H, W, C], one image at a time")
    if not image.size:
        raise ShapeError(f"image has shape {list(image.shape)}: expected at least one pixel")
    pixels.full_scale(image.dtype)
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels not in (1, 2, 3, 4):
        raise ShapeError(
            f"image has shape {list(image.shape)}, so {channels} channels: expected 1 (gray), 2 (gray, alpha), "
            "3 (RGB) or 4 (RGB, alpha), channels last"
        )
    return _ALPHA.get(channels, channels)


def _check_values(shown: NDArray[Any]) -> None:
    if shown.dtype.kind != "f":
        return
    # Two reductions rather than a mask: no copy of the image. NaN goes through both.
    low, high = float(shown.min()), float(shown.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        count = shown.size - int(np.isfinite(shown).sum())
        raise ShapeError(f"image holds {count} values that are NaN or infinite: expected finite values in 0..1")
    if low < _FLOAT_RANGE[0] or high > _FLOAT_RANGE[1]:
        raise ShapeError(
            f"float image spans {low:g} to {high:g}: expected 0..1 (noise may exceed it by 1); "
            "divide by 255, or pass uint8"
        )
