"""Cutting an image into tiles of one fixed size, so that the result is that of the whole image.

The result of an image is defined without tiles: mirror it at its borders without repeating the edge ("reflect"), by
the halo rounded up to the stride on top and left, by the halo and on to a multiple of the stride at the bottom and
right; run the network once; crop. An output pixel depends on no input pixel farther away than the halo, so a window
whose origin is a multiple of the stride gives the same values for every pixel at least a halo inside it: exactly in
integer arithmetic, to the rounding of sums in float.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ShapeError


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in pixels of the image.

    Attributes:
        origin: where the window begins, a multiple of the stride; negative when it begins in the mirrored border.
        start, stop: the part of the result that is taken from this window.
        size: the window's extent, a multiple of the stride.
    """

    origin: int
    start: int
    stop: int
    size: int


def step(tile: int, halo: int, stride: int) -> int:
    """Distance between neighbouring windows: the most pixels of a tile that are valid, in whole strides.

    Args:
        tile: side of the window in pixels, a multiple of the stride.
        halo: receptive radius in pixels, 0 or more.
        stride: the network's grid in pixels, 1 or more.
    Raises: ShapeError: the tile is no multiple of the stride, or too small to hold one valid cell.
    """
    if tile < 1 or tile % stride:
        raise ShapeError(f"tile is {tile}: expected a multiple of the stride {stride}")
    distance = (tile - 2 * halo) // stride * stride
    if distance < 1:
        least = _up(2 * halo + stride, stride)
        raise ShapeError(f"tile is {tile}: a halo of {halo} and a stride of {stride} need a tile of at least {least}")
    return distance


def spans(size: int, tile: int, halo: int, stride: int, *, fit: bool = False) -> list[Span]:
    """The fewest windows that cover an axis of `size` pixels. Arguments and errors as in `step`.

    Args:
        fit: make the last window, or the only one, no larger than it must be: for engines that take any size. The
            others are `tile` pixels, which an engine may have prepared its model for.
    """
    distance = step(tile, halo, stride)
    # Rounds down: the border on the left is the halo rounded up to the stride.
    origin, start = -halo // stride * stride, 0
    found = []
    while start < size:
        stop = min(size, origin + tile - halo)
        extent = _up(stop + halo - origin, stride) if fit and stop == size else tile
        found.append(Span(origin, start, stop, extent))
        origin, start = origin + distance, stop
    return found


def _up(size: int, stride: int) -> int:
    return -(-size // stride) * stride


def window(image: NDArray[Any], top: int, left: int, height: int, width: int) -> NDArray[Any]:
    """A window of an image that is mirrored without end at its borders.

    Args:
        image: [H, W, C], any dtype, at least 1x1. An axis of one pixel is repeated.
        top, left: the window's origin in pixels of the image; may be negative.
        height, width: its size, which may exceed the image's.
    Returns: [height, width, C]; inside the image a view of it, not to be written to.
    """
    bottom, right = top + height, left + width
    if top >= 0 and left >= 0 and bottom <= image.shape[0] and right <= image.shape[1]:
        whole = image[top:bottom, left:right]
        whole.flags.writeable = False
        return whole
    rows, columns = _mirror(top, height, image.shape[0]), _mirror(left, width, image.shape[1])
    # Whole runs of pixels are copied, and one by one only those of a mirrored border: ten times faster. No copy is
    # larger than the window.
    low, high = int(columns.min()), int(columns.max()) + 1
    strip = image[:, low:high][rows]
    inside = slice(max(0, -left), max(0, -left) + max(0, min(right, image.shape[1]) - max(left, 0)))
    result = np.empty((height, width, image.shape[2]), image.dtype)
    if inside.stop > inside.start:
        result[:, inside] = strip[:, columns[inside.start] - low : columns[inside.stop - 1] - low + 1]
    for border in (slice(0, inside.start), slice(inside.stop, width)):
        result[:, border] = strip[:, columns[border] - low]
    return result


def _mirror(start: int, count: int, size: int) -> NDArray[np.intp]:
    period = max(1, 2 * (size - 1))
    index = np.arange(start, start + count, dtype=np.intp) % period
    return np.where(index < size, index, period - index)


def tiles(
    height: int, width: int, tile: int, halo: int, stride: int, *, fit: bool = False
) -> Iterator[tuple[Span, Span]]:
    """The tiles of an image, row by row: a span along H and one along W. Arguments and errors as in `spans`."""
    columns = spans(width, tile, halo, stride, fit=fit)
    for row in spans(height, tile, halo, stride, fit=fit):
        for column in columns:
            yield row, column


def run_tiled(
    image: NDArray[Any],
    function: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    tile: int,
    halo: int,
    stride: int,
) -> NDArray[Any]:
    """Apply a function of fixed-size windows to an image of any size.

    Beside the image and its result, memory holds one window.

    Args:
        image: [H, W, C], at least 1x1.
        function: takes a window [tile, tile, C], returns [tile, tile, C] in the image's dtype.
        tile: side of the window in pixels, a multiple of the stride.
        halo: receptive radius of the function in pixels.
        stride: the function's grid in pixels.
    Returns: [H, W, C] in the image's dtype: what the module's definition says of the whole image.
    Raises: ShapeError: as in `step`.
    """
    (result,) = run_mapped(iter([image]), lambda windows: map(function, windows), tile=tile, halo=halo, stride=stride)
    return result


def run_mapped(
    images: Iterator[NDArray[Any]],
    mapper: Callable[[Iterator[NDArray[Any]]], Iterator[NDArray[Any]]],
    *,
    tile: int,
    halo: int,
    stride: int,
    fit: bool = False,
) -> Iterator[NDArray[Any]]:
    """As `run_tiled`, of a stream of images, for a function that takes the stream of all their windows.

    It may work on several windows at once, those of the next image beside the last ones of the image before. An image
    is asked for when the windows of the one before were all handed over.

    Args:
        mapper: takes windows [tile, tile, C], yields one output of the window's size for each, in their order. Memory
            holds as many windows, and the images they are of, as it takes before it yields.
        fit: windows at the lower and right border are no larger than they must be, in multiples of the stride.
    """
    started: deque[tuple[NDArray[Any], deque[tuple[Span, Span]]]] = deque()

    def windows() -> Iterator[NDArray[Any]]:
        for image in images:
            places = list(tiles(image.shape[0], image.shape[1], tile, halo, stride, fit=fit))
            started.append((np.empty_like(image, order="C", subok=False), deque(places)))
            for row, column in places:
                yield window(image, row.origin, column.origin, row.size, column.size)

    for output in mapper(windows()):
        result, left = started[0]
        row, column = left.popleft()
        result[row.start : row.stop, column.start : column.stop] = output[
            row.start - row.origin : row.stop - row.origin, column.start - column.origin : column.stop - column.origin
        ]
        if not left:
            started.popleft()
            yield result
