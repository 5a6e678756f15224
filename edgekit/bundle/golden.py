"""Golden tiles: what went in and what must come out, to hold a device to. numpy and the standard library only."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.manifest import Manifest, Thresholds
from edgekit.errors import BundleError

# A golden file is a few MB; a header that claims more is damaged or hostile and must not be allocated.
_MAX_BYTES = 1 << 30
_AGAIN = "copy the bundle again, or export it again"


@dataclass(frozen=True, eq=False)
class Golden:
    """Held-out tiles that no stage saw, with the outputs they must give, and the thresholds sealed when they were made.

    Attributes:
        noisy, clean: uint8 [K, H, W, C], C 1 or 3.
        sigma: float32 [K], noise level of each tile in 8-bit units, 0..255.
        fp32_original, fp32_compressed: uint16 [K, H, W, C], outputs of the FP32 models as `pack` stores them: the
            uncompressed model, and the pruned and distilled one that was quantized; of the tile mirrored by the halo,
            as `edgekit.runtime.tiling` defines the result, else its border would count against them.
        host: uint8 [K, H, W, C], what the default variant gave on the machine that compressed it.
        thresholds: the thresholds at that time; `check` compares them with the manifest's.
        kernels: kernels that computed `host`: "xnnpack" or another name of `edgekit.runtime.engines.base.Engine`.
        portable: uint8 [P, H, W, C], what the engine's portable kernels gave for some of the tiles: slow ones, with the
            same bits on every machine, for devices that lack the fast ones. None where there are no such.
        portable_at: int64 [P], which tiles.
        models: file name -> sha256 of the model files that these tiles were made with; the writer fills it in. A weight
            of a channel that no tile stirs changes no output: only this tells.
        facts: what `facts_of` said of the manifest then; the writer fills it in. Empty in bundles from before it was
            kept.
    """

    noisy: NDArray[np.uint8]
    clean: NDArray[np.uint8]
    sigma: NDArray[np.float32]
    fp32_original: NDArray[np.uint16]
    fp32_compressed: NDArray[np.uint16]
    host: NDArray[np.uint8]
    thresholds: Thresholds
    kernels: str
    portable: NDArray[np.uint8] | None = None
    portable_at: NDArray[np.int64] | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    _IMAGES: ClassVar[Mapping[str, Any]] = {
        "noisy": np.uint8,
        "clean": np.uint8,
        "fp32_original": np.uint16,
        "fp32_compressed": np.uint16,
        "host": np.uint8,
    }

    def __post_init__(self) -> None:
        """Raises: BundleError: an array of the wrong dtype or shape."""
        for name, dtype in self._IMAGES.items():
            array = getattr(self, name)
            if array.dtype != dtype:
                raise BundleError(f"golden array {name!r} is {array.dtype}: expected {np.dtype(dtype)}")
            if array.ndim != 4 or 0 in array.shape or array.shape[3] not in (1, 3):
                raise BundleError(f"golden array {name!r} has shape {array.shape}: expected [K, H, W, 1 or 3]")
            if array.shape != self.noisy.shape:
                raise BundleError(
                    f"golden array {name!r} has shape {array.shape}: expected that of 'noisy', {self.noisy.shape}"
                )
        count = len(self.noisy)
        if self.sigma.dtype != np.float32 or self.sigma.shape != (count,):
            raise BundleError(
                f"golden array 'sigma' is {self.sigma.dtype} {self.sigma.shape}: expected float32 ({count},)"
            )
        if not ((self.sigma >= 0) & (self.sigma <= 255)).all():
            raise BundleError(f"golden array 'sigma' holds {self.sigma.tolist()}: expected 0 to 255, in 8-bit units")
        if self.portable is not None and self.portable_at is not None:
            self._check_portable(self.portable, self.portable_at)
        elif self.portable is not None or self.portable_at is not None:
            raise BundleError("golden arrays 'portable' and 'portable_at' go together: one of them is missing")

    def _check_portable(self, images: NDArray[np.uint8], at: NDArray[np.int64]) -> None:
        if at.dtype != np.int64 or at.ndim != 1 or not len(at) or not ((at >= 0) & (at < len(self.noisy))).all():
            raise BundleError(
                f"golden array 'portable_at' is {at.dtype} {at.tolist()}: expected int64 numbers of tiles, "
                f"0 to {len(self.noisy) - 1}"
            )
        expected = (len(at), *self.noisy.shape[1:])
        if images.dtype != np.uint8 or images.shape != expected:
            raise BundleError(f"golden array 'portable' is {images.dtype} {images.shape}: expected uint8 {expected}")

    @staticmethod
    def pack(images: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
        """Float images in 0..1, any shape, as uint16: clipped, times 65535, rounded.

        The step of 1.5e-5 is 1/257 of an 8-bit one: rounding to 8 bits after it differs from rounding before it in
        at most one byte of 250, by one.
        """
        packed: NDArray[np.uint16] = np.rint(np.clip(images, 0.0, 1.0) * 65535.0).astype(np.uint16)
        return packed

    @staticmethod
    def to_uint8(packed: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Packed images rounded to 8 bits, as a device would give them."""
        return np.rint(packed / np.float32(257.0)).astype(np.uint8)

    def levels(self) -> tuple[float, ...]:
        """The noise levels present, lowest first, in 8-bit units."""
        return tuple(sorted({float(s) for s in self.sigma}))

    def extremes(self) -> NDArray[np.int64]:
        """A tile of the lowest and one of the highest noise, by their numbers; one where all have the same."""
        return np.unique([np.argmin(self.sigma), np.argmax(self.sigma)]).astype(np.int64)


