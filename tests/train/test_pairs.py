"""Folders of pairs, as real-noise sets come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from edgekit.errors import DataError
from edgekit.train.images import open_images


def write(path: Path, seed: int, side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(path)


def test_pairs_by_name(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "noisy" / "scene" / f"{i}.png", i)
        write(tmp_path / "clean" / "scene" / f"{i}.bmp", 10 + i)
    source = open_images(tmp_path, patch=32)
    assert source.paired
    assert {p.name for p in (*source.training, *source.held_out)} == {"scene/0", "scene/1", "scene/2"}
    for picture in source.training:
        clean, noisy = picture.pixels()
        i = int(picture.name[-1])
        assert np.array_equal(clean, np.random.default_rng(10 + i).integers(0, 256, (40, 40, 3), dtype=np.uint8))
        assert noisy is not None
        assert np.array_equal(noisy, np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def test_names_as_in_sidd(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "noisy" / f"000{i}_NOISY_SRGB_010.PNG", i)
        write(tmp_path / "clean" / f"000{i}_GT_SRGB_010.PNG", 10 + i)
    source = open_images(tmp_path, patch=32)
    assert sorted(p.name for p in (*source.training, *source.held_out)) == ["0000_srgb_010", "0001_srgb_010"]


def test_equal_names_are_taken_as_they_are(tmp_path: Path) -> None:
    # "mean" and "real" mark the two sides in some sets; here both are scenes.
    for name in ("7_mean.png", "7_real.png"):
        write(tmp_path / "noisy" / name, 1 if "mean" in name else 2)
        write(tmp_path / "clean" / name, 3 if "mean" in name else 4)
    assert open_images(tmp_path, patch=32, validation_share=0).training[1].name == "7_real"


def test_images_without_a_partner_are_named(tmp_path: Path) -> None:
    for i in range(5):
        write(tmp_path / "noisy" / f"n{i}.png", i)
    write(tmp_path / "clean" / "n0.png", 10)
    write(tmp_path / "clean" / "extra.png", 11)
    with pytest.raises(
        DataError, match=r"5 images in .* have no partner: noisy/n1\.png, .* and 2 more; give the noisy"
    ):
        open_images(tmp_path, patch=32)


def test_noisy_without_clean(tmp_path: Path) -> None:
    write(tmp_path / "noisy" / "0.png", 0)
    with pytest.raises(DataError, match="holds noisy/ but no clean/"):
        open_images(tmp_path)


def test_clean_alone_is_a_folder_of_clean_images(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "clean" / f"{i}.png", i)
    assert not open_images(tmp_path, patch=32).paired


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for name in ("0.png", "0.bmp"):
        write(tmp_path / "noisy" / name, 0)
        write(tmp_path / "clean" / name, 0)
    with pytest.raises(DataError, match=r"0\.bmp and 0\.png in .*noisy go by the same name '0'"):
        open_images(tmp_path)


def test_sizes_that_differ(tmp_path: Path) -> None:
    write(tmp_path / "noisy" / "0.png", 0, side=40)
    write(tmp_path / "clean" / "0.png", 0, side=44)
    with pytest.raises(DataError, match="the pair 0 does not match: noisy is 40x40, clean is 44x44"):
        open_images(tmp_path, patch=32)


def test_no_pairs_at_all(tmp_path: Path) -> None:
    (tmp_path / "noisy").mkdir()
    (tmp_path / "clean").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_images(tmp_path)


def test_a_scene_photographed_twice_is_held_out_whole(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / "noisy" / f"{i}.png", i)
        write(tmp_path / "clean" / f"{i}.png", 10 + i // 2)
    source = open_images(tmp_path, patch=32)
    assert (len(source.training), len(source.held_out)) == (4, 2)
    assert {p.digest for p in source.training}.isdisjoint(p.digest for p in source.held_out)


def test_one_scene_cannot_be_split(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "noisy" / f"{i}.png", i)
        write(tmp_path / "clean" / f"{i}.png", 10)
    with pytest.raises(DataError, match="only one usable image"):
        open_images(tmp_path, patch=32)


def test_shipped_weights_are_fine_tuned_on_pairs(tmp_path: Path) -> None:
    from edgekit import models
    from edgekit.cli.outcome import run
    from edgekit.train.validation import evaluate

    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:64, 0:64]
    for k in range(4):
        clean = 128 + 90 * np.sin(x / (6 + k))[..., None] * np.cos(y / 9 + np.arange(3)[:, None, None]).T
        # Stripes: no noise that the weights know.
        noisy = clean + 12 * (y % 2)[..., None] + rng.normal(0, 4, (64, 64, 3))
        for side, pixels in (("clean", clean), ("noisy", noisy)):
            (tmp_path / side).mkdir(exist_ok=True)
            Pillow.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(tmp_path / side / f"{k}.png")
    words = ["train", "dsunet-s", "--data", str(tmp_path), "--weights", "dsunet-s", "--steps", "30", "--patch", "48"]
    assert run([*words, "--batch", "2", "--learning-rate", "1e-3", "--out", str(tmp_path / "run")]) == 0
    held_out = open_images(tmp_path, patch=48).held_out
    tuned = models.load(tmp_path / "run" / "model.safetensors")
    assert evaluate(tuned, held_out).psnr > evaluate(models.load("dsunet-s"), held_out).psnr + 0.5
