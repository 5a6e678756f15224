"""The level that a model is told: of white noise its deviation, of smooth noise what an estimate may say."""

from __future__ import annotations

import pytest
import torch

from edgekit.errors import ShapeError
from edgekit.recipe import NoiseSettings
from edgekit.runtime.estimate import estimate_sigma
from edgekit.train import camera, noise, told


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", [5.0, 25.0])
def test_white_noise_is_told_as_it_is(sigma: float, channels: int) -> None:
    clean = torch.full((6, channels, 96, 96), 0.5)
    noisy = noise.gaussian(clean, torch.full((6,), sigma / 255), generator())
    assert told.rms(clean, noisy).numpy() * 255 == pytest.approx(sigma, rel=0.03)
    # Medians of up to 9,000 samples, and of 200 at the coarsest scale.
    assert told.as_estimated(clean, noisy, generator()).numpy() * 255 == pytest.approx(sigma, rel=0.1)


def test_smooth_noise_is_told_within_the_span_of_the_estimates() -> None:
    clean = torch.full((1, 3, 240, 240), 0.5)
    noisy = noise.quantize_8bit(
        camera._filter(torch.randn(1, 3, 240, 240, generator=generator()) * 0.1, torch.tensor([1.5])) + clean
    )
    auto = estimate_sigma((noisy[0].permute(1, 2, 0) * 255).round().byte().numpy())
    assert auto.correlated
    levels = torch.cat([told.as_estimated(clean, noisy, generator(seed)) for seed in range(40)]) * 255
    between_neighbours = 255 * float(told._differences(noisy - clean))
    assert levels.min() >= 0.99 * between_neighbours
    assert levels.min() < 2 * between_neighbours
    assert levels.max() == pytest.approx(auto.raw, rel=0.25)
    assert between_neighbours < auto.raw / 3


def test_what_jpeg_takes_from_texture_is_not_told() -> None:
    clean = torch.full((1, 3, 96, 96), 0.5)
    noisy = noise.gaussian(clean, torch.tensor([0.01]), generator())
    noisy[..., :20] += torch.rand(1, 3, 96, 20, generator=generator())
    # 20 of 96 columns: the median of the rest is its 0.63 quantile, which is a third higher.
    assert told.as_estimated(clean, noisy, generator())[0] == pytest.approx(0.0133, rel=0.15)
    assert told.rms(clean, noisy)[0] > 0.1


def test_the_recipe_chooses() -> None:
    clean = torch.rand(3, 3, 64, 64, generator=generator())
    settings = NoiseSettings(model="camera", grain=(1.5, 2), chroma_grain=(1, 3), shot=(0.01, 0.01), jpeg_share=0)
    _, rms = noise.draw(clean, settings, generator())
    noisy, auto = noise.draw(clean, settings.model_copy(update={"level": "auto", "device_share": 0.0}), generator())
    torch.testing.assert_close(rms, told.rms(clean, noisy))
    assert not torch.isclose(rms, auto).any()


def test_of_gray_images_neighbours_are_told() -> None:
    clean = torch.full((1, 1, 96, 96), 0.5)
    noisy = camera._filter(torch.randn(1, 1, 96, 96, generator=generator()) * 0.1, torch.tensor([1.5])) + clean
    levels = [float(told.as_estimated(clean, noisy, generator(seed))) for seed in range(5)]
    assert len(set(levels)) == 1
    assert levels[0] < float(told.rms(clean, noisy)) / 2


def test_small_images_are_refused_with_the_size_that_is_needed() -> None:
    clean = torch.rand(1, 3, 17, 40)
    with pytest.raises(ShapeError, match="images of 17x40: noise.level auto .* at least 18x18; use a larger patch"):
        told.as_estimated(clean, clean, generator())


def test_images_without_noise_are_told_next_to_none() -> None:
    clean = torch.rand(2, 3, 32, 32, generator=generator())
    assert told.as_estimated(clean, clean, generator()).numpy() * 255 == pytest.approx(0.3, abs=1e-3)
