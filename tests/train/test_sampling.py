"""Batches: the same for the same step, whatever was drawn before; what augmentation may and may not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgekit.errors import DataError
from edgekit.recipe import AugmentSettings, NoiseSettings, TrainSettings
from edgekit.train import patches
from edgekit.train.images import ImageSource, Picture
from edgekit.train.sampling import batches, stream

PLAIN = AugmentSettings(flip=False, rotate=False, permute_channels=0, saturation=0, gain=0)


def images(count: int = 4, channels: int = 3) -> ImageSource:
    rng = np.random.default_rng(3)
    made = [rng.integers(0, 256, (40 + 8 * i, 50, channels), dtype=np.uint8) for i in range(count)]
    return ImageSource("made", tuple(Picture.of(str(i), image) for i, image in enumerate(made)), ())


def paired(sigma: float = 10.0) -> ImageSource:
    rng = np.random.default_rng(4)
    made = []
    for i in range(3):
        clean = rng.integers(60, 190, (48, 48, 3), dtype=np.uint8)
        noisy = np.clip(np.rint(clean + sigma * rng.standard_normal(clean.shape)), 0, 255).astype(np.uint8)
        made.append(Picture.of(str(i), clean, noisy))
    return ImageSource("pairs", tuple(made), ())


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"batch": 4, "patch": 16, "noise": NoiseSettings(device_share=0.7), **changes})


def test_a_step_is_always_the_same() -> None:
    draw = batches(images(), settings())
    first, again = draw(7), batches(images(), settings())(7)
    draw(3)
    for a, b, c in zip(first, again, draw(7), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert not torch.equal(first.clean, draw(8).clean)
    assert not torch.equal(first.clean, batches(images(), settings(seed=1))(7).clean)
    assert not torch.equal(first.clean, batches(images(), settings(), rank=1, world=2)(7).clean)


def test_the_crops_that_the_shipped_weights_saw() -> None:
    # Recorded from the code that trained them: a recipe names a seed, and these draws are what it means.
    draw = batches(images(), settings(noise=NoiseSettings(device_share=0.7, stratified=False)))
    clean, noisy, sigma = draw(0)
    assert clean.double().sum().item() == pytest.approx(1561.081524, abs=1e-3)
    assert noisy.double().sum().item() == pytest.approx(1566.351800, abs=1e-3)
    expected = torch.tensor([0.11748785525560379, 0.17820106446743011, 0.01985429786145687, 0.045438047498464584])
    torch.testing.assert_close(sigma, expected, rtol=1e-6, atol=0)
    values = torch.tensor([0.13690808415412903, 0.47295519709587097, 0.13275936245918274, 0.655499279499054])
    torch.testing.assert_close(draw(7).clean[2, 1, 3, :4], values, rtol=1e-6, atol=0)


def test_shapes_and_ranges() -> None:
    batch = batches(images(), settings())(0)
    assert batch.clean.shape == batch.noisy.shape == (4, 3, 16, 16)
    assert batch.sigma.shape == (4,)
    assert batch.clean.dtype == batch.noisy.dtype == batch.sigma.dtype == torch.float32
    assert batch.clean.min() >= 0
    assert batch.clean.max() <= 1


def test_without_augmentation_a_crop_is_a_window() -> None:
    source = images(1)
    clean = batches(source, settings(augment=PLAIN))(0).clean
    image = source.training[0].pixels()[0]
    windows = np.lib.stride_tricks.sliding_window_view(image, (16, 16), axis=(0, 1))
    for patch in clean:
        wanted = (patch.numpy() * 255).round().astype(np.uint8)
        assert (windows == wanted[None, None]).all((2, 3, 4)).any()


def test_flips_and_rotations_permute_pixels() -> None:
    patch = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    seen = set()
    for seed in range(60):
        moved = patches.augment(
            patch, PLAIN.model_copy(update={"flip": True, "rotate": True}), np.random.default_rng(seed)
        )
        whole = (moved * 255).round().astype(np.uint8)
        assert sorted(whole.reshape(-1, 3).tolist()) == sorted(patch.reshape(-1, 3).tolist())
        seen.add(whole.tobytes())
    assert len(seen) == 8


def test_colour_changes() -> None:
    patch = np.full((2, 2, 3), [200, 100, 50], np.uint8)
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50

    def once(**chances: float) -> np.ndarray[Any, Any]:
        return 255 * patches.augment(patch, PLAIN.model_copy(update=chances), np.random.default_rng(1))[0, 0]

    assert sorted(once(permute_channels=1.0)) == pytest.approx([50, 100, 200])
    saturated = once(saturation=1.0)
    factor = (saturated[1] - luma) / (100 - luma)
    assert 0.5 <= factor <= 2.5
    gained = once(gain=1.0) / [200, 100, 50]
    assert (gained >= 0.6 - 1e-6).all()
    assert (gained <= 1.4 + 1e-6).all()
    assert len(set(gained.round(4))) == 3


def test_scale_shrinks_a_larger_window() -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    always = PLAIN.model_copy(update={"scale": 1.0})
    crops = [patches.crop(stripes, 16, always, np.random.default_rng(s)).astype(int) for s in range(8)]
    assert {c.shape for c in crops} == {(16, 16, 1)}
    contrast = [np.abs(np.diff(c[:, :, 0], axis=1)).mean() for c in crops]
    assert (
        min(contrast)
        < 100
        < 255
        == np.abs(
            np.diff(patches.crop(stripes, 16, PLAIN, np.random.default_rng(0))[:, :, 0].astype(int), axis=1)
        ).mean()
    )
    # A window never exceeds the image.
    assert patches.crop(stripes[:17, :17], 16, always, np.random.default_rng(0)).shape == (16, 16, 1)


def test_large_images_are_drawn_more_often() -> None:
    small, large = np.zeros((16, 16, 1), np.uint8), np.full((48, 48, 1), 255, np.uint8)
    source = ImageSource("two", (Picture.of("small", small), Picture.of("large", large)), ())
    share = batches(source, settings(batch=400, augment=PLAIN))(0).clean.mean().item()
    assert share == pytest.approx(48**2 / (48**2 + 16**2), abs=0.05)


def test_pairs_keep_their_own_noise() -> None:
    source = paired(sigma=10)
    clean, noisy, sigma = batches(source, settings(batch=6))(0)
    assert not torch.equal(clean, noisy)
    measured = (noisy - clean).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(sigma, measured)
    assert (255 * sigma).mean().item() == pytest.approx(10, rel=0.1)


def test_pairs_move_together() -> None:
    clean = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3)
    image = (clean % 251).astype(np.uint8)
    noisy = (255 - image).astype(np.uint8)
    source = ImageSource("pairs", (Picture.of("0", image, noisy),), ())
    batch = batches(source, settings(batch=8))(0)
    torch.testing.assert_close(batch.clean + batch.noisy, torch.ones_like(batch.clean))


def test_crops_larger_than_an_image() -> None:
    with pytest.raises(DataError, match=r"0 is 50x40, smaller than the 48-pixel crop: open the images with patch=48"):
        batches(images(), settings(patch=48))


@pytest.mark.parametrize("ahead", [True, False])
def test_a_stream_draws_the_same_in_order(ahead: bool) -> None:
    draw = batches(images(), settings())
    drawn = list(stream(draw, 2, 6, ahead=ahead))
    assert len(drawn) == 4
    for step, batch in zip(range(2, 6), drawn, strict=True):
        assert torch.equal(batch.noisy, draw(step).noisy)
    assert list(stream(draw, 3, 3, ahead=ahead)) == []
