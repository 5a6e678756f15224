from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_bundle import write_tiny
from PIL import Image as pillow

from benchmarks import real, real_int8, results
from benchmarks.contestants import CAMERA, STUDENT
from edgekit.bundle import reader
from edgekit.bundle.reader import sha256
from edgekit.errors import DataError
from edgekit.models import checkpoints
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.quality import psnr


def _set(folder: Path, noisy: tuple[int, int] = (48, 64)) -> Path:
    rng = np.random.default_rng(0)
    for side, shape in (("noisy", noisy), ("mean", (48, 64))):
        (folder / side).mkdir(parents=True)
        pixels = np.clip(rng.normal(128, 10 * (side == "noisy"), (*shape, 3)), 0, 255).astype(np.uint8)
        pillow.fromarray(pixels).save(folder / side / f"{side}_1.png")
    return folder


def test_the_estimate_is_held_against_the_best_fixed_level(tmp_path: Path) -> None:
    (row,) = real.measure("dsunet-s", real.pairs(_set(tmp_path)))
    assert row["noisy"] == pytest.approx(28.2, abs=0.3)
    assert row["best"] >= row["fixed"] == max(row["by_sigma"].values()) > row["noisy"] + 5
    assert row["auto"] > row["noisy"] + 5
    assert row["auto"] == row["white"]


def test_the_recorded_gain_is_of_the_shipped_weights_and_the_whole_set() -> None:
    found = results.load(results.FOLDER / "real.json")
    assert found["settings"]["images"] == 60
    rows = {row["model"]: row for row in found["rows"]}
    assert rows.keys() == {STUDENT, CAMERA}
    for name, row in rows.items():
        assert row["sha256"] == sha256(checkpoints.shipped()[name]), f"{name} was trained again: measure it again"
    camera = rows[CAMERA]
    assert camera["auto"] >= camera["noisy"] + 3.5
    assert camera["auto"] >= camera["fixed"] - 0.5


def test_what_is_no_set_of_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no noisy/ and mean/ at .*--data"):
        real.pairs(tmp_path)
    with pytest.raises(DataError, match="do not hold the same images"):
        real.pairs(_set(tmp_path, (40, 64)))


def test_a_bundle_is_measured_in_float_and_in_integers(tmp_path: Path) -> None:
    found = real.pairs(_set(tmp_path))
    with reader.read(write_tiny(tmp_path / "tiny.edgekit")) as bundle:
        row = real_int8.measure(bundle, found)
        with Denoiser.from_bundle(bundle) as denoiser:
            expected = psnr(denoiser(found[0][0], sigma="auto"), found[0][1])
    assert row["int8"] == pytest.approx(expected, abs=1e-3)
    assert row["noisy"] == pytest.approx(psnr(*found[0]), abs=1e-3)
    assert row["fp32"] != row["int8"]


def test_the_recorded_integers_keep_the_gain_on_real_noise() -> None:
    floats = {row["model"]: row for row in results.load(results.FOLDER / "real.json")["rows"]}
    found = results.load(results.FOLDER / "real-int8.json")
    assert found["settings"]["images"] == 60
    assert {row["target"] for row in found["rows"]} == {"tflite", "openvino", "tensorrt"}
    for row in found["rows"]:
        assert row["name"] == CAMERA
        assert row["noisy"] == floats[CAMERA]["noisy"]
        assert row["int8"] >= row["noisy"] + 3.5
        assert row["fp32"] - row["int8"] <= 0.2
