"""The main job on a tiny network: the bundle it writes, resuming, and what it refuses before it starts."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from smooth_folder import write_smooth

pytest.importorskip("litert_torch")

from edgekit import noise_header, pipeline
from edgekit.bundle import reader
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import Sensitivity
from edgekit.bundle.reader import Bundle
from edgekit.compress.evaluate import NoisyTiles, evaluate
from edgekit.errors import CheckpointError, DataError, ExportError, OutputExistsError, RecipeError, UnknownNameError
from edgekit.models import checkpoints, create
from edgekit.recipe import NoiseSettings, Recipe, load_recipe, make
from edgekit.runtime.check import _whole_tile, check, portable_outputs, run_tiles
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.engines.litert import LiteRTEngine
from edgekit.stage_data import open_stage_data
from edgekit.targets import registry as targets
from edgekit.targets.tflite import TFLite
from edgekit.train.images import open_images

SMALL: dict[str, object] = {
    "prune": 0.25,
    "pruning": {"batches": 2},
    "distillation": {"batch": 2, "patch": 32, "cache_batches": 2, "save_every": 2, "warmup": 1},
    "quantization": {"calibration_batches": 1, "save_every": 2, "warmup": 1},
}


class StoppedError(Exception):
    """Stands for a killed process."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create("dsunet-n", middle=[64])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.05)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoints.save(path, model, {"licence": "none needed"})
    return path


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four smooth images; the built-in set takes seconds to make."""
    folder = write_smooth(tmp_path_factory.mktemp("images"))
    SMALL["data"] = folder
    return folder


def recipe(weights: Path, **changes: object) -> Recipe:
    settings = {"weights": weights, "model": "dsunet-n", "teacher": "none", "target": "tflite", "tile": 64, "steps": 15}
    return load_recipe(None, **{**settings, **SMALL, **changes})


def stop_at(stage: str, step: int) -> pipeline.Progress:
    def progress(name: str, done: int, total: int, text: str = "") -> None:
        # Of quantize the steps of QAT, not what each tensor costs before.
        if name == stage and done == step and "costs" not in text:
            raise StoppedError

    return progress


@pytest.fixture(scope="module")
def bundle(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return pipeline.compress(recipe(weights), out=tmp_path_factory.mktemp("whole"))[0]


def model_files(bundle: Bundle) -> dict[str, str]:
    return {name: digest for name, digest in bundle.manifest.files.items() if name.endswith(".tflite")}


def test_every_stage_leaves_its_record(bundle: Bundle) -> None:
    stages = bundle.manifest.stages
    assert [stage["stage"] for stage in stages] == ["original", "prune", "distill", "quantize"]
    for stage in stages:
        assert set(stage["db_after"]) == {"5", "15", "25", "50"}
    # The next stage starts where the last one ended.
    for one, following in zip(stages[1:], stages[2:], strict=False):
        assert following["db_before"] == pytest.approx(one["db_after"])


def test_pruning_shows_in_the_exported_file(bundle: Bundle) -> None:
    facts = bundle.manifest.model
    exported = sum(layer.macs for layer in bundle.manifest.layers) / bundle.manifest.tile**2
    assert exported == pytest.approx(facts.macs_per_pixel, rel=1e-3)
    assert exported <= 0.8 * facts.original_macs_per_pixel


def test_bundle_states_its_recipe_licences_and_integers(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.recipe["tile"] == 64
    assert manifest.licences["weights"] == "none needed"
    assert manifest.licences["data"] == "as the owner of the images states"
    assert {layer.dtype for layer in manifest.layers} == {"int8"}
    assert {item.kind for item in manifest.sensitivity} == {"activations", "weights"}
    assert {layer.name for layer in manifest.layers} == {i.name for i in manifest.sensitivity if i.kind == "weights"}
    assert manifest.model.original_bytes == 4 * manifest.model.original_parameters


def test_golden_tiles_hold_every_noise_level(bundle: Bundle) -> None:
    golden = bundle.golden()
    assert golden.levels() == (5.0, 15.0, 25.0, 50.0)
    assert golden.kernels == "xnnpack"


def test_a_device_without_xnnpack_can_be_told_that_the_file_is_whole(bundle: Bundle) -> None:
    golden, (default, *_) = bundle.golden(), bundle.manifest.variants
    assert golden.portable is not None
    assert golden.portable_at is not None
    again = portable_outputs(bundle, default, golden.noisy[golden.portable_at], golden.sigma[golden.portable_at])
    np.testing.assert_array_equal(again, golden.portable)


def test_nothing_but_the_bundle_is_left(bundle: Bundle) -> None:
    assert [entry.name for entry in bundle.source.parent.iterdir()] == [bundle.source.name]


@pytest.mark.parametrize("stage", ["distill", "quantize"])
def test_a_killed_run_resumes_to_the_same_model_files(
    bundle: Bundle, weights: Path, tmp_path: Path, stage: str
) -> None:
    with pytest.raises(StoppedError):
        pipeline.compress(recipe(weights), out=tmp_path, progress=stop_at(stage, 2))
    assert not list(tmp_path.glob("*.edgekit"))
    (resumed,) = pipeline.compress(recipe(weights), out=tmp_path, resume=True)
    assert model_files(resumed) == model_files(bundle)


def test_resuming_with_other_settings_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        pipeline.compress(recipe(weights), out=tmp_path, progress=stop_at("original", 0))
    with pytest.raises(RecipeError, match=r"other settings \(seed: 0 then, 1 now\)"):
        pipeline.compress(recipe(weights, seed=1), out=tmp_path, resume=True)


def test_resuming_with_other_images_is_refused(weights: Path, data: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(data, images)
    with pytest.raises(StoppedError):
        pipeline.compress(recipe(weights, data=images), out=tmp_path, progress=stop_at("distill", 2))
    (images / "3.png").unlink()
    with pytest.raises(RecipeError, match=r"other settings \(inputs\.images' digest"):
        pipeline.compress(recipe(weights, data=images), out=tmp_path, resume=True)


def test_a_run_that_was_killed_while_it_exported_goes_on(weights: Path, tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(StoppedError):
        pipeline.compress(recipe(weights), out=tmp_path, progress=stop_at("export", 1))
    (resumed,) = pipeline.compress(recipe(weights), out=tmp_path, resume=True)
    assert model_files(resumed) == model_files(bundle)


def test_an_unfinished_run_is_thrown_away_only_when_asked(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        pipeline.compress(recipe(weights), out=tmp_path, progress=stop_at("distill", 2))
    (work,) = tmp_path.iterdir()
    left = {path.name: path.read_bytes() for path in work.iterdir()}
    with pytest.raises(OutputExistsError, match="unfinished run: go on with --resume, or throw it away with --force"):
        pipeline.compress(recipe(weights), out=tmp_path)
    assert {path.name: path.read_bytes() for path in work.iterdir()} == left
    with pytest.raises(StoppedError):
        pipeline.compress(recipe(weights), out=tmp_path, force=True, progress=stop_at("original", 0))
    assert [path.name for path in work.iterdir()] == ["recipe.json"]


def test_a_failure_says_where_finished_stages_are(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ExportError("no such operator")

    monkeypatch.setattr(targets.get("tflite"), "lower", fail, raising=False)
    monkeypatch.setattr(logging.getLogger("edgekit"), "propagate", True)
    with pytest.raises(ExportError, match="no such operator"):
        pipeline.compress(recipe(weights), out=tmp_path)
    (work,) = tmp_path.iterdir()
    assert f"finished stages are kept in {work}: --resume goes on there, --force starts over" in caplog.text


def test_layers_stay_in_float_where_the_budget_would_be_exceeded(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = pipeline.quantize

    def lossy(model: Any, scheme: Any, *rest: Any, **named: Any) -> Any:
        program, record = real(model, scheme, *rest, **named)
        # The network is next to the identity, where integers cost nothing: let them cost 1 dB until a layer is float.
        return program, record if scheme.wide else replace(
            record, db_after={k: v - 1 for k, v in record.db_before.items()}
        )

    cost = Sensitivity("middle.0.expand", "activations", {"5": 0.9}, "why not")
    cheap = Sensitivity("head", "activations", {"5": 0.0}, "")
    monkeypatch.setattr(pipeline, "quantize", lossy)
    monkeypatch.setattr(pipeline, "sensitivity", lambda *_: (cost, cheap))
    monkeypatch.setattr(pipeline, "MIN_INT8_SHARE", 0.5)
    monkeypatch.setattr(logging.getLogger("edgekit"), "propagate", True)
    (bundle,) = pipeline.compress(recipe(weights, max_drop=0.5, steps=0, prune=0), out=tmp_path)
    stage = bundle.manifest.stages[-1]
    told = "middle.0.expand, middle.0.project in float (the integers between them alone cost 0.90 dB, why not)"
    assert told in stage["what"]
    assert "ms a tile here" in stage["what"]
    assert stage["details"]["wide_ms"] >= 0
    assert told in caplog.text
    assert {layer.name for layer in bundle.manifest.layers if layer.dtype == "float32"} == set(stage["details"]["wide"])
    monkeypatch.setattr(pipeline, "MIN_INT8_SHARE", 0.999)
    assert [item.name for item in bundle.manifest.sensitivity] == ["head"]  # what is not rounded costs nothing
    (other,) = pipeline.compress(recipe(weights, max_drop=0.5, steps=0, prune=0), out=tmp_path / "other")
    stage = other.manifest.stages[-1]
    assert stage["what"].endswith(
        "; 0.50 dB above --max-drop on held-out tiles, which no more layers in float would mend"
    )
    assert "wide" not in stage["details"]


def test_layers_stay_in_float_where_the_recipe_says(weights: Path, tmp_path: Path) -> None:
    names = ["middle.0.expand", "middle.0.project"]
    asked = recipe(weights, steps=0, prune=0, quantization={"wide": names})
    (bundle,) = pipeline.compress(asked, out=tmp_path)
    stage = bundle.manifest.stages[-1]
    assert "middle.0.expand, middle.0.project in float, as the recipe says" in stage["what"]
    assert [layer.name for layer in bundle.manifest.layers if layer.dtype == "float32"] == names
    assert stage["details"]["wide_ms"] >= 0
    # What is not rounded costs nothing.
    told = {(item.kind, item.name) for item in bundle.manifest.sensitivity}
    assert {("activations", "middle.0.depthwise"), ("weights", "middle.0.depthwise")} <= told
    assert not told & {("activations", "middle.0.expand"), *(("weights", name) for name in names)}
    with pytest.raises(RecipeError, match="edgekit's own integers, and precision 'fp16' makes none: leave it out"):
        pipeline.compress(recipe(weights, precision="fp16", quantization={"wide": names}), out=tmp_path / "other")
    with pytest.raises(UnknownNameError, match=r"unknown layer in quantization.wide 'middle.0.expnd'.* 'middle.0.exp"):
        pipeline.compress(recipe(weights, quantization={"wide": ["middle.0.expnd"]}), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_teacher_may_be_a_network_of_another_library(tmp_path: Path) -> None:
    teacher = from_a_file(tmp_path)
    _, original, taught = pipeline._prepare(Recipe(target="tflite", teacher=str(teacher)))
    assert taught is not None
    assert (original.arch, taught.channels) == ("dsunet", 3)


def test_figures_stay_within_the_range_of_noise(weights: Path) -> None:
    assert open_stage_data(recipe(weights, sigma="0:20"), 3).sigmas == (5, 15)
    for sigma, level in (("0:4.6", 4.6), ("12.5", 12.5), ("0:3", 3.0)):
        images = open_stage_data(recipe(weights, sigma=sigma), 3)
        assert images.sigmas == (level,)
        assert images.golden.sigma.tolist() == [np.float32(level)] * len(images.golden.clean)


def test_small_images_are_held_out_until_there_are_two_tiles(weights: Path, tmp_path: Path) -> None:
    for k in range(8):
        pixels = np.random.default_rng(k).integers(0, 256, (100, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    images = open_stage_data(recipe(weights, data=tmp_path), 3)
    assert len(images.tiles) == 1
    judged = {tile.tobytes() for tile in images.golden.clean}
    assert len(judged) == 1
    assert images.tiles[0].tobytes() not in judged


def test_what_judges_was_never_trained_on(weights: Path, data: Path) -> None:
    images = open_stage_data(recipe(weights), 3)
    source = open_images(data, patch=32)
    shown = {tile.tobytes() for tile in (*images.tiles, *images.golden.clean)}
    assert len(shown) == len(images.tiles) + len(set(map(bytes, images.golden.clean)))
    for picture in source.training:
        views = np.lib.stride_tricks.sliding_window_view(picture.pixels()[0], (96, 96, 3))[:, :, 0]
        assert not shown & {views[r, c].tobytes() for r in range(views.shape[0]) for c in range(0, views.shape[1], 8)}


def test_another_noise_is_what_every_stage_sees(weights: Path) -> None:
    sensor = {"model": "poisson-gaussian", "shot": (0.01, 0.01), "read": (4.0, 4.0)}
    images = open_stage_data(recipe(weights, noise=sensor), 3)
    assert isinstance(images.tiles, NoisyTiles)
    for clean, noisy, sigma in (images.tiles, (images.golden.clean, images.golden.noisy, images.golden.sigma)):
        for one, other, told in zip(clean, noisy, sigma, strict=True):
            expected = 255 * np.sqrt(np.mean(0.01 * one / 255) + (4 / 255) ** 2)
            assert told == pytest.approx(expected, rel=0.05)
            assert np.std(other.astype(float) - one) == pytest.approx(expected, rel=0.15)  # some of it is clipped
    batch = images.batches(0)
    spread = (batch.noisy - batch.clean).flatten(1).std(1)
    torch.testing.assert_close(spread, batch.sigma, rtol=0.2, atol=0)


def test_a_model_that_is_none_is_said_at_the_start(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for given, expected in ((weights, 1), (Path("dsunet-n"), 0)):
        caplog.clear()
        with pytest.raises(StoppedError):
            pipeline.compress(recipe(given), out=tmp_path, progress=stop_at("original", 1), force=True)
        said = [record.getMessage() for record in caplog.records if "makes its images worse" in record.getMessage()]
        assert len(said) == expected
        assert all("expect a FAIL at the end. Train it first (edgekit train)" in text for text in said)


def test_pairs_are_judged_on_their_own_noise(weights: Path, data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k, path in enumerate(sorted(data.iterdir())):
        clean = np.asarray(Image.open(path))
        for side, image in (
            ("clean", clean),
            ("noisy", np.clip(clean + rng.normal(0, 5 + 5 * k, clean.shape), 0, 255)),
        ):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / side / path.name)
    settings = pipeline.plan(recipe(weights, data=tmp_path))[0].settings
    assert settings["noise"] == "the pairs' own"
    assert settings["data"] == f"{tmp_path} ({len(list(data.iterdir()))} images)"
    images = open_stage_data(recipe(weights, data=tmp_path), 3)
    assert isinstance(images.tiles, NoisyTiles)
    error = images.golden.noisy.astype(float) - images.golden.clean
    np.testing.assert_allclose(images.golden.sigma, np.sqrt((error**2).mean((1, 2, 3))), rtol=1e-6)
    assert list(evaluate(create("dsunet-n"), images.tiles)) == [round(float(images.tiles.sigma.mean()), 1)]


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"sigma": (0, 20)}, "noise.sigma 0:20 against sigma: give sigma alone"),
        ({"device_share": 0.5}, "noise.device_share is 0.5: a device sees 8 bits; leave it out"),
    ],
)
def test_noise_that_contradicts_the_recipe(weights: Path, noise: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(weights, noise=noise)


def test_the_bundle_keeps_no_folder_of_its_maker(bundle: Bundle, data: Path) -> None:
    assert bundle.manifest.recipe["data"] == data.name
    assert str(data.parent) not in (bundle.folder / "manifest.json").read_text()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    for name, expected in (("dsunet-m", "dsunet-m"), ("ffdnet-gray", "ffdnet-gray")):
        checkpoints.save(path, create(name))
        with pytest.raises(CheckpointError, match=rf"mine.safetensors holds weights of {expected}, not of dsunet-n: "):
            pipeline.plan(recipe(path))


def test_a_dry_run_refuses_what_a_run_would(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        pipeline.plan(recipe(weights, data=tmp_path / "none"))
    with pytest.raises(RecipeError, match="--tile 64"):
        pipeline.plan(recipe(weights, tile=66))
    crossed = {"min": (1, 3, 96, 96), "opt": (1, 3, 64, 64), "max": (1, 3, 96, 96)}
    with pytest.raises(RecipeError, match=r"shape_profile is .* \[1, 3, 64, 64\] \(one tile\) within; mend it"):
        pipeline.plan(recipe(weights, target="tensorrt", shape_profile=crossed))
    around = {"min": (1, 3, 32, 32), "max": (4, 3, 96, 96)}
    assert pipeline.plan(recipe(weights, target="tensorrt", shape_profile=around))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="empty"):
        pipeline.plan(recipe(weights, data=empty))
    (tmp_path / "dsunet-n-tflite.edgekit").mkdir()
    with pytest.raises(OutputExistsError, match="--force"):
        pipeline.plan(recipe(weights), out=tmp_path)
    assert pipeline.plan(recipe(weights), out=tmp_path, force=True)


def test_force_replaces_nothing_but_a_bundle_and_says_so_first(weights: Path, tmp_path: Path) -> None:
    mine = tmp_path / "dsunet-n-tflite.edgekit"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years")
    with pytest.raises(OutputExistsError, match="is no bundle"):
        pipeline.compress(recipe(weights), out=tmp_path, force=True, progress=stop_at("original", 0))
    assert (mine / "thesis.tex").read_text() == "years"


def test_a_file_in_the_place_of_the_folder_is_named_and_kept(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "build"
    out.write_text("mine")
    for begin in (pipeline.compress, pipeline.plan):
        with pytest.raises(OutputExistsError, match=r"build is a file: name a folder for the run \(--out\)"):
            begin(recipe(weights), out=out)
    assert out.read_text() == "mine"


def test_an_existing_bundle_is_kept(bundle: Bundle, weights: Path) -> None:
    with pytest.raises(OutputExistsError, match="--force"):
        pipeline.compress(recipe(weights), out=bundle.source.parent)
    assert reader.read(bundle.source).manifest == bundle.manifest


@pytest.mark.parametrize(("tile", "fix"), [(66, "--tile 64"), (71, "--tile 72")])
def test_a_tile_that_does_not_fit_names_one_that_does(weights: Path, tmp_path: Path, tile: int, fix: str) -> None:
    with pytest.raises(RecipeError, match=fix):
        pipeline.compress(recipe(weights, tile=tile), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_target(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown target 'coreml'"):
        pipeline.compress(recipe(weights, target="coreml"), out=tmp_path)


def test_float_precision_has_no_quantize_stage(weights: Path) -> None:
    stages = [stage.stage for stage in pipeline.plan(recipe(weights, precision="fp16"))]
    assert stages == ["original", "prune", "distill", "export", "check"]


@pytest.mark.parametrize(("name", "pruned"), [("dsunet-n", False), ("dsunet-s", True)])
def test_a_small_network_is_not_pruned_unless_told(name: str, pruned: bool) -> None:
    stages = [stage.stage for stage in pipeline.plan(load_recipe(model=name, target="tflite"))]
    assert ("prune" in stages) == pruned
    told = load_recipe(model=name, target="tflite", prune=0.0 if pruned else 0.1)
    assert ("prune" in [stage.stage for stage in pipeline.plan(told)]) != pruned


@pytest.mark.parametrize(
    ("changes", "clean_weight"),
    [
        ({"data": None}, 0.25),
        # A user's own images are worth learning from.
        ({}, 0.5),
        ({"data": None, "teacher": "none"}, 0.5),
        ({"data": None, "prune": 0.0}, 0.5),
        ({"data": None, "distillation": {"clean_weight": 0.3}}, 0.3),
        ({"data": None, "distillation": {"output_weight": 0.9}}, 0.5),
    ],
    ids=str,
)
def test_on_the_built_in_images_recovery_imitates_the_original_rather(
    weights: Path, changes: dict[str, Any], clean_weight: float
) -> None:
    made = recipe(weights, **{"teacher": "original", **changes})
    settled = pipeline._settled(made, create("dsunet-n")).distillation
    assert settled.clean_weight == clean_weight
    assert settled.output_weight == (0.75 if clean_weight == 0.25 else made.distillation.output_weight)


def test_weights_are_compressed_on_the_noise_they_were_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.safetensors"
    trained_on = NoiseSettings(model="camera", grain=(0.5, 2), sigma=(3, 9), device_share=0.25)
    checkpoints.save(path, create("dsunet-n"), noise_header.write(trained_on))
    # All of it, so that it means the same when a default has changed.
    assert {"shot", "jpeg_share", "level"} <= json.loads(checkpoints.metadata(path)["noise"]).keys()

    def noise(**changes: object) -> object:
        return pipeline.plan(recipe(path, **changes))[0].settings["noise"]

    assert noise() == "camera"
    assert noise(noise={"model": "jpeg"}) == "jpeg"
    assert noise(noise={}) == "gaussian"
    settled = pipeline._settled(recipe(path), create("dsunet-n")).noise
    assert settled == trained_on.model_copy(update={"sigma": NoiseSettings().sigma, "device_share": 1.0})
    # It would forget the others.
    both = (trained_on, NoiseSettings(sigma=(0, 20)))
    checkpoints.save(path, create("dsunet-n"), noise_header.write(trained_on, both))
    assert noise() == "camera"
    assert "mine.safetensors knows camera and gaussian noise; this run is for the first alone" in caplog.text
    checkpoints.save(path, create("dsunet-n"), {"noise": '{"model": "camera", "smear": 2}'})
    with pytest.raises(
        CheckpointError, match=r'mine.safetensors says .* the noise \{"model": .*give noise in a recipe'
    ):
        noise()
    assert noise(noise={"model": "jpeg"}) == "jpeg"


def test_the_bundle_states_the_share_that_was_chosen(weights: Path, tmp_path: Path) -> None:
    (made,) = pipeline.compress(recipe(weights, prune=None, precision="fp32", steps=0), out=tmp_path)
    assert made.manifest.recipe["prune"] == 0
    assert made.manifest.model.macs_per_pixel == made.manifest.model.original_macs_per_pixel


def test_steps_are_shared_between_the_trainings(weights: Path) -> None:
    _, distillation, quantization = pipeline.settings_of(recipe(weights, steps=90))
    assert (distillation.steps, quantization.steps) == (72, 18)


def from_a_file(folder: Path) -> Path:
    """A user's own network that ends as autoencoders do: upsampled, activated, in a sigmoid."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    stored = {
        "down.weight": rng.normal(0, 0.3, (16, 3, 2, 2)),
        "up.weight": rng.normal(0, 0.3, (16, 8, 2, 2)),
        "last.weight": rng.normal(0, 0.3, (3, 8, 3, 3)),
    }
    nodes = [
        helper.make_node("Conv", ["noisy", "down.weight"], ["a"], strides=[2, 2]),
        helper.make_node("ConvTranspose", ["a", "up.weight"], ["b"], strides=[2, 2]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "last.weight"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["d"], ["clean"]),
    ]
    images = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, "H", "W"]) for n in ("noisy", "clean")]
    weights = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "net", images[:1], images[1:], weights)
    path = folder / "autoencoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


