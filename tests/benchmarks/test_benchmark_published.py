"""Whoever measures other figures for published weights measures wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import contestants, published, results, sets
from edgekit.models import create
from edgekit.runtime.quality import psnr

# Set12's first three at sigma 25 with DnCNN-S: table II of Zhang et al. 2017, doi:10.1109/TIP.2017.2662206.
SET12 = [30.18, 33.06, 30.87]


def test_dncnn_gives_its_published_figures_on_a_few_images(shared_data: Path) -> None:
    model = contestants.load("dncnn-25", weights={}, kair=shared_data / "weights" / "kair").model
    chosen = sets.read(shared_data / "data" / "test", "Set12", len(SET12))
    found = [psnr(published.denoise(model, sets.noisy_as_published(clean, 25), 25), clean) for clean in chosen.images]
    # One image of 65,536 pixels varies by 0.1 dB with its noise.
    assert found == pytest.approx(SET12, abs=0.25)
    assert np.mean(found) == pytest.approx(np.mean(SET12), abs=0.1)


@pytest.mark.parametrize(("model", "name"), [("ffdnet-color", "CBSD68"), ("dncnn-color-blind", "CBSD68")])
def test_a_few_images_give_what_the_whole_benchmark_recorded(shared_data: Path, model: str, name: str) -> None:
    """The record's mean over the whole set is the published figure (see test_benchmark_tables.py)."""
    rows = results.load(results.FOLDER / "quality.json")["rows"]
    (row,) = [r for r in rows if (r["model"], r["set"], r["sigma"]) == (model, name, 25)]
    recorded = row["figures"]["unclipped"]
    contestant = contestants.load(model, weights={}, kair=shared_data / "weights" / "kair")
    assert contestant.sha256 == recorded["sha256"]
    (clean,) = sets.read(shared_data / "data" / "test", name, 1).images
    found = psnr(published.denoise(contestant.model, sets.noisy_as_published(clean, 25), 25), clean)
    # Another processor sums in another order: a few roundings of the output differ.
    assert found == pytest.approx(recorded["each"][0], abs=0.002)


def test_odd_sizes_repeat_the_last_row_and_column() -> None:
    model = create("ffdnet-color", widths=[8]).eval()
    image = np.random.default_rng(0).uniform(0, 255, (9, 7, 3))
    whole = np.pad(image, [(0, 1), (0, 1), (0, 0)], mode="edge")
    found = published.denoise(model, image, 25)
    assert found.shape == image.shape
    np.testing.assert_array_equal(found, published.denoise(model, whole, 25)[:9, :7])


def test_noise_level_and_scale() -> None:
    class Level(torch.nn.Module):
        stride = 1

        def forward(self, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return noisy - sigma[0]

    image = np.array([[[10.4], [100.0], [-20.0], [300.0]]])
    assert published.denoise(Level(), image, 10).ravel().tolist() == [0, 90, 0, 255]  # type: ignore[arg-type]


def test_a_figure_that_is_not_the_published_one_is_told() -> None:
    assert published.wrong("ffdnet-color", "CBSD68", 25, 31.20) == ""
    assert published.wrong("unet", "CBSD68", 25, 20.0) == ""
    assert "31.150 dB unclipped, published are 31.22" in published.wrong("ffdnet-color", "CBSD68", 25, 31.15)
