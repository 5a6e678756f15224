"""PSNR as a device would see it, checked against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import random_model, smooth_tiles

from edgekit.compress.evaluate import denoise_whole, evaluate, noisy_tiles
from edgekit.errors import ShapeError
from edgekit.runtime.verdict import EQUAL_DB


def identity(noisy: Tensor, sigma: Tensor) -> Tensor:
    return noisy


def test_the_identity_scores_the_noise_itself() -> None:
    gray = np.full((2, 128, 128, 3), 128, np.uint8)
    measured = evaluate(identity, gray)
    assert list(measured) == [5, 15, 25, 50]
    for sigma in (5, 15, 25):  # rounding to 8 bits adds a variance of 1/12
        expected = 10 * math.log10(255**2 / (sigma**2 + 1 / 12))
        # 98,000 samples: the variance is known to 0.5%, which is 0.02 dB
        assert measured[sigma] == pytest.approx(expected, abs=0.06)


def test_the_input_is_clipped_and_rounded_to_8_bits() -> None:
    white = np.full((1, 128, 128, 1), 255, np.uint8)
    seen = []

    def spy(noisy: Tensor, sigma: Tensor) -> Tensor:
        seen.append((noisy, sigma))
        return noisy

    measured = evaluate(spy, white, sigmas=(50,))
    noisy, sigma = seen[0]
    assert noisy.max() <= 1
    torch.testing.assert_close(noisy * 255, (noisy * 255).round(), atol=1e-4, rtol=0)
    torch.testing.assert_close(sigma, torch.tensor([50 / 255]))
    # Half of the noise is cut off, so 3 dB less of it.
    assert measured[50] == pytest.approx(20 * math.log10(255 / 50) + 3.01, abs=0.15)


def test_the_output_is_clipped_and_rounded_to_8_bits() -> None:
    tiles = smooth_tiles(1).clip(0, 254)
    clean = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
    assert evaluate(lambda noisy, sigma: clean + 0.4 / 255, tiles, sigmas=(25,)) == {25: EQUAL_DB}
    off_by_one = evaluate(lambda noisy, sigma: clean + 0.6 / 255, tiles, sigmas=(25,))[25]
    assert off_by_one == pytest.approx(20 * math.log10(255), abs=0.05)


def test_a_black_tile_that_comes_out_black_has_a_finite_figure() -> None:
    tiles = np.zeros((2, 16, 16, 3), np.uint8)
    assert evaluate(lambda noisy, sigma: 0 * noisy, tiles) == dict.fromkeys((5, 15, 25, 50), EQUAL_DB)


def test_the_figure_is_the_mean_over_the_tiles() -> None:
    tiles = smooth_tiles(3)
    alone = []

    def record(noisy: Tensor, sigma: Tensor) -> Tensor:
        alone.append(noisy)
        return noisy

    together = evaluate(record, tiles, sigmas=(25,))[25]
    errors = [
        (x[0].permute(1, 2, 0) * 255 - torch.from_numpy(t)).square().mean() for x, t in zip(alone, tiles, strict=True)
    ]
    assert together == pytest.approx(np.mean([10 * math.log10(255**2 / e) for e in errors]), abs=1e-3)


def test_the_noise_of_a_tile_depends_on_neither_the_other_tiles_nor_the_model() -> None:
    tiles = smooth_tiles(3)
    np.testing.assert_array_equal(noisy_tiles(tiles, 25)[:2], noisy_tiles(tiles[:2], 25))
    assert not np.array_equal(noisy_tiles(tiles, 25, seed=1), noisy_tiles(tiles, 25))
    assert not np.array_equal(noisy_tiles(tiles, 25)[0] - tiles[0], noisy_tiles(tiles, 25)[1] - tiles[1])


def test_the_mirrored_border_is_as_wide_as_the_model_sees() -> None:
    model, tile, wide = random_model("dsunet-n"), smooth_tiles(1, size=44)[0], 40
    assert model.halo % model.stride
    mirrored = np.pad(tile, ((wide, wide), (wide, wide), (0, 0)), mode="reflect")
    with torch.no_grad():
        whole = model(torch.from_numpy(mirrored).permute(2, 0, 1)[None] / 255, torch.tensor([25 / 255]))
    expected = whole[0, :, wide:-wide, wide:-wide].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(denoise_whole(model, tile, 25), expected, atol=1e-5)


def test_a_model_is_measured_in_evaluation_mode_and_left_as_it_was() -> None:
    model = random_model("dsunet-n").train()
    first = evaluate(model, smooth_tiles(1))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert evaluate(model.eval(), smooth_tiles(1)) == first


@pytest.mark.parametrize(
    "tiles", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_tiles_of_another_kind_are_refused(tiles: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"tiles are .*: expected uint8 \[K, H, W, C\]"):
        evaluate(identity, tiles)
