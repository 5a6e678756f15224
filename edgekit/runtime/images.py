"""Image files: PNG, JPEG, TIFF and BMP, 8 and 16 bits, gray and RGB, with or without alpha."""

from __future__ import annotations

import os
import struct
import uuid
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, OutputExistsError, ShapeError
from edgekit.runtime import deep_color

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# Pillow's other modes that hold gray or RGB, and what they become without loss.
_SAME_AS = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}
# Near lossless, so that what the denoiser did is what is seen.
_JPEG = {"quality": 95, "subsampling": 0}
_ORIENTATION, _PHOTOMETRIC, _ICC = 0x0112, 262, 34675
# Description, make, model, orientation, software, date, artist, copyright: what of a TIFF's tags is about the picture.
_DESCRIPTIVE = (0x010E, 0x010F, 0x0110, _ORIENTATION, 0x0131, 0x0132, 0x013B, 0x8298)
# What Pillow's decoders are known to raise on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error, zlib.error)


@dataclass(frozen=True)
class Picture:
    """An image file in memory.

    Attributes:
        pixels: uint8 or uint16, [H, W] (gray) or [H, W, C] with C 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha), as
            stored: an EXIF orientation is kept in `exif`, not applied (but of a TIFF applied, and not kept).
        icc: colour profile, if any.
        exif: EXIF block without the "Exif" prefix, if any. Of a TIFF, the tags that describe the picture.
        dpi: resolution (horizontal, vertical), if any.
    """

    pixels: NDArray[Any]
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files directly in a folder, by name; hidden files are left out.

    Raises: DataError: not a folder, or no images in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: expected a folder of images")
    found = sorted(p for p in root.iterdir() if p.suffix.lower() in FORMATS and p.name[0] != "." and p.is_file())
    if not found:
        raise DataError(f"no images in {root}: expected files that end in {', '.join(FORMATS)}")
    return found


def load(path: str | os.PathLike[str]) -> Picture:
    """Read an image file.

    Raises: DataError: no such file, not an image, damaged, several pages, or a kind of image that is neither gray nor
        RGB of 8 or 16 bits; names the file and the reason.
    """
    from PIL import Image, UnidentifiedImageError

    source = Path(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large photographs, this tool's daily bread, and of damaged tags, without which the picture
            # is sound. What it cannot read it raises.
            warnings.simplefilter("ignore")
            with Image.open(source, formats=sorted(set(FORMATS.values()))) as image:
                return _read(source, image)
    except FileNotFoundError:
        raise DataError(f"no image at {source}") from None
    except UnidentifiedImageError:
        raise DataError(f"{source} cannot be read: it is not a PNG, JPEG, TIFF or BMP file, or damaged") from None
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"{source} cannot be read: {_reason(error)}") from error


def _read(source: Path, image: Any) -> Picture:
    if image.format in ("PNG", "TIFF") and getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"it holds {image.n_frames} pages: expected one; save each as a file of its own")
    pixels: NDArray[Any] | None = deep_color.read(source, image)
    image.load()
    if pixels is None:
        pixels = _pixels(image)
    if pixels.dtype == np.uint16 and "transparency" in image.info:
        raise ValueError("16 bits with one colour declared transparent: save it with an alpha channel")
    return Picture(pixels, image.info.get("icc_profile") or None, _exif(image), _dpi(image))


def _pixels(image: Any) -> NDArray[Any]:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:
            raise ValueError("16-bit gray where 0 is white: save it with 0 as black")
        return np.array(image).astype(np.uint16)
    if "transparency" in image.info:
        image = image.convert("LA" if mode in ("1", "L") else "RGBA")
    elif mode in _SAME_AS:
        image = image.convert(_SAME_AS[mode])
    if image.mode not in _MODES.values():
        raise ValueError(f"its pixels are of mode {mode}: expected gray or RGB of 8 or 16 bits")
    return np.array(image)


