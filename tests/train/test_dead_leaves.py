"""Dead leaves: seeded, of the right colours and statistics."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.train.dead_leaves import _fall, _spread, dead_leaves


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_seed(channels: int) -> None:
    first, again, other = (dead_leaves(48, rng(s), channels=channels) for s in (1, 1, 2))
    assert first.shape == (48, 48, channels)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.std() > 20


def test_spread() -> None:
    index, within = _spread(np.array([2, 0, 3]))
    assert index.tolist() == [0, 0, 2, 2, 2]
    assert within.tolist() == [0, 1, 0, 1, 2]


def test_later_leaves_cover_earlier_ones() -> None:
    # A disc of radius 2 around (3, 3), then one of radius 1 on top of its right edge, at (3, 5); 8 pixels, wrapping.
    owner = _fall(np.array([2, 1]), np.array([[3, 3], [3, 5]]), 8)
    assert owner.tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 2, 0, 0],
        [0, 1, 1, 1, 2, 2, 2, 0],
        [0, 0, 1, 1, 1, 2, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_leaves_wrap_around() -> None:
    owner = _fall(np.array([1]), np.array([[0, 0]]), 4)
    assert owner.tolist() == [[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_colors_come_from_the_palette() -> None:
    palette = np.array([[[200, 30, 10], [190, 40, 20]]], np.uint8)
    image = dead_leaves(64, rng(), colors=palette).astype(int)
    # Texture moves all channels of a leaf together: differences between them stay those of the two colours.
    red_green = (image[:, :, 0] - image[:, :, 1]).mean()
    assert red_green == pytest.approx(160, abs=12)
    assert image[:, :, 2].mean() < 40


def test_spectrum_of_a_natural_image() -> None:
    # Lee, Mumford and Huang 2001: amplitude falls about as 1 / frequency, as in photographs.
    slopes = []
    for seed in range(4):
        gray = dead_leaves(128, rng(seed), channels=1)[:, :, 0].astype(float)
        power = np.abs(np.fft.fft2((gray - gray.mean()) * np.outer(np.hanning(128), np.hanning(128)))) ** 2
        frequency = np.rint(np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None]) * 128).astype(int)
        rings = np.arange(3, 30)
        mean = [power[frequency == r].mean() for r in rings]
        slopes.append(np.polyfit(np.log(rings), np.log(mean), 1)[0])
    assert -3.0 < np.mean(slopes) < -1.0


def test_smallest_leaf_sets_the_detail() -> None:
    def edges(smallest: float) -> float:
        gray = dead_leaves(96, rng(3), channels=1, smallest=smallest)[:, :, 0].astype(float)
        return float(np.abs(np.diff(gray, axis=1)).mean())

    assert edges(1) > 1.3 * edges(8)
