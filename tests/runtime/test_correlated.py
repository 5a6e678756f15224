"""Correlated noise: found, told apart from white noise and from texture."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.runtime.correlated import correlated_level
from edgekit.runtime.estimate import estimate_sigma


def white(sigma: float, shape: tuple[int, ...] = (360, 300, 3)) -> np.ndarray:
    return np.random.default_rng(3).normal(0, sigma, shape)


def blurred(noise: np.ndarray, passes: int = 2) -> np.ndarray:
    """Correlated noise: every sample becomes a weighted mean of its neighbours, as in demosaicking."""
    for _ in range(passes):
        for axis in (0, 1):
            noise = noise / 2 + (np.roll(noise, 1, axis) + np.roll(noise, -1, axis)) / 4
    return noise


def picture(noise: np.ndarray, level: float = 128) -> np.ndarray:
    return np.clip(np.rint(level + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [2, 10, 30])
def test_white_noise_is_not_correlated(sigma: float) -> None:
    assert correlated_level(picture(white(sigma))) == 0
    found = estimate_sigma(picture(white(sigma)))
    assert not found.correlated
    assert found.raw == pytest.approx(sigma, rel=0.05, abs=0.15)


@pytest.mark.parametrize("sigma", [10, 20])
def test_correlated_noise_reads_the_height_of_its_spectrum(sigma: float) -> None:
    # Blurring keeps the lowest frequencies: there the spectrum is as high as that of the white noise. The blocks'
    # lower fifth, and what blurring takes at a scale of 6 pixels, make it read lower.
    noise = blurred(white(sigma), 4)
    assert 0.45 * 0.62 * sigma < correlated_level(picture(noise)) < 1.1 * 0.62 * sigma
    found = estimate_sigma(picture(noise))
    assert found.correlated
    assert noise.std() < found.raw < 3 * noise.std()


def test_units_do_not_depend_on_the_dtype() -> None:
    image = picture(blurred(white(20), 4))
    expected = correlated_level(image)
    assert expected > 0
    assert correlated_level(image.astype(np.uint16) * 257) == pytest.approx(expected, rel=1e-4)
    assert correlated_level((image / 255).astype(np.float32)) == pytest.approx(expected, rel=1e-4)


def test_gray_texture_and_edges_are_not_noise() -> None:
    texture = np.repeat(blurred(white(20, (360, 300, 1)), 4), 3, axis=2)
    assert correlated_level(picture(texture)) == 0
    y, x = np.mgrid[0:360, 0:300]
    coloured = np.stack([60 * np.sin(x / 40), 60 * np.cos(y / 30), np.where(x + y > 256, 40, -40)], axis=2)
    assert correlated_level(picture(coloured)) == 0


def test_black_and_white_are_left_out() -> None:
    image = picture(blurred(white(20), 4))
    expected = correlated_level(image)
    image[:, :100] = 0
    image[200:] = 255
    assert correlated_level(image) == pytest.approx(expected, rel=0.2)
    assert correlated_level(np.zeros((300, 300, 3), np.uint8)) == 0


@pytest.mark.parametrize("shape", [(3, 3, 3), (40, 50, 3), (17, 400, 3)])
def test_too_little_to_tell(shape: tuple[int, ...]) -> None:
    assert correlated_level(picture(blurred(white(20, shape), 4))) == 0
