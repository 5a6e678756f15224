"""Bundles and models on images of the user's own."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_bundle import write_tiny
from PIL import Image
from rich.console import Console
from smooth_folder import write_smooth

import edgekit
from edgekit import models, train
from edgekit.cli import evaluate as command
from edgekit.cli.outcome import run
from edgekit.errors import DataError, EdgekitError
from edgekit.evaluation import Evaluation, Level, Score
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.quality import psnr


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("evaluate") / "golden-tiny-tflite.edgekit")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smooth(tmp_path_factory.mktemp("photos"), 2)


def write_pairs(folder: Path, photos: Path, deviation: float) -> Path:
    """Photos and the same with noise, as noisy/ and clean/ in a folder; returns it."""
    rng = np.random.default_rng(0)
    for kind in ("noisy", "clean"):
        (folder / kind).mkdir()
    for path in photos.glob("*.png"):
        clean = np.asarray(Image.open(path).convert("RGB"))
        noisy = (clean + rng.normal(0, deviation, clean.shape)).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(clean).save(folder / "clean" / path.name)
        Image.fromarray(noisy).save(folder / "noisy" / path.name)
    return folder


@pytest.fixture(scope="module")
def pairs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), photos, 20)


def test_a_bundle_and_a_model_under_the_same_noise(bundle: Path, photos: Path) -> None:
    found = edgekit.evaluate(["dsunet-n", bundle], photos, sigma=(15, 50))
    assert found.names == ("dsunet-n", "golden-tiny-tflite.edgekit int8")
    assert (found.images, found.told, [level.sigma for level in found.levels]) == (2, "sigma", [15, 50])
    faint, strong = found.levels
    # 20 log10(255 / 15), but for what clipping takes.
    assert faint.noisy.psnr == pytest.approx(24.6, abs=0.5)
    assert strong.noisy.psnr < faint.noisy.psnr
    assert faint.found[0].psnr > faint.noisy.psnr + 5
    assert faint.found[0].ssim > faint.noisy.ssim
    assert edgekit.evaluate(bundle, photos, sigma=15).levels[0].found == faint.found[1:]
    with edgekit.open(bundle) as denoiser:
        by_hand = []
        for path in sorted(photos.glob("*.png")):
            clean = np.asarray(Image.open(path).convert("RGB"))
            noise = np.random.RandomState(0).normal(0, 15 / 255, clean.shape)
            noisy = ((clean / 255 + noise).clip(0, 1) * 255).round().astype(np.uint8)
            by_hand.append(psnr(denoiser(noisy, sigma=15), clean))
    assert faint.found[1].psnr == pytest.approx(np.mean(by_hand), abs=1e-9)


@pytest.mark.parametrize("unclipped", [False, True])
def test_it_agrees_with_how_training_measures(unclipped: bool, photos: Path) -> None:
    (level,) = edgekit.evaluate("dsunet-n", photos, sigma=25, unclipped=unclipped).levels
    images = train.open_images(photos, validation_share=0).training
    wanted = train.evaluate(models.load("dsunet-n"), images, 25, device_input=not unclipped)
    assert level.found[0].psnr == pytest.approx(wanted.psnr, abs=1e-3)


def test_pairs_are_told_what_their_noise_measures(pairs: Path) -> None:
    measured, fixed, estimated, wrong = (
        edgekit.evaluate("dsunet-n", pairs, sigma=sigma) for sigma in (None, 20, "auto", 3)
    )
    assert [found.told for found in (measured, fixed, estimated)] == ["rms", "sigma", "auto"]
    assert measured.levels[0].sigma is None
    right, by_name, bad = (found.levels[0].found[0].psnr for found in (measured, fixed, wrong))
    assert right == pytest.approx(by_name, abs=0.2)
    assert bad < right - 1
    assert estimated.levels[0].found[0].psnr > bad


@pytest.mark.parametrize(
    ("what", "settings", "told"),
    [
        ([], {}, "nothing to evaluate: name bundles or models"),
        (["dsunet-n", "dsunet-s-gray"], {}, r"gray and of colour .* \(dsunet-n: colour, dsunet-s-gray: gray\)"),
        ("dsunet-q", {}, r"unknown bundle or weights 'dsunet-q': .* \(did you mean 'dsunet-"),
        ("none.edgekit", {}, r"none\.edgekit"),
        ("dncnn-25", {}, "dncnn-25 comes without weights: name a file of them"),
        ("nosuch", {}, r"a network's file \(net\.py:make, \.pt2, \.onnx, \.keras\)"),
        ("photo.png", {}, r"unknown bundle or weights 'photo\.png'"),
        ("", {}, "unknown bundle or weights ''"),
        ("dsunet-n", {"sigma": 300}, "sigma is 300: expected levels above 0 and up to 255"),
        ("dsunet-n", {"sigma": 0}, "sigma is 0: expected levels above 0"),
        ("dsunet-n", {"model": "dsunet-n"}, "model is 'dsunet-n', but every one says itself what it is of"),
        ("dsunet-n", {"variant": "int8"}, "variant is 'int8', but there is no bundle"),
        ("dsunet-n", {"sigma": "auto"}, "sigma auto is for pairs"),
        ("dsunet-n", {"sigma": "15,25"}, "sigma is '15,25': expected levels"),
    ],
)
def test_what_cannot_be_measured(what: Any, settings: dict[str, Any], told: str, photos: Path) -> None:
    with pytest.raises(EdgekitError, match=told):
        edgekit.evaluate(what, photos, **settings)


def test_what_data_cannot_have(bundle: Path, pairs: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="takes images of 8 bits: unclipped noise is for models"):
        edgekit.evaluate(bundle, photos, unclipped=True)
    with pytest.raises(EdgekitError, match=r"sigma is 60: golden-tiny-tflite\.edgekit int8 takes 0 to 55"):
        edgekit.evaluate(["dsunet-n", bundle], photos, sigma=(25, 60))
    with pytest.raises(EdgekitError, match=r"golden-tiny-tflite\.edgekit: unknown variant 'int9'"):
        edgekit.evaluate(bundle, photos, variant="int9")
    with pytest.raises(EdgekitError, match="2 noise levels for pairs"):
        edgekit.evaluate("dsunet-n", pairs, sigma=(15, 25))
    with pytest.raises(EdgekitError, match="pairs bring 8-bit noise of their own"):
        edgekit.evaluate("dsunet-n", pairs, unclipped=True)
    with pytest.raises(DataError, match="holds no images"):
        edgekit.evaluate("dsunet-n", tmp_path)
    torch.save({}, tmp_path / "net.pth")
    with pytest.raises(EdgekitError, match=r"net\.pth does not say which model it is of: name it with --model"):
        edgekit.evaluate(tmp_path / "net.pth", photos)
    Image.new("RGB", (8, 9)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="small.png is 8x9, smaller than SSIM's window of 11"):
        edgekit.evaluate("dsunet-n", tmp_path)


def test_weights_that_do_not_say_what_they_are_of(photos: Path, tmp_path: Path) -> None:
    torch.save(models.load("dsunet-n").state_dict(), tmp_path / "net.pth")
    bare = edgekit.evaluate(tmp_path / "net.pth", photos, sigma=25, model="dsunet-n")
    assert bare.levels == edgekit.evaluate("dsunet-n", photos, sigma=25).levels


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """A network of the user's own, of other weights each time it is made."""
    pytest.importorskip("onnxscript")
    (tmp_path / "net.py").write_text("from torch import nn\ndef make():\n    return nn.Conv2d(3, 3, 1, bias=False)\n")
    return f"{tmp_path / 'net.py'}:make"