def facts_of(manifest: Manifest) -> dict[str, str]:
    """What of a manifest decides how images are cut and what the model is told, as JSON texts by name."""
    model = manifest.model
    told = {
        "tile": manifest.tile,
        "halo": model.halo,
        "stride": model.stride,
        "channels": model.channels,
        "blind": model.blind,
        "sigma": list(manifest.sigma),
        "iso_sigma": dict(manifest.iso_sigma),
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in told.items()}


def save(golden: Golden, path: Path) -> None:
    """Write `golden` as a compressed .npz; the same arrays give the same bytes.

    Raises: OSError.
    """
    arrays: dict[str, NDArray[Any]] = {name: getattr(golden, name) for name in (*Golden._IMAGES, "sigma")}
    if golden.portable is not None and golden.portable_at is not None:
        arrays.update(portable=golden.portable, portable_at=golden.portable_at)
    arrays["kernels"] = np.array(golden.kernels)
    arrays["model_files"] = np.array(sorted(golden.models), np.str_)
    arrays["model_sha256"] = np.array([golden.models[name] for name in sorted(golden.models)], np.str_)
    if golden.facts:
        arrays["facts"] = np.array(json.dumps(dict(golden.facts), sort_keys=True))
    for item in fields(Thresholds):
        arrays[f"threshold_{item.name}"] = np.array(getattr(golden.thresholds, item.name), np.float64)
    # np.savez leaves time stamps and attributes to the zipfile module; here both are fixed.
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(arrays):
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(arrays[name], order="C"), allow_pickle=False)
            archive.writestr(member, buffer.getvalue())


def load(path: Path) -> Golden:
    """Read what `save` wrote. Nothing is unpickled.

    Raises: BundleError: not a .npz, truncated, an array that is missing or of the wrong dtype or shape.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MAX_BYTES:
            raise BundleError(f"{path.name} unpacks to {size} bytes: expected at most {_MAX_BYTES}")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{path.name} cannot be read as golden tiles ({error}): {_AGAIN}") from error
    texts = {"kernels": 0, "model_files": 1, "model_sha256": 1}
    expected = {*Golden._IMAGES, "sigma", *texts, *(f"threshold_{f.name}" for f in fields(Thresholds))}
    missing = sorted(expected - set(arrays))
    if missing:
        raise BundleError(f"{path.name} lacks {', '.join(missing)}: {_AGAIN}")
    limits = {f.name: arrays[f"threshold_{f.name}"] for f in fields(Thresholds)}
    for name, value in limits.items():
        if value.shape != () or value.dtype != np.float64 or not np.isfinite(value):
            raise BundleError(f"{path.name}: threshold {name!r} is {value!r}: expected one finite number")
    for name, rank in texts.items():
        if arrays[name].ndim != rank or arrays[name].dtype.kind != "U":
            raise BundleError(f"{path.name}: {name!r} is {arrays[name]!r}: expected text of rank {rank}")
    if arrays["model_files"].shape != arrays["model_sha256"].shape:
        raise BundleError(f"{path.name}: 'model_files' and 'model_sha256' differ in length: {_AGAIN}")
    facts = _facts(arrays["facts"], path) if "facts" in arrays else {}
    return Golden(
        **{name: arrays[name] for name in (*Golden._IMAGES, "sigma")},
        thresholds=Thresholds(**{name: float(value) for name, value in limits.items()}),
        kernels=str(arrays["kernels"]),
        portable=arrays.get("portable"),
        portable_at=arrays.get("portable_at"),
        models=dict(zip(arrays["model_files"].tolist(), arrays["model_sha256"].tolist(), strict=True)),
        facts=facts,
    )


def _facts(array: NDArray[Any], path: Path) -> dict[str, str]:
    try:
        found = json.loads(str(array))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise BundleError(f"{path.name}: 'facts' is {str(array)[:40]!r}: expected a JSON object of texts")
    return found
