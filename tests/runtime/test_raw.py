"""RAW images: packing, and the k-sigma transform."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import RecipeError, ShapeError
from edgekit.runtime.raw import RENO_10X, KSigma, pack, unpack

SENSOR = KSigma(gain=(0.001, 0.0), read_noise=(0.0, 2.0), anchor=1000, white=1000)


def test_by_hand() -> None:
    # At ISO 2000 k = 2, s = 2; at the anchor k = 1, s = 2: f(x) = x/2 + (2/4 - 2/1) * 1, in digital numbers.
    found = SENSOR.forward(np.array([0.0, 0.1, 1.0]), 2000)
    np.testing.assert_allclose(found * 1000, [-1.5, 48.5, 498.5])


def test_at_the_anchor_nothing_changes() -> None:
    image = np.linspace(0, 1, 11)
    np.testing.assert_array_equal(RENO_10X.forward(image, RENO_10X.anchor), image)


@pytest.mark.parametrize("iso", [100, 800, 1600, 6400])
def test_round_trip(iso: int) -> None:
    numbers = np.arange(960)
    there = RENO_10X.forward(numbers / RENO_10X.white, iso)
    back = RENO_10X.inverse(there, iso)
    np.testing.assert_allclose(back, numbers / RENO_10X.white, rtol=0, atol=1e-14)
    # Every digital number comes back as itself.
    np.testing.assert_array_equal(np.rint(back * RENO_10X.white).astype(int), numbers)


@pytest.mark.parametrize("sensor", [SENSOR, RENO_10X])
def test_behind_it_the_noise_does_not_depend_on_the_iso(sensor: KSigma) -> None:
    means = np.linspace(0.05, 0.95, 7)
    for iso in (100, 400, 1600, 6400):
        scale = sensor.forward(np.ones(1), iso) - sensor.forward(np.zeros(1), iso)
        found = sensor.variance(means, iso) * scale**2
        np.testing.assert_allclose(found, sensor.variance(sensor.forward(means, iso), sensor.anchor), rtol=1e-12)


def test_so_do_pixels_that_are_drawn() -> None:
    rng = np.random.default_rng(0)
    for iso in (200, 800, 3200):
        gain = float(np.polyval(SENSOR.gain, iso))
        # What falls on the sensor so that the transformed mean is 100 digital numbers at every ISO.
        clean = SENSOR.inverse(np.array(0.1), iso) * SENSOR.white
        drawn = gain * rng.poisson(clean / gain, 400_000) + rng.normal(0, 2**0.5, 400_000)
        found = SENSOR.forward(drawn / SENSOR.white, iso) * SENSOR.white
        assert found.mean() == pytest.approx(100, abs=0.1)
        # The anchor's k * 100 + s; the variance of 400,000 draws is known to 0.2%: five times that is room enough.
        assert found.var() == pytest.approx(102, rel=0.012)


def test_packing_puts_each_cell_into_one_pixel() -> None:
    mosaic = np.arange(24).reshape(4, 6)
    packed = pack(mosaic)
    assert packed.shape == (2, 3, 4)
    np.testing.assert_array_equal(packed[1, 2], [16, 17, 22, 23])
    np.testing.assert_array_equal(unpack(packed), mosaic)


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ShapeError, match=r"mosaic has shape \[3, 4\]: expected \[H, W\], both even"):
        pack(np.zeros((3, 4)))
    with pytest.raises(ShapeError, match=r"packed image has shape \[2, 2, 3\]: expected \[H, W, 4\]"):
        unpack(np.zeros((2, 2, 3)))
    with pytest.raises(RecipeError, match="at ISO 0 the sensor's gain is 0 "):
        SENSOR.forward(np.zeros(1), 0)
