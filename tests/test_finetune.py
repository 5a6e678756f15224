"""Fine-tuning: the new noise is learned, replay keeps the old one, and a bundle becomes a bundle that passes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("litert_torch")

from edgekit import models, noise_header, pipeline, tuning
from edgekit.bundle import reader, writer
from edgekit.cli.outcome import run
from edgekit.errors import BundleError, EdgekitError, LicenceError, OutputExistsError, RecipeError, UnknownNameError
from edgekit.models import checkpoints
from edgekit.recipe import FinetuneRecipe, NoiseSettings, Recipe, TrainSettings, make
from edgekit.runtime.check import check
from edgekit.runtime.verdict import Verdict
from edgekit.train.dead_leaves import dead_leaves
from edgekit.train.images import ImageSource, Picture, open_images
from edgekit.train.loop import fit
from edgekit.train.replay import Mixed, Replay
from edgekit.train.sampling import batches
from edgekit.tuning import Tuned, finetune

OLD = NoiseSettings(sigma=(25, 25))
# As strong as sigma 25: the level that the model is told does not tell them apart.
PEPPER = {"model": "salt-and-pepper", "density": [0.03, 0.03]}
QUICK = {"batch": 4, "patch": 32, "precision": "32-true", "accelerator": "cpu", "warmup": 5, "ema": 0.9, "seed": 1}
# With L1 the best that a beginner can do about a few wrong pixels is nothing.
LEARN = {"learning_rate": 1e-2, "loss": {"mse": 1.0}}
AUGMENT = {"saturation": 0, "gain": 0, "permute_channels": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a tiny model that has learned Gaussian noise of sigma 25."""
    folder = tmp_path_factory.mktemp("finetune")
    for name, first in (("old", 0), ("new", 20)):
        (folder / name).mkdir()
        for k in range(6):
            leaves = dead_leaves(128, np.random.default_rng(first + k), smallest=4)
            Image.fromarray(leaves).save(folder / name / f"{k}.png")
    torch.manual_seed(0)
    model = models.create("dsunet-n", widths=[8, 16], middle=[32, 32], decoder=[[16]], up_width=0)
    settings = TrainSettings.model_validate(
        {**QUICK, **LEARN, "steps": 500, "optimizer": "muon", "noise": OLD, "augment": AUGMENT}
    )
    trained = fit(model, open_images(folder / "old", patch=32), settings, folder / "run")
    models.save(folder / "base.safetensors", trained, {"licence": "CC0", "use": "any", "trained_on": "leaves"})
    return folder


def tune(place: Path, out: Path | None, **settings: Any) -> Tuned:
    train = {**QUICK, **LEARN, "steps": 450, "noise": PEPPER, "augment": AUGMENT}
    train |= settings.pop("train", {})
    given = {"model": str(place / "base.safetensors"), "data": place / "new", "replay": place / "old"}
    recipe = make(FinetuneRecipe, {**given, "replay_noise": OLD.model_dump(), "train": train, **settings})
    return finetune(recipe, out=out)


def test_replay_learns_the_new_noise_and_keeps_the_old(place: Path, tmp_path: Path) -> None:
    with_replay, without = tune(place, tmp_path / "a"), tune(place, tmp_path / "b", replay_share=0.0)
    found = [{row.which: row for row in tuned.table} for tuned in (with_replay, without)]
    assert [row.noise for row in with_replay.table] == ["salt-and-pepper", "sigma 25"]
    # Seeded: 1.6 dB, and 2.3 to 2.4 without replay, on one thread and on two, which sum in other orders.
    for table in found:
        assert table["new"].after > table["new"].before + 0.5
    kept, forgotten = (table["old"].after - table["old"].before for table in found)
    # Seeded: -0.05 to -0.07 and -1.1 to -1.3 dB.
    assert kept > -0.25
    assert forgotten < kept - 0.25
    stored = json.loads((tmp_path / "a" / "finetune.json").read_text())
    assert stored["psnr"] == [row._asdict() for row in with_replay.table]
    header = checkpoints.metadata(with_replay.path)
    assert (header["use"], header["trained_on"]) == ("owner", f"leaves, {place / 'new'}, {place / 'old'}")


