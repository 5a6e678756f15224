"""Measuring: against figures worked out by hand, and padding that leaves no trace."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekit.models.base import DenoiserModel
from edgekit.recipe import NoiseSettings
from edgekit.train.images import Picture
from edgekit.train.validation import denoise, evaluate, validation_levels


class Shift(DenoiserModel):
    """Adds a constant: every figure follows by hand."""

    arch = "shift"
    source = "test"

    def __init__(self, amount: float, stride: int = 4) -> None:
        super().__init__()
        self.channels, self.stride = 3, stride
        self.amount = torch.nn.Parameter(torch.tensor(amount))

    halo = 0  # type: ignore[assignment]

    def config(self) -> dict[str, Any]:
        return {}

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        return noisy + self.amount + 0 * sigma


def flat(value: int, height: int = 21, width: int = 30) -> Picture:
    return Picture.of("flat", np.full((height, width, 3), value, np.uint8))


def test_psnr_of_a_known_error() -> None:
    # No noise, 5 levels off everywhere: 20 log10(255 / 5) dB.
    found = evaluate(Shift(5 / 255), [flat(100)], 0)
    assert found.psnr == pytest.approx(20 * math.log10(255 / 5), abs=1e-3)
    assert 0.9 < found.ssim < 1


def test_the_output_is_rounded_and_clipped() -> None:
    assert evaluate(Shift(0.3 / 255), [flat(100)], 0).psnr == math.inf
    assert evaluate(Shift(0.5), [flat(255)], 0).psnr == math.inf


def test_psnr_of_the_noise_itself() -> None:
    # 20 log10(255 / 25) = 20.17 dB; rounding adds 1/12 to a variance of 625.
    picture = flat(128, 128, 128)
    for device_input in (True, False):
        found = evaluate(Shift(0.0), [picture], 25, device_input=device_input)
        assert found.psnr == pytest.approx(20.17, abs=0.1)


def test_clipping_at_the_ends_is_seen_by_device_input_alone() -> None:
    picture = flat(255, 128, 128)
    clipped = evaluate(Shift(-0.1), [picture], 25, device_input=True).psnr
    whole = evaluate(Shift(-0.1), [picture], 25, device_input=False).psnr
    assert clipped < whole - 0.5


def test_means_over_images() -> None:
    pictures = [flat(100), flat(255)]  # 5 and 0.. levels off: the second is clipped
    alone = [evaluate(Shift(-5 / 255), [p], 0).psnr for p in pictures]
    assert evaluate(Shift(-5 / 255), pictures, 0).psnr == pytest.approx(sum(alone) / 2)


def test_seeded() -> None:
    picture = flat(128)
    model = Shift(0.0)
    assert evaluate(model, [picture], 25) == evaluate(model, [picture], 25)
    assert evaluate(model, [picture], 25) != evaluate(model, [picture], 25, seed=1)


def test_other_noise_models() -> None:
    settings = NoiseSettings(model="salt-and-pepper", density=(0.1, 0.1))
    # A tenth of the samples become 0 or 255: mean square (128^2 + 127^2) / 20.
    expected = 20 * math.log10(255 / math.sqrt((128**2 + 127**2) / 20))
    assert evaluate(Shift(0.0), [flat(128, 128, 128)], noise_settings=settings).psnr == pytest.approx(expected, abs=0.2)


def test_equal_pictures_get_noise_of_their_own() -> None:
    settings = NoiseSettings(model="poisson-gaussian", shot=(0.01, 0.01))
    alone, twice = (evaluate(Shift(0.0), [flat(128)] * n, noise_settings=settings).psnr for n in (1, 2))
    assert abs(alone - twice) > 1e-3


def test_pairs_come_with_their_noise() -> None:
    clean = np.full((24, 24, 3), 100, np.uint8)
    picture = Picture.of("pair", clean, clean + 10)
    assert evaluate(Shift(-10 / 255), [picture]).psnr == math.inf
    assert evaluate(Shift(0.0), [picture], 50).psnr == pytest.approx(20 * math.log10(255 / 10), abs=1e-3)


def test_the_model_is_left_as_it_was() -> None:
    model = Shift(0.0).train()
    evaluate(model, [flat(9)], 0)
    assert model.training


def test_sizes_that_the_stride_does_not_divide(tiny_model: Any) -> None:
    # Padding by the last row and column, then cropping: what is far from the border is untouched.
    model = tiny_model().eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0.1])
    whole, cut = denoise(model, image, level), denoise(model, image[:, :, :63, :61], level)
    assert cut.shape == (1, 3, 63, 61)
    inside = 64 - 3 - model.halo
    assert torch.equal(whole[:, :, :inside, :inside], cut[:, :, :inside, :inside])


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        ((0, 55), (5, 15, 25, 50)),
        ((10, 30), (15, 25)),
        ((16, 20), (20,)),
        ((25, 25), (25,)),
        # Much beyond the last one is judged there, too.
        ((0, 60), (5, 15, 25, 50)),
        ((0, 80), (5, 15, 25, 50, 80)),
        ((70, 90), (90,)),
    ],
)
def test_levels_within_the_range(sigma: tuple[float, float], expected: tuple[float, ...]) -> None:
    assert validation_levels(NoiseSettings(sigma=sigma)) == expected
