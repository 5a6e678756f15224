"""A whole run: what stands in its folder, what is refused, what is repeated."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Pillow

from edgekit import api, models
from edgekit.errors import CheckpointError, DataError, OutputExistsError, RecipeError, UnknownNameError
from edgekit.models import checkpoints
from edgekit.recipe import NoiseSettings, TrainRecipe, TrainSettings
from edgekit.train.journal import read_log
from edgekit.train.run import train

Quick = Callable[..., TrainSettings]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(data / f"{i}.png")
    return data


def test_what_a_run_leaves(folder: Path, quick: Quick, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = train("dsunet-n", folder, quick(), out)
    assert sorted(p.name for p in out.iterdir()) == ["last.ckpt", "log.jsonl", "model.safetensors", "recipe.yaml"]
    assert trained.path == out / "model.safetensors"
    assert trained.steps == 6
    assert trained.seconds > 0
    assert set(trained.scores) == {f"{q}_{s}" for q in ("psnr", "ssim") for s in (5, 15, 25, 50)}
    again = models.load(trained.path)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert checkpoints.metadata(trained.path)["trained_on"] == str(folder)
    content = yaml.safe_load((out / "recipe.yaml").read_text())
    recipe = TrainRecipe.model_validate(content)
    assert (recipe.model, recipe.data, recipe.train, recipe.images) == ("dsunet-n", folder, quick(), 3)


def test_scores_are_those_of_the_weights_that_are_written(folder: Path, quick: Quick, tmp_path: Path) -> None:
    # At such a rate it only gets worse: the best validation is not the last.
    settings = quick(steps=40, validate_every=2, patience=2, learning_rate=0.5, warmup=0)
    trained = train("dsunet-n", folder, settings, tmp_path / "run")
    found = [r for r in read_log(tmp_path / "run" / "log.jsonl") if "psnr_25" in r]
    means = [sum(v for k, v in r.items() if k.startswith("psnr")) for r in found]
    best = found[means.index(max(means))]
    assert best is not found[-1]
    assert trained.scores == {k: v for k, v in best.items() if k in trained.scores}


def test_what_the_first_weights_saw_is_not_forgotten(folder: Path, quick: Quick, tmp_path: Path) -> None:
    models.save(tmp_path / "w.safetensors", models.create("dsunet-n"), {"use": "any", "trained_on": "leaves"})
    trained = train("dsunet-n", folder, quick(), tmp_path / "run", weights=tmp_path / "w.safetensors")
    assert checkpoints.metadata(trained.path)["trained_on"] == f"leaves, {folder}"


def test_the_recipe_repeats_the_run(folder: Path, quick: Quick, tmp_path: Path) -> None:
    first = train("dsunet-n", folder, quick(), tmp_path / "a")
    recipe = TrainRecipe.model_validate(yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text()))
    second = train(recipe.model, recipe.data, recipe.train, tmp_path / "b", channels=recipe.channels)
    assert first.path.read_bytes() == second.path.read_bytes()


def test_weights_say_what_noise_they_were_trained_on(folder: Path, quick: Quick, tmp_path: Path) -> None:
    white = train("dsunet-n", folder, quick(), tmp_path / "white")
    assert "noise" not in checkpoints.metadata(white.path)
    noise = NoiseSettings(model="camera", grain=(0.5, 2))
    camera = train("dsunet-n", folder, quick(noise=noise), tmp_path / "camera")
    assert NoiseSettings.model_validate_json(checkpoints.metadata(camera.path)["noise"]) == noise


def test_resumed_files_are_the_same(folder: Path, quick: Quick, tmp_path: Path) -> None:
    whole = train("dsunet-n", folder, quick(), tmp_path / "whole")

    def kill(done: int, total: int, text: str = "") -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("dsunet-n", folder, quick(), tmp_path / "parts", progress=kill)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert (tmp_path / "parts" / "recipe.yaml").read_bytes() == (tmp_path / "whole" / "recipe.yaml").read_bytes()
    resumed = train("dsunet-n", folder, quick(), tmp_path / "parts", resume=True)
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_an_existing_run_is_not_overwritten(folder: Path, quick: Quick, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = train("dsunet-n", folder, quick(steps=1), out)
    before = first.path.read_bytes()
    with pytest.raises(OutputExistsError, match=r"already holds a training run \(last\.ckpt\): .*--resume.*--force"):
        train("dsunet-n", folder, quick(steps=1), out)
    assert first.path.read_bytes() == before
    # Forced, it starts over; an error before the first step leaves the old run alone.
    with pytest.raises(UnknownNameError):
        train("dsunet-x", folder, quick(steps=1), out, force=True)
    with pytest.raises(RecipeError):
        train("dsunet-n", folder, quick(steps=1, patch=38), out, force=True)
    assert first.path.read_bytes() == before
    assert train("dsunet-n", folder, quick(steps=2), out, force=True).steps == 2


def test_nothing_is_written_when_the_input_is_wrong(folder: Path, quick: Quick, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "w.pth").write_bytes(b"junk")
    for call in (
        lambda: train("dsunet-x", folder, quick(), out),
        lambda: train("dsunet-n", tmp_path / "none", quick(), out),
        lambda: train("dsunet-n", folder, quick(), out, weights=tmp_path / "w.pth"),
        lambda: train("dsunet-n", folder, quick(), out, teacher="nobody"),
        lambda: train("dsunet-n", folder, quick(freeze=("x",)), out),
        lambda: train("dsunet-n", folder, quick(loss={"l7": 1.0}), out),
    ):
        with pytest.raises((UnknownNameError, DataError, CheckpointError, RecipeError)):
            call()
        assert not out.exists()


def test_fine_tuning_starts_from_weights(folder: Path, quick: Quick, tmp_path: Path) -> None:
    first = train("dsunet-n", folder, quick(), tmp_path / "first")
    tuned = train(
        "dsunet-n", folder, quick(steps=1, learning_rate=1e-9, ema=0.0), tmp_path / "tuned", weights=first.path
    )
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(tuned.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    with pytest.raises(RecipeError, match="another starting weights"):
        train("dsunet-n", folder, quick(steps=1, learning_rate=1e-9, ema=0.0), tmp_path / "tuned", resume=True)


def test_a_larger_network_grows_out_of_a_smaller_one(folder: Path, quick: Quick, tmp_path: Path) -> None:
    small = train("dsunet-n", folder, quick(), tmp_path / "small")
    larger = {"middle": [72] * 5, "finish": 40}
    wrong = r"cannot begin as dsunet-n: middle\.3\.expand\.weight is \(72, .* in the weights, \(64, .* in the model\."
    with pytest.raises(CheckpointError, match=wrong):
        train(
            "dsunet-n",
            folder,
            quick(),
            tmp_path / "no",
            config={"middle": [72] * 3 + [64]},
            weights=small.path,
            grow=True,
        )
    with pytest.raises(RecipeError, match=r"grow needs the weights of a smaller network to begin as: name them"):
        train("dsunet-n", folder, quick(), tmp_path / "no", config=larger, grow=True)
    with pytest.raises(CheckpointError, match=r"does not fit .*; or begin as the same function, .* \(--grow\)$"):
        train("dsunet-n", folder, quick(), tmp_path / "no", config=larger, weights=small.path)
    with pytest.raises(CheckpointError, match="does not fit") as refused:
        train("dsunet-n", folder, quick(), tmp_path / "no", config={"finish": 8}, weights=small.path)
    assert "--grow" not in str(refused.value)
    with pytest.raises(CheckpointError, match=r"grow: .*last\.ckpt does not say of what size its network is; write it"):
        train("dsunet-n", folder, quick(), tmp_path / "no", weights=tmp_path / "small" / "last.ckpt", grow=True)
    assert not (tmp_path / "no").exists()
    # At a rate of next to nothing it is what it began as.
    still = quick(learning_rate=1e-9, weight_decay=0)
    grown = train("dsunet-n", folder, still, tmp_path / "run", config=larger, weights=small.path, grow=True)
    assert grown.model.config() == {**small.model.config(), **larger}
    noisy, sigma = torch.rand(1, 3, 32, 32), torch.tensor([0.1])
    with torch.inference_mode():
        torch.testing.assert_close(grown.model(noisy, sigma), small.model(noisy, sigma), rtol=0, atol=1e-4)
    # The recipe says so, and its parts grow once.
    again = api.train(recipe=tmp_path / "run" / "recipe.yaml", out=tmp_path / "again")
    assert again.path.read_bytes() == grown.path.read_bytes()
    parts = {**yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()), "parts": [{}, {"seed": 5}]}
    (tmp_path / "parts.yaml").write_text(yaml.safe_dump(parts))
    last = api.train(recipe=tmp_path / "parts.yaml", out=tmp_path / "parts")
    recipes = [yaml.safe_load((tmp_path / "parts" / f"part-{k}" / "recipe.yaml").read_text()) for k in (1, 2)]
    assert [recipe["grow"] for recipe in recipes] == [True, False]
    with torch.inference_mode():
        torch.testing.assert_close(last.model(noisy, sigma), small.model(noisy, sigma), rtol=0, atol=1e-4)


def test_weights_carry_the_terms_of_all_they_learned_from(folder: Path, quick: Quick, tmp_path: Path) -> None:
    start, teacher = tmp_path / "start.safetensors", tmp_path / "teacher.safetensors"
    models.save(start, models.create("dsunet-n"), {"licence": "non-commercial"})
    models.save(teacher, models.create("dsunet-n"))
    trained = train("dsunet-n", folder, quick(steps=1), tmp_path / "run", weights=start, teacher=teacher)
    assert checkpoints.metadata(trained.path)["licence"] == (
        f"as the owner of the images states; non-commercial; {teacher}: not stated"
    )


def test_a_checkpoint_serves_as_weights(folder: Path, quick: Quick, tmp_path: Path) -> None:
    # What the message about a NaN loss proposes.
    first = train("dsunet-n", folder, quick(), tmp_path / "first")
    from_state = models.load(tmp_path / "first" / "last.ckpt", "dsunet-n")
    for name, value in first.model.state_dict().items():
        assert torch.equal(from_state.state_dict()[name], value)


def test_a_gray_student_with_a_teacher(folder: Path, quick: Quick, tmp_path: Path) -> None:
    teacher = train("dsunet-n", folder, quick(steps=1), tmp_path / "teacher", channels=1)
    taught = train("dsunet-n", folder, quick(), tmp_path / "taught", channels=1, teacher=teacher.path)
    assert taught.model.channels == 1
    assert yaml.safe_load((tmp_path / "taught" / "recipe.yaml").read_text())["teacher"] == str(teacher.path)


def test_pairs_train(quick: Quick, tmp_path: Path) -> None:
    for i in range(3):
        clean = np.random.default_rng(i).integers(40, 200, (40, 40, 3), dtype=np.uint8)
        for side, pixels in (("clean", clean), ("noisy", clean + np.uint8(i + 5))):
            (tmp_path / "data" / side).mkdir(parents=True, exist_ok=True)
            Pillow.fromarray(pixels).save(tmp_path / "data" / side / f"{i}.png")
    trained = train("dsunet-n", tmp_path / "data", quick(), tmp_path / "run")
    assert set(trained.scores) == {"psnr", "ssim"}


def test_skipped_images_are_told(folder: Path, quick: Quick, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "bad.png").write_bytes(b"no")
    with caplog.at_level(logging.WARNING):
        train("dsunet-n", folder, quick(steps=1), tmp_path / "run")
    assert "skipped 1 of 5 images" in caplog.text


_TWO = """
from edgekit.recipe import TrainSettings
from edgekit.train.run import train
settings = TrainSettings(steps=3, batch=1, patch=32, precision="32-true", accelerator="cpu", devices=2, strategy="ddp",
                         accumulate=2, save_every=2, warmup=1)
