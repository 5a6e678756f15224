"""The camera's noise: what the processing does to it, and that without noise nothing happens."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch

from edgekit.recipe import NoiseSettings, Recipe, TrainRecipe, load
from edgekit.train import camera, noise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, side: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=generator(9))


def exposed(clean: torch.Tensor, shot: float = 0.002, read: float = 0.0, grain: float = 0.0) -> torch.Tensor:
    per_image = (torch.full((clean.shape[0],), value) for value in (shot, read, grain))
    return camera.expose(clean, *per_image, generator())


def neighbours(residual: torch.Tensor, distance: int = 1) -> float:
    """Correlation of samples beside each other."""
    apart = (residual[..., distance:] * residual[..., :-distance]).mean()
    return float(apart / residual.square().mean())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [4, 33, 64])
def test_without_noise_the_image_comes_back(channels: int, side: int) -> None:
    clean = images(side=side, channels=channels)
    clean[0] = 0
    clean[1] = 1
    # Two powers and an arcsine in float32.
    torch.testing.assert_close(exposed(clean, shot=0, grain=1), clean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_is_correlated_where_white_noise_is_not(channels: int) -> None:
    clean = torch.full((8, channels, 128, 128), 0.5)
    white = noise.gaussian(clean, torch.full((8,), 0.05), generator()) - clean
    assert abs(neighbours(white)) < 0.01
    found = neighbours(exposed(clean) - clean)
    assert 0.3 < found < 0.8
    assert neighbours(exposed(clean, grain=1.0) - clean) > found + 0.1


@pytest.mark.parametrize("grain", [0.3, 1.0, 1.7, 3.0])
def test_grain_is_the_deviation_of_the_filter(grain: float) -> None:
    point = torch.zeros(1, 1, 65, 65)
    point[..., 32, 32] = 1
    spread = camera._filter(point, torch.tensor([grain]))[0, 0]
    assert spread.min() >= 0
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    places = torch.arange(65) - 32
    for dim in (0, 1):
        assert (spread.sum(dim) * places.square()).sum().sqrt() == pytest.approx(grain, rel=1e-3)


def test_chroma_grain_smooths_the_colour_of_the_noise_alone() -> None:
    clean = torch.full((8, 3, 96, 96), 0.5)
    noisy = noise.gaussian(clean, torch.full((8,), 0.05), generator())
    smooth = camera.smooth_colour(clean, noisy, torch.full((8,), 2.0))
    luma = [torch.einsum("c,nchw->nhw", camera._LUMA, image - clean) for image in (noisy, smooth)]
    torch.testing.assert_close(luma[0], luma[1], rtol=0, atol=1e-5)
    red = [(image - clean)[:, 0] - y for image, y in zip((noisy, smooth), luma, strict=True)]
    # White noise behind a Gaussian filter keeps 1 / (2 sqrt(pi) s) of its deviation.
    assert red[1].std() / red[0].std() == pytest.approx(1 / (2 * math.pi**0.5 * 2), rel=0.1)


def test_chroma_grain_is_drawn() -> None:
    clean = torch.full((4, 3, 32, 32), 0.5)
    settings = NoiseSettings(model="camera", jpeg_share=0, device_share=0)
    plain, smooth = (
        noise.draw(clean, settings.model_copy(update={"chroma_grain": (g, g)}), generator())[0] for g in (0.0, 2.0)
    )
    assert (plain - smooth).abs().mean() > 1e-3
    torch.testing.assert_close(smooth, camera.smooth_colour(clean, plain, torch.full((4,), 2.0)))


def test_white_balance_and_matrix_correlate_the_channels() -> None:
    clean = torch.full((8, 3, 128, 128), 0.5)
    red, green, blue = (exposed(clean) - clean).unbind(1)
    assert red.std() > green.std()
    assert blue.std() > green.std()
    assert abs(float((red * green).mean() / red.std() / green.std())) > 0.03


def test_variance_grows_with_the_signal_on_the_sensor() -> None:
    # Back on the linear scale, where the line is; in the picture the tone curve turns it round.
    deviations = []
    for level in (0.2, 0.4, 0.6):
        clean = torch.full((8, 3, 96, 96), level)
        linear = camera._to_linear(exposed(clean, shot=1e-4)) - camera._to_linear(clean)
        deviations.append(float(linear.var()))
    assert deviations[0] < 0.5 * deviations[1] < 0.25 * deviations[2] * 1.5
    shots = [float((exposed(images(), shot=s) - images()).var()) for s in (1e-4, 1e-3, 1e-2)]
    assert shots[0] < 0.2 * shots[1] < 0.1 * shots[2]


def test_read_noise_follows_shot_noise_by_the_line() -> None:
    weak, strong = (
        noise.draw(images(16), NoiseSettings(model="camera", shot=(s, s), jpeg_share=0), generator())[1].mean()
        for s in (1e-4, 1.2e-2)
    )
    assert 1 < 255 * weak < 6
    assert strong > 5 * weak


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_stay_in_range(channels: int) -> None:
    settings = NoiseSettings(model="camera", shot=(1, 1), device_share=0, jpeg_share=0)
    noisy, _ = noise.draw(images(channels=channels), settings, generator())
    assert noisy.shape == (4, channels, 64, 64)
    assert noisy.isfinite().all()
    assert noisy.min() >= 0
    assert noisy.max() <= 1


def test_jpeg_in_some_images() -> None:
    clean = torch.full((64, 3, 16, 16), 0.5)
    settings = NoiseSettings(model="camera", shot=(1e-4, 1e-4), jpeg_share=0.5, quality=(1, 1), device_share=0)
    noisy, _ = noise.draw(clean, settings, generator())
    # At quality 1 nothing of the noise survives.
    flat = noisy.flatten(2).std(2).amax(1) == 0
    assert 0.3 < flat.float().mean().item() < 0.7
    without, _ = noise.draw(clean, settings.model_copy(update={"jpeg_share": 0.0}), generator())
    assert (without.flatten(2).std(2) > 0).all()


def test_every_site_of_the_mosaic_has_one_colour() -> None:
    mosaic = camera._mosaic(6, 8)
    assert torch.equal(mosaic.sum(1), torch.ones(4, 6, 8))
    assert mosaic[:, 1].mean() == 0.5
    assert len({tuple(m.flatten().tolist()) for m in mosaic}) == 4
    # Bilinear interpolation gives a flat field back, at the borders too.
    torch.testing.assert_close(camera._demosaic(mosaic), torch.ones(4, 3, 6, 8))


def test_fast_enough_to_train_with() -> None:
    clean = torch.nn.functional.interpolate(images(8, 12), size=(96, 96), mode="bicubic").clamp(0, 1)
    settings = NoiseSettings(model="camera")
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        noise.draw(clean, settings, generator())
        seconds.append(time.perf_counter() - began)
    # 8 to 10 ms on one thread, most of it JPEG; a step of dsunet-s takes 28. Other work on the machine has its share.
    assert min(seconds) < 0.05


def test_the_committed_recipes_of_the_second_stage() -> None:
    root = Path(__file__).parents[2]
    training = load(TrainRecipe, root / "edgekit" / "models" / "weights" / "dsunet-s-camera.yaml", {})
    compression = load(Recipe, root / "benchmarks" / "recipes" / "camera.yaml", {"target": "tflite"})
    assert training.weights == "dsunet-s"
    assert training.train.noise.model == "camera"
    assert compression.noise == training.train.noise