def test_a_batch_has_its_share_of_old_images(place: Path) -> None:
    black, white = (np.full((40, 40, 3), value, np.uint8) for value in (0, 255))
    sources = []
    for k, image in enumerate((black, white)):
        (place / f"flat{k}").mkdir(exist_ok=True)
        for i in range(2):
            image[0, 0, 0] = 100 + i
            Image.fromarray(image).save(place / f"flat{k}" / f"{i}.png")
        sources.append(open_images(place / f"flat{k}", patch=32, validation_share=0))
    settings = TrainSettings.model_validate({**QUICK, "batch": 5, "augment": AUGMENT})
    new, old = sources
    draw = Mixed(new, settings, Replay(old, (OLD,), 0.5))
    counts = [int((draw(step).clean.mean((1, 2, 3)) > 0.5).sum()) for step in range(4)]
    assert counts == [2, 3, 2, 3]
    # Two old noises take turns: 5 of 10 images are old, and of 10 old ones 5 have each noise.
    two = Mixed(new, settings, Replay(old, (OLD, NoiseSettings(sigma=(0, 0))), 0.5))
    drawn = [two(step) for step in range(4)]
    faint = [int(((b.clean.mean((1, 2, 3)) > 0.5) & (b.sigma.flatten() == 0)).sum()) for b in drawn]
    assert (sum(faint), max(faint)) == (5, 2)
    # Several processes share them as they share any batch.
    parts = [Mixed(new, settings.model_copy(update={"batch": 1}), Replay(old, (OLD,), 0.5), r, 5)(3) for r in range(5)]
    assert torch.equal(torch.cat([part.noisy for part in parts]), draw(3).noisy)
    # Without old images it is the batch of any training.
    alone = Mixed(new, settings, Replay(old, (OLD,), 0.0))(3)
    assert torch.equal(alone.noisy, batches(new, settings)(3).noisy)