train("dsunet-n", "data", settings, "run")
"""


@pytest.mark.timeout(300)
def test_two_processes_train_one_model(folder: Path, quick: Quick, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(_TWO)
    done = subprocess.run(
        [sys.executable, "two.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["step"] == 3
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 2
    # One process with a batch of both takes the same steps, but for the order of summation.
    train("dsunet-n", folder, quick(steps=3, batch=2, accumulate=2, ema=0.999), tmp_path / "one")
    expected = torch.load(tmp_path / "one" / "last.ckpt", weights_only=True)["model"]
    for name, value in state["model"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


def test_short_forms_and_settings_are_merged(folder: Path, quick: Quick, tmp_path: Path) -> None:
    settings = quick(steps=1).model_dump() | {"noise": {"device_share": 0.5}}
    api.train("dsunet-n", data=folder, sigma="0:25", settings=settings, out=tmp_path / "run")
    noise = TrainRecipe.model_validate(yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())).train.noise
    assert (noise.device_share, noise.sigma) == (0.5, (0.0, 25.0))
    settings["noise"] = {"model": "poisson-gaussian"}
    with pytest.raises(RecipeError, match="sigma means nothing to training on poisson-gaussian noise"):
        api.train("dsunet-n", data=folder, sigma="0:25", settings=settings, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
