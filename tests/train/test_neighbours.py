"""Neighbor2Neighbor: how pixels are drawn, and that it denoises without ever seeing a clean image."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit.cli.outcome import run
from edgekit.errors import RecipeError
from edgekit.train import neighbours
from edgekit.train.images import ImageSource, Picture
from edgekit.train.loop import fit
from edgekit.train.sampling import batches
from edgekit.train.validation import denoise, to_tensor

SIGMA = 25


def smooth(k: int, side: int = 96) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side]
    planes = [128 + 80 * np.sin(x / (14 + 3 * c) + k) * np.cos(y / (17 + 2 * c) - k) for c in range(3)]
    return np.stack(planes, axis=2)


def noisy(k: int) -> np.ndarray:
    image = smooth(k) + np.random.default_rng(k).normal(0, SIGMA, (96, 96, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def noisy_only() -> ImageSource:
    found = [Picture.of(f"noisy {k}", noisy(k)) for k in range(10)]
    return ImageSource("noisy", tuple(found[:9]), tuple(found[9:]))


def test_two_pixels_that_share_an_edge_of_every_cell() -> None:
    numbers = torch.arange(64.0).reshape(1, 1, 8, 8).expand(3, 2, -1, -1)
    first, second = neighbours.subsample(numbers, torch.Generator().manual_seed(0))(numbers)
    assert first.shape == second.shape == (3, 2, 4, 4)
    assert torch.equal(first[:, 0], first[:, 1])
    apart = (first - second).abs()
    assert set(apart.unique().tolist()) == {1.0, 8.0}
    for row, column in itertools.product(range(4), range(4)):
        cell = {16 * row + 2 * column + d for d in (0, 1, 8, 9)}
        assert {*first[:, 0, row, column].tolist(), *second[:, 0, row, column].tolist()} <= cell


def test_parts_of_a_batch_draw_what_the_whole_does() -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = neighbours.subsample(images, torch.Generator().manual_seed(1))(images)
    for rank, part in enumerate((images[:2], images[2:])):
        drawn = neighbours.subsample(part, torch.Generator().manual_seed(1), rank, world=2)(part)
        for one, all_ in zip(drawn, whole, strict=True):
            assert torch.equal(one, all_[2 * rank : 2 * rank + 2])


def test_the_loss_by_hand() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def found(weight: float) -> float:
        generator = torch.Generator().manual_seed(1)
        told = torch.zeros(2)
        return float(
            neighbours.loss(lambda x, s: 0.5 * x, images, told, weight, generator, torch.nn.functional.mse_loss)
        )

    first, second = neighbours.subsample(images, torch.Generator().manual_seed(1))(images)
    apart = (0.5 * first - second).square().mean()
    regular = (0.5 * first - second - 0.5 * (first - second)).square().mean()
    assert found(0) == pytest.approx(float(apart), rel=1e-5)
    assert found(2) == pytest.approx(float(apart + 2 * regular), rel=1e-5)


def test_batches_are_noisy_crops_with_an_estimated_level(noisy_only: ImageSource, quick: Callable) -> None:
    settings = quick(self_supervised="neighbor2neighbor", batch=4)
    batch = batches(noisy_only, settings)(0)
    assert batch.noisy.shape == (4, 3, 32, 32)
    assert torch.equal(batch.noisy, batches(noisy_only, settings)(0).noisy)
    assert (255 * batch.sigma - SIGMA).abs().max() < 2.5
    spaced = quick(self_supervised="neighbor2neighbor", self_supervised_spacing=3)
    assert spaced.crop == 96
    assert batches(noisy_only, spaced)(0).noisy.shape == (2, 3, 32, 32)


def test_it_denoises_without_clean_images(
    noisy_only: ImageSource, tiny_model: Callable, quick: Callable, tmp_path: Path
) -> None:
    settings = quick(
        self_supervised="neighbor2neighbor", loss={"mse": 1.0}, steps=500, batch=4, learning_rate=3e-3, ema=0.95,
        validate_every=500, save_every=500,
    )  # fmt: skip
    trained = fit(tiny_model(), noisy_only, settings, tmp_path / "run")
    before, after = [], []
    for k in (20, 21):
        clean = to_tensor(np.rint(smooth(k)).astype(np.uint8))
        shown = to_tensor(noisy(k))
        output = denoise(trained, shown, torch.tensor([SIGMA / 255]))
        before.append(-10 * torch.log10((shown - clean).square().mean()))
        after.append(-10 * torch.log10((output - clean).square().mean()))
    # 500 steps of a tiny network; the clean images are used here alone.
    assert sum(after) / 2 > sum(before) / 2 + 2


def test_the_regulariser_rises_from_0_in_proportion_to_the_steps(
    noisy_only: ImageSource, tiny_model: Callable, quick: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = neighbours.loss, []

    def watched(network: Any, noisy: Any, sigma: Any, weight: float, *rest: Any) -> torch.Tensor:
        seen.append(weight)
        return real(network, noisy, sigma, weight, *rest)

    monkeypatch.setattr(neighbours, "loss", watched)
    settings = quick(self_supervised="neighbor2neighbor", self_supervised_weight=3.0, steps=4)
    fit(tiny_model(), noisy_only, settings, tmp_path)
    assert seen == [0, 0.75, 1.5, 2.25]


def test_what_does_not_go_together(
    noisy_only: ImageSource, tiny_model: Callable, quick: Callable, tmp_path: Path
) -> None:
    pair = Picture.of("pair", noisy(0), noisy(1))
    settings = quick(self_supervised="neighbor2neighbor")
    with pytest.raises(RecipeError, match="the data are pairs with clean images, which teach better"):
        fit(tiny_model(), ImageSource("pairs", (pair,), (pair,)), settings, tmp_path / "a")
    with pytest.raises(RecipeError, match="with a teacher: choose one of them"):
        fit(tiny_model(), noisy_only, settings, tmp_path / "b", teacher=tiny_model())
    with pytest.raises(RecipeError, match=r"built-in images are clean, .*: name a folder of noisy images \(--data\)"):
        fit(tiny_model(), replace(noisy_only, name="built-in"), settings, tmp_path / "d")
    stride = tiny_model().stride
    odd = quick(self_supervised="neighbor2neighbor", patch=3 * stride)
    with pytest.raises(RecipeError, match=f"patch is {3 * stride}: .* must be a multiple of {2 * stride}"):
        fit(tiny_model(), noisy_only, odd, tmp_path / "c")


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shots").mkdir()
    for k in range(3):
        Image.fromarray(noisy(k)).save(tmp_path / "shots" / f"{k}.png")
    words = ["train", "dsunet-n", "--data", str(tmp_path / "shots"), "--self-supervised", "--steps", "2"]
    assert run([*words, "--patch", "32", "--batch", "2", "--out", str(tmp_path / "run")]) == 0
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "self_supervised: neighbor2neighbor" in recipe
    # Without clean images there is no SSIM.
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" its own")]
    assert float(row[-1]) > 0