def test_old_crops_and_noise_are_not_those_of_the_new_images() -> None:
    # The same picture and the same noise, replayed twice: only the stream tells the three apart.
    picture = Picture.of("noise", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    source = ImageSource("one", (picture,), ())
    still = {"flip": False, "rotate": False, "permute_channels": 0, "saturation": 0, "gain": 0}
    known = OLD.model_copy(update={"device_share": 0.0})
    settings = TrainSettings.model_validate({**QUICK, "batch": 3, "noise": known, "augment": still})
    batch = Mixed(source, settings, Replay(source, (known, known), 2 / 3))(0)
    for found in (batch.clean, batch.noisy - batch.clean):
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert (found[one] - found[other]).abs().mean() > 0.05


def test_a_run_is_resumed_and_not_overwritten(place: Path, tmp_path: Path) -> None:
    whole = tune(place, tmp_path / "run", train={"steps": 4, "save_every": 2})
    with pytest.raises(OutputExistsError, match=r"already holds a run \(last.ckpt\): go on with it \(--resume\)"):
        tune(place, tmp_path / "run", train={"steps": 4, "save_every": 2})
    recipe = make(
        FinetuneRecipe,
        {
            "model": str(place / "base.safetensors"), "data": place / "new", "replay": place / "old",
            "replay_noise": OLD.model_dump(), "replay_share": 0.25,
            "train": {**QUICK, **LEARN, "steps": 4, "save_every": 2, "noise": PEPPER, "augment": AUGMENT},
        },
    )  # fmt: skip
    with pytest.raises(RecipeError, match="holds a run with another replay: 0.5 from"):
        finetune(recipe, out=tmp_path / "run", resume=True)
    again = finetune(recipe.model_copy(update={"replay_share": 0.5}), out=tmp_path / "run", resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_what_is_not_free_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(LicenceError, match="weights 'dsunet-s'"):
        tune(place, tmp_path, model="dsunet-s", license_clean=True)


def test_the_command_asks_for_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["finetune", "dsunet-s"]) == 2
    assert "finetune what, on which images?" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bundle(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, pruned and quantized."""
    recipe = make(
        Recipe,
        {
            "model": "dsunet-n", "weights": place / "base.safetensors", "teacher": "none", "target": "tflite",
            "tile": 64, "data": place / "old", "sigma": 25, "steps": 100, "max_drop": 1.0, "prune": 0.25,
            "pruning": {"batches": 2, "round_to": 4},
            "distillation": {"batch": 4, "patch": 32, "cache_batches": 8, "warmup": 1, "loss": "mse"},
            "quantization": {"calibration_batches": 4, "warmup": 1},
        },
    )  # fmt: skip
    (made,) = pipeline.compress(recipe, out=tmp_path_factory.mktemp("build"))
    return made.source


def test_what_weights_know_is_the_old_noise(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "pepper.safetensors"
    noise = NoiseSettings.model_validate(PEPPER)
    models.save(path, models.load(place / "base.safetensors"), {"use": "any", **noise_header.write(noise)})
    train = {**QUICK, "steps": 1, "noise": {"model": "gaussian", "sigma": [25, 25]}}
    given = {"model": str(path), "data": place / "new", "replay": place / "old", "train": train}
    tuned = finetune(make(FinetuneRecipe, given), out=tmp_path / "run")
    assert [(row.which, row.noise) for row in tuned.table] == [("new", "sigma 25"), ("old", "salt-and-pepper")]
    # The third noise finds both of them known, the last one learned first.
    train = {**QUICK, "steps": 1, "noise": {**PEPPER, "density": [0.2, 0.2]}}
    again = finetune(make(FinetuneRecipe, {**given, "model": str(tuned.path), "train": train}), out=tmp_path / "again")
    assert [row.noise for row in again.table if row.which == "old"] == ["sigma 25", "salt-and-pepper"]
    known = noise_header.known(again.path) or ()
    assert [(n.model, n.density[1], n.sigma) for n in known] == [
        ("salt-and-pepper", 0.2, (0, 55)), ("gaussian", 0.1, (25, 25)), ("salt-and-pepper", 0.03, (0, 55))
    ]  # fmt: skip
    # What was not shown again is not said to be known.
    alone = {**given, "model": str(tuned.path), "train": train, "replay_share": 0}
    (last,) = noise_header.known(finetune(make(FinetuneRecipe, alone), out=tmp_path / "alone").path) or ()
    assert last.density == (0.2, 0.2)


@pytest.mark.parametrize(
    ("new", "old", "expected"), [(True, False, ["gaussian"]), (False, True, ["salt-and-pepper"]), (True, True, [])]
)
def test_the_noise_of_pairs_has_no_name(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, new: bool, old: bool, expected: list[str]
) -> None:
    for side in ("noisy", "clean"):
        shutil.copytree(place / "old", tmp_path / "pairs" / side)
    changes = {"train": {**QUICK, "steps": 1, "noise": PEPPER}, "data": tmp_path / "pairs" if new else place / "new"}
    if old:
        changes |= {"replay": tmp_path / "pairs"}
        with pytest.raises(RecipeError, match="replay_noise means nothing to --replay .*pairs"):
            tune(place, tmp_path / "run", **changes)
        changes |= {"replay_noise": None}
    tuned = tune(place, tmp_path / "run", **changes)
    assert ("not shown again, and so forgotten: gaussian noise" in caplog.text) == old
    assert [row.noise for row in tuned.table] == [
        "its own" if new else "salt-and-pepper", "its own" if old else "sigma 25"
    ]  # fmt: skip
    known = noise_header.known(tuned.path)
    assert known is not None
    assert [noise.model for noise in known] == expected
    if not expected:
        further = {"model": str(tuned.path), "data": place / "new"}
        with pytest.raises(RecipeError, match=r"model.safetensors learned pairs, whose noise has no name"):
            finetune(make(FinetuneRecipe, further), out=tmp_path / "further")
        assert not (tmp_path / "further").exists()
        # Let go of, they are no Gaussian noise that would be forgotten, or judged.
        caplog.clear()
        further |= {"replay_share": 0, "train": {**QUICK, "steps": 1}}
        last = finetune(make(FinetuneRecipe, further), out=tmp_path / "further")
        assert "not shown again, and so forgotten: the pairs' own noise" in caplog.text
        assert {row.which for row in last.table} == {"new"}


def test_each_noise_is_known_once() -> None:
    camera = NoiseSettings(model="camera", grain=(0, 2))
    found = noise_header.merged(
        [
            camera,
            NoiseSettings(sigma=(0, 20)),
            camera.model_copy(update={"sigma": (3, 9)}),
            NoiseSettings(sigma=(5, 40)),
        ]
    )
    assert [(noise.model, noise.sigma) for noise in found] == [("camera", (0, 55)), ("gaussian", (0, 40))]
    assert noise_header.merged([camera, NoiseSettings(model="camera")])[1].grain == (0, 1)


def test_replayed_noises_are_one_or_a_list() -> None:
    given = {"model": "dsunet-n", "data": "photos"}
    for noises, expected in (
        ({"model": "jpeg"}, ["jpeg"]),
        ([{"model": "jpeg"}, {"sigma": [0, 9]}], ["jpeg", "gaussian"]),
        (None, []),
    ):
        found = make(FinetuneRecipe, {**given, "replay_noise": noises}).replay_noise
        assert [noise.model for noise in found] == expected
    with pytest.raises(RecipeError, match="replay_noise"):
        make(FinetuneRecipe, {**given, "replay_noise": [{"model": "jpeg", "smear": 2}]})


def test_a_tuning_of_what_was_tuned_has_a_folder_of_its_own(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"steps": 1, "save_every": 1}
    first = tune(place, None, train=settings)
    assert first.path == Path("runs/base-tuned/model.safetensors")
    shutil.copy(first.path, "runs/base-tuned/base.safetensors")
    for _ in range(2):
        last = tune(place, None, train=settings, model="runs/base-tuned/base.safetensors")
        assert last.path == Path("runs/base-tuned-2/model.safetensors")
        shutil.rmtree("runs/base-tuned-2")
    recipe = make(FinetuneRecipe, {"model": str(first.path), "data": place / "new"})
    with pytest.raises(
        RecipeError, match=r"model.safetensors lies in runs.base-tuned, where the new run would replace"
    ):
        finetune(recipe, out=Path("runs/base-tuned"), force=True)
    assert first.path.exists()


def test_a_bundle_becomes_a_bundle_that_passes(place: Path, bundle: Path, tmp_path: Path) -> None:
    train = {**QUICK, **LEARN, "steps": 60, "noise": PEPPER, "augment": AUGMENT}
    settings = {"model": str(bundle), "data": place / "new", "replay": place / "old", "train": train}
    settings["quantization"] = {"steps": 40}
    tuned = finetune(make(FinetuneRecipe, settings), out=tmp_path / "run")
    assert tuned.bundle is not None
    made = tuned.bundle.manifest.recipe["quantization"]
    # The rest is as the old bundle was made.
    assert (made["steps"], made["calibration_batches"]) == (40, 4)
    assert tuned.bundle.source == tmp_path / "run" / "dsunet-n-tflite.edgekit"
    # It is the pruned network that goes on.
    with reader.read(bundle) as old:
        assert tuned.bundle.manifest.model.parameters == old.manifest.model.parameters
        assert old.manifest.model.parameters < old.manifest.model.original_parameters
    assert [stage["stage"] for stage in tuned.bundle.manifest.stages] == ["original", "quantize"]
    assert tuned.bundle.manifest.recipe["finetune"]["replay_share"] == 0.5
    # Judged on tiles of both noises, those of the new at levels of their own.
    golden = tuned.bundle.golden()
    at = golden.sigma == 25
    assert 0 < at.sum() < len(at)
    assert [(row.which, row.noise) for row in tuned.table] == [("new", "salt-and-pepper"), ("old", "sigma 25")]
    assert tuned.bundle.manifest.licences["use"] == "owner"
    verdict = check(tuned.bundle.folder)
    assert verdict.passed, verdict.reasons
    card = (tuned.bundle.folder / "card.md").read_text()
    assert "- made for noise: salt-and-pepper and gaussian, sigma" in card
    # And again.
    assert pipeline.WEIGHTS in tuned.bundle.manifest.files
    # Both files of weights know the noise that they learned last, and what the old bundle was trained on.
    short = f"{place.name}/old"
    trained_on = (f"leaves, {short}, {place.name}/new", f"leaves, {short}, {place / 'new'}, {place / 'old'}")
    for path in (tuned.path, tuned.bundle.path(pipeline.WEIGHTS)):
        known = noise_header.read(path)
        assert known is not None
        assert (known.model, known.density) == ("salt-and-pepper", (0.03, 0.03))
        all_known = noise_header.known(path) or ()
        assert [(n.model, n.sigma[1]) for n in all_known] == [("salt-and-pepper", 55), ("gaussian", 25)]
        assert checkpoints.metadata(path)["trained_on"] == trained_on[path == tuned.path]
    # The same line given again finds all done, and leaves it.
    before = {path: path.stat().st_mtime_ns for path in tuned.bundle.folder.iterdir()}
    told: list[Verdict] = []
    again = finetune(make(FinetuneRecipe, settings), out=tmp_path / "run", resume=True, on_verdict=told.append)
    assert again.bundle is not None
    assert again.bundle.source == tuned.bundle.source
    assert again.table == tuned.table
    assert [verdict.passed for verdict in told] == [True]
    assert {path: path.stat().st_mtime_ns for path in tuned.bundle.folder.iterdir()} == before
    # What only the bundle would show is refused, and the run's recipe stays as it is.
    stated = (tmp_path / "run" / "recipe.yaml").read_bytes()
    other = make(FinetuneRecipe, {**settings, "quantization": {"steps": 41}})
    with pytest.raises(RecipeError, match=r"run holds a run with another quantization: .*40.*, now .*41"):
        finetune(other, out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == stated


def test_quantization_sees_the_old_noise_by_its_share(place: Path, bundle: Path, tmp_path: Path) -> None:
    given = {"model": str(bundle), "data": place / "new", "replay": place / "old", "replay_share": 0.25}
    recipe = make(FinetuneRecipe, {**given, "train": {**QUICK, "noise": PEPPER}})
    start = tuning._start(recipe)
    assert start.recipe is not None
    _, _, images = tuning._images(recipe, start, tuning._again(start, start.recipe, recipe, tmp_path / "weights"))
    assert images is not None
    # The old bundle's batches are of 4, and its noise is of one level, which pepper never has to the bit.
    drawn = [images.batches(step) for step in range(3)]
    assert [int(torch.isclose(batch.sigma, torch.tensor(25 / 255)).sum()) for batch in drawn] == [1, 1, 1]
    assert {len(batch.sigma) for batch in drawn} == {4}


def test_a_bundle_that_is_in_the_way_is_found_before_training(place: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "dsunet-n-tflite.edgekit").mkdir()
    given = {"model": str(bundle), "data": place / "new", "train": {**QUICK, "steps": 1}}
    with pytest.raises(OutputExistsError, match=r"dsunet-n-tflite.edgekit exists: give --force to replace it"):
        finetune(make(FinetuneRecipe, given), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dsunet-n-tflite.edgekit"]


def test_a_bundle_that_failed_is_tuned_with_a_word(
    place: Path, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with reader.read(bundle) as old:
        names = [pipeline.WEIGHTS, *(name for v in old.manifest.variants for name in v.files)]
        files = {name: old.path(name) for name in names}
        golden = old.golden()
        writer.write(tmp_path / "bad.edgekit", old.manifest, files, replace(golden, host=255 - golden.host))
    (tmp_path / "run" / "dsunet-n-tflite.edgekit").mkdir(parents=True)
    for source, failed in ((bundle, False), (tmp_path / "bad.edgekit", True)):
        given = {"model": str(source), "data": place / "new", "train": {**QUICK, "steps": 1}}
        with pytest.raises(OutputExistsError):
            finetune(make(FinetuneRecipe, given), out=tmp_path / "run")
        assert (f"{source} failed its verdict" in caplog.text) == failed


def test_flags_that_would_do_nothing_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs" / "noisy").mkdir(parents=True)
    for words, expected in (
        (
            ["--data", str(place / "new"), "--noise", "jpeg", "--sigma", "5:10"],
            "--sigma 5:10 means nothing to jpeg noise",
        ),
        (["--data", str(tmp_path / "pairs"), "--noise", "jpeg"], "its pairs bring their own noise"),
    ):
        assert run(["finetune", "dsunet-n", *words]) == 2
        assert expected in capsys.readouterr().err


def test_an_unknown_name_may_have_been_meant_for_a_bundle_or_a_model(tmp_path: Path) -> None:
    for name, hint in (("nothere", ""), ("dsunet-r", "did you mean 'dsunet-")):
        recipe = make(FinetuneRecipe, {"model": name, "data": tmp_path})
        told = rf"unknown bundle or model '{name}': expected one of a bundle \(.edgekit, .zip\), .*, unet.*{hint}"
        with pytest.raises(UnknownNameError, match=told):
            finetune(recipe, out=tmp_path / "run")


def test_a_bundle_without_weights_says_what_to_do(bundle: Path, tmp_path: Path) -> None:
    with reader.read(bundle) as old:
        files = {n: old.path(n) for v in old.manifest.variants for n in v.files}
        writer.write(tmp_path / "bare.edgekit", old.manifest, files, old.golden())
    recipe = make(FinetuneRecipe, {"model": str(tmp_path / "bare.edgekit"), "data": tmp_path})
    with pytest.raises(BundleError, match=r"holds no weights.safetensors to go on from: compress it again"):
        finetune(recipe, out=tmp_path / "run")


def test_a_run_in_a_file_or_without_new_images_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"run is a file: name a folder for the run \(--out\)"):
        tune(place, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"
    with pytest.raises(RecipeError, match="replay_share is '?1"):
        make(FinetuneRecipe, {"model": "dsunet-s", "data": place / "new", "replay_share": 1})


def test_what_belongs_to_training_alone_is_refused(place: Path) -> None:
    given = {"model": "dsunet-s", "data": place / "new", "train": {"self_supervised": "neighbor2neighbor"}}
    with pytest.raises(RecipeError, match="self_supervised belongs to edgekit train"):
        make(FinetuneRecipe, given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"model": "x.pth"}, r"x\.pth does not say which model it is of: edgekit finetune MODEL --weights x\.pth"),
        ({"model": "ffdnet-color"}, "ffdnet-color comes without weights: name the file .* --weights FILE"),
        ({"model": "dsunet-n", "weights": "dsunet-s"}, "dsunet-s holds weights of dsunet-s, not of dsunet-n"),
        ({"model": "dsunet-n", "train": {"validation_share": 0}}, "validation_share is 0: finetune measures"),
    ],
)
def test_starts_that_are_none(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(models.create("dsunet-n").state_dict(), "x.pth")
    with pytest.raises(EdgekitError, match=expected):
        finetune(make(FinetuneRecipe, {"data": place / "new", **given}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_brings_its_own_weights(place: Path, tmp_path: Path) -> None:
    given = {"model": str(place / "base.safetensors"), "weights": "dsunet-s", "data": place / "new"}
    with pytest.raises(RecipeError, match=r"weights 'dsunet-s': .*base.safetensors brings its own"):
        finetune(make(FinetuneRecipe, given), out=tmp_path / "run")
