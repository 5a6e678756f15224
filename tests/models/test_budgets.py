"""The sizes the student family promises."""

from __future__ import annotations

import pytest

from edgekit import models


@pytest.mark.parametrize(("name", "limit"), [("dsunet-n", 3_000), ("dsunet-s", 9_000), ("dsunet-m", 20_000)])
@pytest.mark.parametrize("channels", [1, 3])
def test_macs_per_pixel(name: str, limit: int, channels: int) -> None:
    assert models.create(name, channels=channels).macs_per_pixel() <= limit


def test_gray_spends_on_blocks_what_its_ends_save() -> None:
    assert 8_500 < models.create("dsunet-s-gray").macs_per_pixel() <= 9_000


@pytest.mark.parametrize("name", ["dsunet-n", "dsunet-s", "dsunet-s-gray"])
def test_halo(name: str) -> None:
    assert models.create(name).halo <= 40


def test_published_sizes() -> None:
    # 3x3 convolutions: 17 and 20 layers of width 64, and 12 of width 96 at a quarter of the positions.
    assert models.create("dncnn-25").macs_per_pixel() == 9 * (64 * 64 * 15 + 2 * 64)
    assert models.create("dncnn-color-blind").macs_per_pixel() == 9 * (64 * 64 * 18 + 2 * 64 * 3)
    assert models.create("ffdnet-color").macs_per_pixel() == 9 * (13 * 96 + 96 * 96 * 10 + 96 * 12) / 4