def test_a_network_from_a_file_ends_in_a_bundle_of_integers(tmp_path: Path, data: Path) -> None:
    changes = {
        "model": str(from_a_file(tmp_path)),
        "data": data,
        "prune": 0,
        "steps": 0,
        "tile": 64,
        "target": "tflite",
    }
    (bundle,) = pipeline.compress(make(Recipe, changes), out=tmp_path)
    assert bundle.manifest.name == "autoencoder"
    assert bundle.manifest.model.arch == "graph"
    assert {layer.dtype for layer in bundle.manifest.layers} == {"int8"}
    clean = bundle.manifest.variants[0].outputs[0]
    assert (clean.scale, clean.zero_point) == (pytest.approx(1 / 255), -128)
    # Random weights are no denoiser, but the integers must be those of the float network.
    verdict = check(bundle.folder)
    assert abs(verdict.total.quantization_drop) < 1


def test_weights_beside_a_network_from_a_file_are_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(RecipeError, match="brings its own; leave --weights out"):
        pipeline.plan(make(Recipe, {"model": str(from_a_file(tmp_path)), "weights": weights, "target": "tflite"}))


def test_a_converter_that_writes_another_network_is_found_out(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TFLite.lower

    def lower(self: TFLite, model: Any, *rest: Any, **options: Any) -> Any:
        other = copy.deepcopy(model)
        other.tail.bias.data += 0.05
        return real(self, other, *rest, **options)

    monkeypatch.setattr(TFLite, "lower", lower)
    with pytest.raises(ExportError, match=r"fp32\.tflite gives other images than the network in torch: \d+\.\d dB"):
        pipeline.compress(recipe(weights), out=tmp_path)


def test_an_engine_that_fails_at_whole_tiles_alone_is_found_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden tiles need smaller windows than the tile; photographs are cut into whole ones."""
    golden, side = bundle.golden(), bundle.manifest.tile
    small = {name: getattr(golden, name)[:, :8, :8] for name in Golden._IMAGES}
    golden = replace(golden, **small, portable=None, portable_at=None)
    real, sides = LiteRTEngine.run, list[int]()

    def run(self: LiteRTEngine, inputs: Any) -> Any:
        found = real(self, inputs)
        sides.append(found.shape[1])
        return np.zeros_like(found) if broken and found.shape[1] == side else found

    monkeypatch.setattr(LiteRTEngine, "run", run)
    broken = False
    with Denoiser.from_bundle(bundle, threads=1) as denoiser:
        device = run_tiles(denoiser, golden.noisy, golden.sigma)
        assert max(sides) < side
        assert _whole_tile(denoiser, golden, device, 40.0) == ()
        assert max(sides) == side
        broken = True
        (reason,) = _whole_tile(denoiser, golden, device, 40.0)
        assert reason.startswith(f"windows of {side}x{side}, which large images are cut into")
        # As before, afterwards.
        sides.clear()
        assert np.array_equal(run_tiles(denoiser, golden.noisy, golden.sigma), device)
        assert max(sides) < side


def test_a_model_is_named_by_the_file_that_training_wrote(weights: Path, tmp_path: Path) -> None:
    named = recipe(weights, model=str(weights)).model_copy(update={"weights": None})
    assert [stage.stage for stage in pipeline.plan(named)] == [
        "original",
        "prune",
        "distill",
        "quantize",
        "export",
        "check",
    ]
    with pytest.raises(RecipeError, match="brings its own; leave --weights out"):
        pipeline.plan(recipe(weights, model=str(weights)))