def _exif(image: Any) -> bytes | None:
    from PIL import Image

    try:
        exif = image.getexif()
    except _DAMAGE:
        # The picture is sound without it.
        return None
    if image.format == "TIFF":
        # A TIFF's tags are its EXIF; strip offsets and the like must not travel.
        kept = Image.Exif()
        for tag in _DESCRIPTIVE:
            if tag in exif:
                kept[tag] = exif[tag]
        exif = kept
    return exif.tobytes().removeprefix(b"Exif\0\0") if len(exif) else None


def _dpi(image: Any) -> tuple[float, float] | None:
    dpi = image.info.get("dpi")
    # Files write 1x1 or 0 where they mean "unknown".
    return (float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 1 else None


def save(
    path: str | os.PathLike[str], pixels: NDArray[Any], like: Picture | None = None, *, overwrite: bool = False
) -> None:
    """Write an image file, whole or not at all: to a temporary name beside it, then renamed.

    Args:
        path: its suffix chooses the format. JPEG is written at quality 95 without chroma subsampling.
        pixels: uint8 or uint16, [H, W] or [H, W, C] with C 1 to 4.
        like: where the pixels come from: its colour profile, EXIF and resolution are kept, as far as the format can
            (16-bit colour: not the resolution).
        overwrite: replace a file that exists.
    Raises: DataError: unknown suffix, a format that cannot hold these pixels, or the file cannot be written (disk
        full). ShapeError: pixels that are no image. OutputExistsError: the file exists.
    """
    target = Path(path)
    image = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    write = _writer(target, image, like or Picture(image))
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target} exists: choose another name, or allow overwriting")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as stream:
            write(stream)
        temporary.replace(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _writer(target: Path, pixels: NDArray[Any], like: Picture) -> Callable[[IO[bytes]], None]:
    kind = FORMATS.get(target.suffix.lower())
    if kind is None:
        raise DataError(f"{target} has the suffix {target.suffix!r}: expected one of {', '.join(FORMATS)}")
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if (
        pixels.ndim not in (2, 3)
        or channels not in _MODES
        or not pixels.size
        or pixels.dtype not in (np.uint8, np.uint16)
    ):
        raise ShapeError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}: expected uint8 or uint16, [H, W] or [H, W, C], C 1 to 4"
        )
    deep = pixels.dtype == np.uint16
    if kind in ("JPEG", "BMP") and (deep or channels in (2, 4)):
        what = "16 bits" if deep else "alpha"
        raise DataError(f"{target}: {kind} cannot hold {what}: choose .png or .tif")
    if deep and channels == 2 and kind == "TIFF":
        raise DataError(f"{target}: 16-bit gray with alpha is written as PNG only: choose .png")
    if deep and channels > 1:
        if kind == "PNG":
            return lambda stream: deep_color.write_png(stream, pixels, like.icc, like.exif)
        return lambda stream: deep_color.write_tiff(stream, pixels, _tags(like))
    return lambda stream: _save_by_pillow(stream, pixels, kind, like)


def _save_by_pillow(stream: IO[bytes], pixels: NDArray[Any], kind: str, like: Picture) -> None:
    from PIL import Image

    native = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
    options: dict[str, Any] = dict(_JPEG) if kind == "JPEG" else {}
    if kind == "TIFF":
        options["tiffinfo"] = {tag: value for tag, value in _tags(like).items() if tag != _ICC}
    elif kind != "BMP" and like.exif:
        options["exif"] = b"Exif\0\0" + like.exif
    if kind != "BMP" and like.icc:
        options["icc_profile"] = like.icc
    if like.dpi:
        options["dpi"] = like.dpi
    Image.fromarray(native).save(stream, kind, **options)


def _tags(like: Picture) -> dict[int, Any]:
    """What a TIFF keeps of where the pixels come from, as tags."""
    from PIL import Image

    exif = Image.Exif()
    if like.exif:
        exif.load(b"Exif\0\0" + like.exif)
    tags = {tag: exif[tag] for tag in _DESCRIPTIVE if tag in exif}
    if like.icc:
        tags[_ICC] = like.icc
    return tags


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
