from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from benchmarks import sets
from edgekit.errors import DataError, UnknownNameError


def _folder(folder: Path, name: str, shape: tuple[int, ...], count: int = 3) -> Path:
    (folder / name).mkdir()
    for k in range(count):
        pixels = np.full(shape, 10 * k, np.uint8)
        pillow.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


def test_images_come_by_name_with_a_channel_axis(tmp_path: Path) -> None:
    found = sets.read(_folder(tmp_path, "Set12", (4, 6)), "Set12")
    assert [image.shape for image in found.images] == [(4, 6, 1)] * 3
    assert [int(image[0, 0, 0]) for image in found.images] == [0, 10, 20]
    assert found.megapixels == pytest.approx(72e-6)
    assert len(sets.read(tmp_path, "Set12", 2).images) == 2


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown image set 'Kodak'"):
        sets.read(tmp_path, "Kodak")
    with pytest.raises(DataError, match="no image set at .*CBSD68.*--data"):
        sets.read(tmp_path, "CBSD68")
    with pytest.raises(DataError, match="uint8 .4, 6, 1.: expected 8 bits, 3 channels"):
        sets.read(_folder(tmp_path, "McMaster", (4, 6)), "McMaster")


def test_noise_is_seeded_by_place_level_and_seed() -> None:
    clean = np.full((300, 300, 3), 128, np.uint8)
    noisy = sets.noisy(clean, 25, 0)
    # 270,000 samples: the deviation is known to 0.14%.
    assert float((noisy - clean).std()) == pytest.approx(25, rel=0.01)
    np.testing.assert_array_equal(noisy, sets.noisy(clean, 25, 0))
    for other in (sets.noisy(clean, 25, 1), sets.noisy(clean, 25, 0, seed=1), sets.noisy(clean, 15, 0) * 25 / 15):
        assert np.abs(noisy - other).max() > 1


def test_bytes_are_clipped_and_rounded() -> None:
    values = np.array([-3.0, 0.4, 0.6, 254.6, 300.0])
    assert sets.to_bytes(values).tolist() == [0, 0, 1, 255, 255]
    assert sets.to_bytes(values).dtype == np.uint8
