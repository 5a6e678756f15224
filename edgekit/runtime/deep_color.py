"""16-bit colour files, which Pillow decodes but has no image mode to hold.

Pillow reads such a file into an 8-bit image, by a raw mode that picks one byte of each sample. So it is read twice,
once for the high bytes and once for the low ones: every compression that Pillow knows works, and no other library is
needed. Writing is the part of PNG and TIFF that concerns this one kind of image.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

# Tags of TIFF 6.0.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS = 256, 257, 258, 259, 262, 273
_SAMPLES, _ROWS, _COUNTS, _PLANAR, _EXTRA = 277, 278, 279, 284, 338
_COMPRESSION_NONE, _RGB, _SEPARATE, _UNASSOCIATED_ALPHA = 1, 2, 2, 2


def read(path: Path, image: Any) -> NDArray[np.uint16] | None:
    """Read a 16-bit PNG or TIFF with more than one channel.

    Args:
        path: the file.
        image: the same, opened by Pillow and not loaded.
    Returns: [H, W, C] with C 2, 3 or 4, or None if the file is not of this kind.
    Raises: ValueError: the layout is one that cannot be read; what Pillow raises on a damaged file.
    """
    if image.format == "PNG" and image.tile[0].args == "LA;16B":
        # Two samples of two bytes are, byte for byte, the four of an 8-bit RGBA pixel.
        packed = _decode(path, "RGBA", "")
        return _join(packed[..., 0::2], packed[..., 1::2])
    if image.format == "PNG" and image.tile[0].args in ("RGB;16B", "RGBA;16B"):
        big_endian = True
    elif image.format == "TIFF" and image.tag_v2.get(_BITS, ()) in ((16,) * 3, (16,) * 4):
        compressed = image.tag_v2.get(_COMPRESSION, _COMPRESSION_NONE) != _COMPRESSION_NONE
        if image.mode not in ("RGB", "RGBA"):
            raise ValueError(f"16-bit {image.mode}: expected gray or RGB")
        if any(tile.args[0].startswith(("RGBa", "RGBX")) for tile in image.tile):
            raise ValueError(
                "16-bit RGB with premultiplied or unspecified extra channel: save it with plain alpha, or none"
            )
        if compressed and image.tag_v2.get(_PLANAR) == _SEPARATE:
            raise ValueError("compressed 16-bit RGB with separate planes: save it interleaved, or without compression")
        # libtiff hands its samples over in the machine's order.
        big_endian = (sys.byteorder == "big") if compressed else image.tag_v2.prefix == b"MM"
    else:
        return None
    # Raw mode ";16B" takes the first byte of each sample, ";16L" the second.
    first, second = _decode(path, None, ";16B"), _decode(path, None, ";16L")
    return _join(first, second) if big_endian else _join(second, first)


def _join(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint16]:
    joined: NDArray[np.uint16] = high.astype(np.uint16) * np.uint16(256)
    return joined + low


def _decode(path: Path, bands: str | None, depth: str) -> NDArray[np.uint8]:
    """Decode with another raw mode: its bands (None: as they are) and depth."""
    from PIL import Image

    def changed(usual: str) -> str:
        return (bands or usual.split(";")[0]) + depth

    image: Any
    with Image.open(path) as image:
        # A tile's arguments are the raw mode, alone or before others.
        image.tile = [
            t._replace(args=changed(t.args) if isinstance(t.args, str) else (changed(t.args[0]), *t.args[1:]))
            for t in image.tile
        ]
        return np.array(image)


def write_png(stream: IO[bytes], pixels: NDArray[np.uint16], icc: bytes | None, exif: bytes | None) -> None:
    """Write a PNG.

    Args:
        stream: where to, open for writing.
        pixels: uint16 [H, W, C] with C 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha).
        icc: colour profile.
        exif: EXIF block without the "Exif" prefix.
    Source: PNG (W3C, third edition), 11.2 and 11.3.
    """
    height, width, channels = pixels.shape
    stream.write(b"\x89PNG\r\n\x1a\n")
    color = {2: 4, 3: 2, 4: 6}[channels]
    _chunk(stream, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    if icc:
        _chunk(stream, b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if exif:
        _chunk(stream, b"eXIf", exif)
    packer = zlib.compressobj(6)
    above = np.zeros(width * channels * 2, np.uint8)
    for row in pixels:
        line = np.ascontiguousarray(row, ">u2").view(np.uint8).reshape(-1)
        # Filter 2, "up": cheap for numpy, and photographs compress well under it.
        packed = packer.compress(b"\2" + (line - above).tobytes())
        above = line
        if packed:
            _chunk(stream, b"IDAT", packed)
    _chunk(stream, b"IDAT", packer.flush())
    _chunk(stream, b"IEND", b"")


def _chunk(stream: IO[bytes], kind: bytes, data: bytes) -> None:
    stream.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def write_tiff(stream: IO[bytes], pixels: NDArray[np.uint16], tags: Mapping[int, Any]) -> None:
    """Write an uncompressed TIFF.

    Args:
        stream: where to, open for writing at its beginning.
        pixels: uint16 [H, W, C] with C 3 (RGB) or 4 (RGB, alpha).
        tags: further tags by number: colour profile, orientation and the like; bytes are written as they are.
    Source: TIFF 6.0, section 6.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    height, width, channels = pixels.shape
    directory = ImageFileDirectory_v2(prefix=b"II")
    for tag, value in tags.items():
        if isinstance(value, bytes):
            directory.tagtype[tag] = 7  # UNDEFINED
        directory[tag] = value
    directory[_WIDTH], directory[_HEIGHT], directory[_SAMPLES] = width, height, channels
    directory[_BITS] = (16,) * channels
    directory[_COMPRESSION], directory[_PHOTOMETRIC], directory[_PLANAR] = _COMPRESSION_NONE, _RGB, 1
    if channels == 4:
        directory[_EXTRA] = _UNASSOCIATED_ALPHA
    # One strip, right behind the directory: the writer adds the directory's length to its offset.
    directory[_ROWS], directory[_OFFSETS], directory[_COUNTS] = height, 0, pixels.nbytes
    directory.save(stream)
    for row in pixels:
        stream.write(np.ascontiguousarray(row, "<u2").tobytes())
