from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import ShapeError
from edgekit.runtime.tiling import run_mapped, run_tiled, spans, step, window


def median(image: NDArray[Any], radius: int) -> NDArray[Any]:
    """Median over a square, zeros outside: like a network, it sees its window's border."""
    side = 2 * radius + 1
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(0, 1))
    return np.median(views, axis=(3, 4)).astype(image.dtype)


def cells(image: NDArray[Any], radius: int, stride: int) -> NDArray[Any]:
    """Largest value over cells of `stride` pixels and the cells around: aligned to a grid, as a strided network."""
    height, width, channels = image.shape
    coarse = image.reshape(height // stride, stride, width // stride, stride, channels).max(axis=(1, 3))
    padded = np.pad(coarse, ((radius, radius), (radius, radius), (0, 0)))
    side = 2 * radius + 1
    peak = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(0, 1)).max(axis=(3, 4))
    # Plus the pixel itself, so that full resolution matters too.
    return (peak.repeat(stride, 0).repeat(stride, 1) // 2 + image // 3).astype(image.dtype)


def whole(image: NDArray[Any], function: Any, halo: int, stride: int) -> NDArray[Any]:
    """The definition, by numpy's own padding."""
    before = -(-halo // stride) * stride
    after = [halo + -(before + n + halo) % stride for n in image.shape[:2]]
    # np.pad calls a single row's mirror image "edge".
    output = image
    for axis in (0, 1):
        pads = [(0, 0)] * 3
        pads[axis] = (before, after[axis])
        output = np.pad(output, pads, mode="reflect" if image.shape[axis] > 1 else "edge")
    result = function(output)
    return result[before : before + image.shape[0], before : before + image.shape[1]]


def noise(height: int, width: int, channels: int, seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    channels=st.sampled_from([1, 3]),
    radius=st.integers(0, 4),
    extra=st.integers(1, 24),
    seed=st.integers(0, 2**16),
)
def test_tiled_equals_whole_for_a_median(
    height: int, width: int, channels: int, radius: int, extra: int, seed: int
) -> None:
    image = noise(height, width, channels, seed)
    tiled = run_tiled(image, lambda x: median(x, radius), tile=2 * radius + extra, halo=radius, stride=1)
    np.testing.assert_array_equal(tiled, whole(image, lambda x: median(x, radius), radius, 1))


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    channels=st.sampled_from([1, 3]),
    radius=st.integers(0, 3),
    stride=st.sampled_from([2, 4, 8]),
    extra=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
def test_tiled_equals_whole_for_a_strided_operator(
    height: int, width: int, channels: int, radius: int, stride: int, extra: int, seed: int
) -> None:
    halo = stride * radius + stride - 1
    least = -(-(2 * halo + stride) // stride) * stride
    image = noise(height, width, channels, seed)
    tiled = run_tiled(image, lambda x: cells(x, radius, stride), tile=least + extra * stride, halo=halo, stride=stride)
    np.testing.assert_array_equal(tiled, whole(image, lambda x: cells(x, radius, stride), halo, stride))


def test_a_halo_that_is_too_small_shows() -> None:
    # The property above would be worthless if it held for any halo.
    image = noise(60, 60, 1, seed=1)
    tiled = run_tiled(image, lambda x: median(x, 3), tile=24, halo=2, stride=1)
    assert (tiled != whole(image, lambda x: median(x, 3), 3, 1)).any()


@given(
    size=st.integers(1, 5000),
    halo=st.integers(0, 70),
    stride=st.sampled_from([1, 2, 4, 8]),
    extra=st.integers(0, 60),
)
def test_spans_cover_the_axis_once_with_valid_aligned_pixels(size: int, halo: int, stride: int, extra: int) -> None:
    tile = -(-(2 * halo + stride) // stride) * stride + extra * stride
    found = spans(size, tile, halo, stride)
    assert [s.start for s in found] == [0, *(s.stop for s in found[:-1])]
    assert found[-1].stop == size
    for span in found:
        assert span.origin % stride == 0
        assert span.origin + halo <= span.start < span.stop <= span.origin + tile - halo


def test_spans_are_the_fewest() -> None:
    # 436 valid pixels a tile; the first tile begins 40 pixels before the image, so 434 of its pixels are used.
    assert step(512, 38, 4) == 436
    assert len(spans(434, 512, 38, 4)) == 1
    assert len(spans(435, 512, 38, 4)) == 2
    assert len(spans(434 + 436, 512, 38, 4)) == 2
    assert len(spans(434 + 437, 512, 38, 4)) == 3


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_window_mirrors_without_end(size: int) -> None:
    image = np.arange(size, dtype=np.int32)[:, None, None]
    got = window(image, -20, 0, 50, 1)[:, 0, 0]
    expected = np.pad(np.arange(size), (20, 50), mode="reflect" if size > 1 else "edge")[:50]
    np.testing.assert_array_equal(got, expected)


def test_a_window_cannot_change_the_image() -> None:
    image = noise(8, 8, 1, seed=0)
    with pytest.raises(ValueError, match="read-only"):
        window(image, 0, 0, 8, 8)[:] = 0
    window(image, -1, -1, 8, 8)[:] = 0
    assert image.any()
    assert image.flags.writeable


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (50, "tile is 50: expected a multiple of the stride 4"),
        (0, "tile is 0: expected a multiple of the stride 4"),
        (76, "tile is 76: a halo of 38 and a stride of 4 need a tile of at least 80"),
    ],
)
def test_a_tile_that_cannot_work(tile: int, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        step(tile, 38, 4)


def test_memory_is_bounded_by_the_tile() -> None:
    import tracemalloc

    image = np.zeros((4000, 1000, 1), np.uint8)
    tracemalloc.start()
    result = run_tiled(image, lambda x: x, tile=64, halo=8, stride=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The result and a few windows: far from a copy of the image, which would double it.
    assert peak < result.nbytes + 200_000


@given(
    size=st.integers(1, 900),
    stride=st.sampled_from([1, 2, 4, 8]),
    halo=st.integers(0, 40),
    cells=st.integers(1, 60),
)
def test_fitted_windows_are_tiles_but_the_last_which_is_the_smallest(
    size: int, stride: int, halo: int, cells: int
) -> None:
    tile = -(-(2 * halo + stride) // stride) * stride + cells * stride
    *others, last = spans(size, tile, halo, stride, fit=True)
    assert [(s.origin, s.start, s.stop) for s in (*others, last)] == [
        (s.origin, s.start, s.stop) for s in spans(size, tile, halo, stride)
    ]
    assert all(s.size == tile for s in others)
    assert last.size <= tile
    assert last.size % stride == 0
    assert last.size - stride < last.stop + halo - last.origin <= last.size


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), radius=st.integers(0, 3), stride=st.sampled_from([2, 4]))
def test_fitted_windows_give_what_tiles_do(height: int, width: int, radius: int, stride: int) -> None:
    halo = stride * radius + stride - 1
    image = noise(height, width, 1, seed=height)
    tile = -(-(2 * halo + stride) // stride) * stride + 3 * stride

    def mapper(windows: Any) -> Any:
        return (cells(window, radius, stride) for window in windows)

    (fitted,) = run_mapped(iter([image]), mapper, tile=tile, halo=halo, stride=stride, fit=True)
    np.testing.assert_array_equal(fitted, whole(image, lambda x: cells(x, radius, stride), halo, stride))
