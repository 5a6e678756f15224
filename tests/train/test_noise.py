"""Noise models against the formulas of their docstrings."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from edgekit import recipe
from edgekit.errors import UnknownNameError
from edgekit.recipe import NoiseSettings
from edgekit.train import noise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(value: float, count: int = 4, side: int = 128) -> torch.Tensor:
    return torch.full((count, 3, side, side), value)


def photo(count: int = 4, side: int = 64) -> torch.Tensor:
    ramp = torch.linspace(0.1, 0.9, side)
    return (ramp[:, None] * ramp[None]).expand(count, 3, side, side).contiguous()


@pytest.mark.parametrize("sigma", [5, 25, 50])
def test_gaussian_has_its_sigma(sigma: int) -> None:
    clean = flat(0.5)
    noisy = noise.gaussian(clean, torch.full((4,), sigma / 255), generator())
    # 196,608 samples: the standard error of the deviation is 0.16%.
    assert (noisy - clean).std().item() == pytest.approx(sigma / 255, rel=0.01)
    assert (noisy - clean).mean().item() == pytest.approx(0, abs=5 * sigma / 255 / 196_608**0.5)


@pytest.mark.parametrize("signal", [0.05, 0.5, 0.9])
@pytest.mark.parametrize(("shot", "read"), [(0.01, 0.0), (0.001, 4 / 255), (0.012, 10 / 255)])
def test_poisson_gaussian_variance(signal: float, shot: float, read: float) -> None:
    clean = flat(signal)
    noisy = noise.poisson_gaussian(clean, torch.full((4,), shot), torch.full((4,), read), generator())
    assert noisy.mean().item() == pytest.approx(signal, rel=0.01)
    assert noisy.var().item() == pytest.approx(shot * signal + read**2, rel=0.03)


def test_shot_noise_comes_in_whole_photons() -> None:
    noisy = noise.poisson_gaussian(flat(0.3), torch.full((4,), 0.01), torch.zeros(4), generator())
    photons = noisy / 0.01
    torch.testing.assert_close(photons, photons.round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5])
def test_salt_and_pepper_share(density: float) -> None:
    noisy = noise.salt_and_pepper(flat(0.4), torch.full((4,), density), generator())
    black, white = ((noisy == v).float().mean().item() for v in (0, 1))
    assert black == pytest.approx(density / 2, abs=0.005)
    assert white == pytest.approx(density / 2, abs=0.005)
    assert ((noisy == 0) | (noisy == 1) | (noisy == 0.4)).all()


def test_jpeg_loses_more_at_lower_quality() -> None:
    texture = torch.rand(1, 3, 64, 64, generator=generator())
    errors = [(noise.jpeg(texture, torch.tensor([q])) - texture).square().mean().item() for q in (10, 50, 95)]
    assert errors[0] > 1.1 * errors[1] > 1.1 * errors[2] > 0
    gray = torch.rand(2, 1, 32, 32, generator=generator())
    assert noise.jpeg(gray, torch.tensor([95, 95])).shape == gray.shape


def test_jpeg_of_a_flat_image_is_nearly_flat() -> None:
    noisy = noise.jpeg(flat(0.5, 1, 32), torch.tensor([90]))
    assert (noisy - 0.5).abs().max().item() < 3 / 255


@pytest.mark.parametrize("model", sorted(noise.MODELS))
def test_every_model_is_seeded_and_labelled(model: str) -> None:
    settings = NoiseSettings(model=model, device_share=0.0)
    clean = photo()
    noisy, sigma = noise.draw(clean, settings, generator(1))
    again, _ = noise.draw(clean, settings, generator(1))
    other, _ = noise.draw(clean, settings, generator(2))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    assert noisy.shape == clean.shape
    assert noisy.dtype == torch.float32
    assert sigma.shape == (4,)
    measured = (noisy - clean).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(sigma, measured, rtol=0.05, atol=0)


def test_settings_say_which_of_them_a_model_reads() -> None:
    assert {"gaussian"}.union(*recipe._READ_BY.values()) == set(noise.MODELS)
    with pytest.raises(ValidationError, match="density means nothing to camera noise, only to salt-and-pepper, mixed"):
        NoiseSettings(model="camera", density=(0, 0.2))
    assert NoiseSettings.model_validate(NoiseSettings(model="camera").model_dump()) == NoiseSettings(model="camera")


@pytest.mark.parametrize("model", sorted(noise.MODELS))
def test_a_device_sees_clipped_8_bit(model: str) -> None:
    settings = NoiseSettings(model=model, sigma=(50, 50))
    noisy, _ = noise.draw(photo(), settings, generator())
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    torch.testing.assert_close(noisy * 255, (noisy * 255).round(), rtol=0, atol=1e-4)


def test_device_share_is_a_share_of_images() -> None:
    clean = flat(0.5, 400, 4)
    noisy, _ = noise.draw(clean, NoiseSettings(device_share=0.7), generator())
    whole = ((noisy * 255 - (noisy * 255).round()).abs() < 1e-4).flatten(1).all(1)
    assert whole.float().mean().item() == pytest.approx(0.7, abs=0.07)


def test_gaussian_levels_fill_their_range() -> None:
    _, sigma = noise.draw(flat(0.5, 400, 4), NoiseSettings(sigma=(5, 55)), generator())
    assert 5 <= 255 * sigma.min() < 6
    assert 54 < 255 * sigma.max() <= 55
    assert 255 * sigma.mean().item() == pytest.approx(30, abs=2)


def test_a_batch_spreads_over_the_range() -> None:
    settings = NoiseSettings(sigma=(0, 40))
    batches = [255 * noise.draw(flat(0.5, 8, 4), settings, generator(seed))[1] for seed in range(200)]
    for sigma in batches:
        # One image in each eighth of the range, which is 5 wide.
        assert sorted((sigma / 5).floor().int().tolist()) == list(range(8))
    # No place in the batch is always the noisy one: each is uniform, of mean 20 and deviation 11.5.
    means = torch.stack(batches).mean(0)
    assert means.tolist() == pytest.approx([20.0] * 8, abs=4 * 11.5 / 200**0.5)


def test_the_draw_that_the_shipped_weights_saw() -> None:
    # The order of the draws is part of a recipe: levels, noise, which images are clipped.
    clean = flat(0.5, 2, 2)
    noisy, sigma = noise.draw(clean, NoiseSettings(device_share=0.7, stratified=False), generator(7))
    expected = generator(7)
    level = 55 / 255 * torch.rand(2, generator=expected)
    raw = clean + level[:, None, None, None] * torch.randn(clean.shape, generator=expected)
    clipped = torch.rand(2, generator=expected) < 0.7
    assert torch.equal(sigma, level)
    for i in range(2):
        assert torch.equal(noisy[i], noise.quantize_8bit(raw[i]) if clipped[i] else raw[i])


def test_unknown_noise_is_named() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown noise model 'gausian': expected one of camera, .*did you mean"
    ):
        noise.draw(flat(0.5), NoiseSettings(model="gausian"), generator())