def test_weights_of_a_network_of_ones_own(factory: str, photos: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.eye(3)[..., None, None]}, tmp_path / "net.pth")
    found = edgekit.evaluate(tmp_path / "net.pth", photos, sigma=25, model=factory)
    # It gives back what it is given.
    assert found.levels[0].found[0].psnr == pytest.approx(found.levels[0].noisy.psnr, abs=1e-3)
    assert not found.notes
    with pytest.raises(EdgekitError, match=r"model is 'x\.onnx', which brings its own weights: name it in place of"):
        edgekit.evaluate(tmp_path / "net.pth", photos, model="x.onnx")


def test_a_factory_alone_is_measured_as_it_is_and_that_is_said(
    factory: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", factory, "--data", str(photos), "--sigma", "25"]) == 0
    said = capsys.readouterr().out
    assert f"note: {factory} was measured as its factory returns it" in said
    assert f"edgekit evaluate WEIGHTS.pth --model {factory}" in said


def test_gray_images_are_gray_for_colour_models_too(bundle: Path, photos: Path, tmp_path: Path) -> None:
    for path in photos.glob("*.png"):
        Image.open(path).convert("L").save(tmp_path / path.name)
    in_model, in_bundle = edgekit.evaluate(["dsunet-n", bundle], tmp_path, sigma=25).levels[0].found
    by_hand = []
    with edgekit.open(bundle) as denoiser:
        for path in sorted(tmp_path.glob("*.png")):
            clean = np.asarray(Image.open(path))
            noise = np.random.RandomState(0).normal(0, 25 / 255, (*clean.shape, 1))[..., 0]
            noisy = ((clean / 255 + noise).clip(0, 1) * 255).round().astype(np.uint8)
            by_hand.append(psnr(denoiser(noisy, sigma=25), clean))
    assert in_bundle.psnr == pytest.approx(np.mean(by_hand), abs=1e-9)
    # One noise in all three channels is hard for a model of colour noise, but for the level that it is told.
    assert in_model.psnr > 20.5 + 5


def test_a_level_beyond_what_a_bundle_takes_is_its_highest(bundle: Path, photos: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path, photos, 90)
    highest = edgekit.evaluate(bundle, tmp_path, sigma=55)
    assert highest.levels[0].sigma == 55
    for sigma in (None, "auto"):
        assert edgekit.evaluate(bundle, tmp_path, sigma=sigma).levels[0].found == highest.levels[0].found


def test_the_command(bundle: Path, pairs: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twin = shutil.copytree(bundle, bundle.parent / "[b],c" / bundle.name, dirs_exist_ok=True)
    words = ["evaluate", str(bundle), str(twin), "--data", str(photos), "--sigma", "25", "--threads", "1"]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["names"] == [str(bundle), str(twin)]
    assert found["levels"][0]["sigma"] == 25
    assert run(words) == 0
    assert "means over 2 images" in capsys.readouterr().out
    assert run(["evaluate", str(bundle), "--data", str(pairs), "--sigma", "20"]) == 0
    told = capsys.readouterr().out
    assert "told sigma 20" in told
    assert "pairs" in told
    assert run(["evaluate", str(bundle), "--data", str(photos), "--sigma", "a,b"]) == 2
    assert "--sigma a,b: expected noise levels" in capsys.readouterr().err


def test_levels_that_are_left_out_are_named(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("edgekit"), "propagate", True)
    monkeypatch.setattr(Denoiser, "sigma_range", (10.0, 40.0))
    found = edgekit.evaluate([bundle, "dsunet-n"], photos)
    assert [level.sigma for level in found.levels] == [15, 25]
    assert [r.getMessage() for r in caplog.records] == [
        "left out: sigma 5, 50; golden-tiny-tflite.edgekit int8 takes 10 to 40"
    ]
    caplog.clear()
    edgekit.evaluate(bundle, photos, sigma=15)
    assert caplog.records == []


class Screen(StringIO):
    """What a terminal is written."""

    def isatty(self) -> bool:
        return True


def shown(paths: Sequence[str], names: Sequence[str], levels: int = 4) -> list[str]:
    """What 80 columns show of an evaluation."""
    score = Score(30.125, 0.8)
    rows = tuple(Level(float(s), score, (score,) * len(paths)) for s in (5, 15, 25, 50)[:levels])
    console = Console(width=80, file=Screen(), color_system=None, highlight=False)
    command._show(console, Evaluation("photos", False, tuple(names), 2, (), False, "sigma", rows), paths)
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    # Every figure, none of them broken.
    assert sum(line.count("30.12 (0.800)") for line in lines) == levels * (len(paths) + 1)
    return lines


def test_the_table_has_short_names_and_paths_below_it() -> None:
    path = f"/somewhere/{'deep/' * 20}dsunet-s-tflite.edgekit"
    lines = shown([path, "dsunet-n"], ["dsunet-s-tflite.edgekit int8", "dsunet-n"])
    assert ["dsunet-s-tflite"] in [line.split() for line in lines]
    assert ["sigma", "noisy", "int8", "dsunet-n"] in [line.split() for line in lines]
    assert lines[-2:] == ["dsunet-s-tflite int8:", path]


def test_alike_names_get_their_folders() -> None:
    assert command._short(["a/x/n.edgekit", "b/x/n.edgekit", "c/m.onnx", "dsunet-n"]) == [
        "a/x/n",
        "b/x/n",
        "m.onnx",
        "dsunet-n",
    ]
    assert command._short(["n.edgekit", "n"]) == ["n.edgekit", "n"]


def test_names_that_leave_no_room_get_rows_or_numbers() -> None:
    long = [f"a-name-of-{c}-some-length.edgekit" for c in "abc"]
    rows = [line.split()[:2] for line in shown(long, [f"{name} int8" for name in long], levels=2)]
    assert ["a-name-of-b-some-length", "int8"] in rows
    longer = [f"{c * 60}.edgekit" for c in "abc"]
    lines = shown(longer, [f"{name} int8" for name in longer])
    assert ["sigma", "noisy", "1", "2", "3"] in [line.split() for line in lines]
    assert f"2: {longer[1]} int8" in [line.rstrip() for line in lines]
