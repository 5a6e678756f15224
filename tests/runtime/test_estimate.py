from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ShapeError
from edgekit.runtime.estimate import SigmaEstimate, estimate_sigma


def noisy(sigma: float, shape: tuple[int, ...] = (400, 300, 3), level: float = 128) -> np.ndarray:
    image = np.random.default_rng(5).normal(level, sigma, shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [2, 5, 15, 25, 40])
def test_pure_noise_is_measured(sigma: float) -> None:
    assert estimate_sigma(noisy(sigma)).raw == pytest.approx(sigma, rel=0.05, abs=0.15)


@pytest.mark.parametrize("shape", [(400, 300), (400, 300, 1)])
def test_gray_and_small_images(shape: tuple[int, ...]) -> None:
    assert estimate_sigma(noisy(15, shape)).raw == pytest.approx(15, rel=0.05)
    assert estimate_sigma(noisy(15, (40, 50))).raw == pytest.approx(15, rel=0.15)


def test_units_are_those_of_8_bits_whatever_the_dtype() -> None:
    image = noisy(10)
    expected = estimate_sigma(image).raw
    assert estimate_sigma(image.astype(np.uint16) * 257).raw == pytest.approx(expected, rel=1e-3)
    assert estimate_sigma((image / 255).astype(np.float32)).raw == pytest.approx(expected, rel=1e-3)


def test_smooth_structure_and_edges_are_not_noise() -> None:
    y, x = np.mgrid[0:256, 0:256]
    smooth = 128 + 60 * np.sin(x / 40) * np.cos(y / 30) + np.where(x + y > 256, 40, -40)
    assert estimate_sigma(smooth.astype(np.float32) / 255).raw < 0.5
    image = np.clip(np.rint(smooth + np.random.default_rng(1).normal(0, 10, smooth.shape)), 0, 255).astype(np.uint8)
    assert estimate_sigma(image).raw == pytest.approx(10, rel=0.1)


def test_black_and_white_hide_the_noise_and_are_left_out() -> None:
    image = noisy(20, (256, 256))
    image[:, :100] = 0
    image[:, 160:] = 255
    assert estimate_sigma(image).raw == pytest.approx(20, rel=0.1)
    assert estimate_sigma(np.zeros((64, 64), np.uint8)).raw == 0


def test_noise_that_mostly_reaches_black_is_still_seen() -> None:
    # Every 3x3 neighbourhood but a few touches 0; without them the answer would be "no noise".
    assert estimate_sigma(noisy(40, (256, 256), level=20)).raw == pytest.approx(40, rel=0.5)


def test_photographs(shared_data: Path) -> None:
    """Texture reads as noise; the more noise, the less that matters."""
    from edgekit.runtime.images import list_images, load

    files = list_images(shared_data / "data" / "test" / "McMaster")[::3]
    random = np.random.default_rng(2)
    for sigma, tolerance in ((5, 0.15), (25, 0.04)):
        found = []
        for file in files:
            clean = load(file).pixels[:300, :300]
            image = np.clip(np.rint(clean + random.normal(0, sigma, clean.shape)), 0, 255).astype(np.uint8)
            found.append(estimate_sigma(image).raw)
        assert np.mean(found) == pytest.approx(sigma, rel=tolerance)


def test_the_result_is_kept_in_range_and_says_so() -> None:
    found = estimate_sigma(noisy(40), (5.0, 25.0))
    assert (found.sigma, found.clamped) == (25.0, True)
    assert found.raw == pytest.approx(40, rel=0.1)
    assert estimate_sigma(noisy(2), (5.0, 25.0)).sigma == 5.0
    assert not estimate_sigma(noisy(10), (5.0, 25.0)).clamped
    assert not SigmaEstimate(3.0, 3.0).clamped


@pytest.mark.parametrize("shape", [(2, 100), (100, 1)])
def test_too_small(shape: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=f"image is {shape[0]}x{shape[1]}: .* at least 3x3; give sigma as a number"):
        estimate_sigma(np.zeros(shape, np.uint8))
