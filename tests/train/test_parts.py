"""A recipe of several parts: what it is the same as, what a killed one goes on with, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from killing import Killed, kill_at

from edgekit import api, models
from edgekit.errors import CheckpointError, LicenceError, OutputExistsError, RecipeError, UnknownNameError
from edgekit.models import checkpoints
from edgekit.recipe import NoiseSettings, TrainRecipe, TrainSettings, load, make
from edgekit.train.dead_leaves import dead_leaves
from edgekit.train.journal import read_log
from edgekit.train.parts import train_parts
from edgekit.train.run import Trained, train

Progress = Callable[[int, int, str], None]

_COMMON: dict[str, Any] = {
    "steps": 4, "batch": 2, "patch": 16, "warmup": 0, "precision": "32-true", "accelerator": "cpu", "save_every": 2,
    "validate_every": 4, "validation_share": 0.3,
}  # fmt: skip
_PARTS: list[dict[str, Any]] = [{"seed": 1}, {"steps": 6, "seed": 2, "patch": 24, "learning_rate": 1e-3}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import numpy as np
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    # The last two are too small for the crops of the second part.
    for k, side in enumerate((40, 40, 40, 40, 20, 20)):
        Image.fromarray(dead_leaves(side, np.random.default_rng(k), smallest=4)).save(data / f"{k}.png")
    return data


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(given(folder)))
    return file


def given(folder: Path) -> dict[str, Any]:
    return {"model": "dsunet-n", "data": str(folder), "train": _COMMON, "parts": _PARTS}


def test_parts_are_runs_from_the_weights_before(recipe: Path, folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    trained = api.train(
        recipe=recipe, out=tmp_path / "run", progress=lambda done, total, text="": told.append((done, total, text))
    )
    names = ["log.jsonl", "model.safetensors", "part-1", "part-2", "recipe.yaml"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == names
    assert trained.steps == 10
    steps = [(done, total) for done, total, text in told if "loss" in text]
    assert steps == [(k, 10) for k in range(1, 11)]
    assert told[-1][2].startswith("part 2/2, loss ")

    loaded = load(TrainRecipe, recipe, {})
    first = train("dsunet-n", open_for_all(folder), loaded.parts[0], tmp_path / "a")
    second = train("dsunet-n", open_for_all(folder), loaded.parts[1], tmp_path / "b", weights=first.path)
    assert trained.path == tmp_path / "run" / "model.safetensors"
    assert trained.path.read_bytes() == second.path.read_bytes()
    assert trained.scores == second.scores
    log = read_log(tmp_path / "run" / "log.jsonl")
    alone = [{"part": i, **r} for i, run in ((1, "a"), (2, "b")) for r in read_log(tmp_path / run / "log.jsonl")]
    assert [without_time(r) for r in log] == [without_time(r) for r in alone]
    assert checkpoints.metadata(trained.path)["trained_on"] == str(folder)


def open_for_all(folder: Path) -> Any:
    from edgekit.train import open_images

    return open_images(folder, channels=3, patch=24, validation_share=0.3)


def without_time(record: Any) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "seconds"}


def test_what_one_part_holds_out_no_other_trains_on(recipe: Path, folder: Path, tmp_path: Path) -> None:
    api.train(recipe=recipe, out=tmp_path / "run")
    counts = [yaml.safe_load((tmp_path / "run" / f"part-{k}" / "recipe.yaml").read_text())["images"] for k in (1, 2)]
    # Four are large enough for both, and one of them is held out.
    assert counts == [3, 3]


def test_the_recipe_that_is_written_repeats_the_run(recipe: Path, tmp_path: Path) -> None:
    whole = api.train(recipe=recipe, out=tmp_path / "a")
    written = yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())
    assert written["parts"] == _PARTS
    again = api.train(recipe=tmp_path / "a" / "recipe.yaml", out=tmp_path / "b")
    assert again.path.read_bytes() == whole.path.read_bytes()


def test_a_killed_run_goes_on_in_its_part(recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = api.train(recipe=recipe, out=tmp_path / "whole")

    def kill(done: int, total: int, text: str = "") -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.train(recipe=recipe, out=tmp_path / "run", progress=kill)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    caplog.clear()
    told: list[int] = []
    resumed = api.train(
        recipe=tmp_path / "run" / "recipe.yaml",
        out=tmp_path / "run",
        resume=True,
        progress=lambda done, total, text="": told.append(done),
    )
    assert sorted(set(told)) == [9, 10], "it was at step 8 (4 of the second part) when it last wrote a checkpoint"
    assert "part-1 was complete after 4 steps" in caplog.text
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_a_part_that_ended_needs_no_checkpoint(recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = api.train(recipe=recipe, out=tmp_path / "whole")
    with pytest.raises(Killed):
        api.train(recipe=recipe, out=tmp_path / "run", progress=kill_at(9))
    (tmp_path / "run" / "part-1" / "last.ckpt").unlink()
    resumed = api.train(recipe=recipe, out=tmp_path / "run", resume=True)
    assert "last.ckpt is gone: part 1 is taken as it ended" in caplog.text
    assert (resumed.steps, resumed.path.read_bytes()) == (whole.steps, whole.path.read_bytes())
    # A damaged one of the part that was interrupted costs that part alone.
    (tmp_path / "run" / "model.safetensors").unlink()
    (tmp_path / "run" / "part-2" / "model.safetensors").unlink()
    checkpoint = tmp_path / "run" / "part-2" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"part-2/last.ckpt cannot be read, .*: delete it, and --resume begins"):
        api.train(recipe=recipe, out=tmp_path / "run", resume=True)


def test_an_existing_run_is_not_overwritten(recipe: Path, folder: Path, tmp_path: Path) -> None:
    run = api.train(recipe=recipe, out=tmp_path / "run")
    before = run.path.read_bytes()
    with pytest.raises(OutputExistsError, match=r"already holds a training run .*--resume.*--force"):
        api.train(recipe=recipe, out=tmp_path / "run")
    with pytest.raises(OutputExistsError, match=r"in parts: resume it with its recipe"):
        api.train("dsunet-n", data=folder, settings=_COMMON, out=tmp_path / "run", resume=True)
    assert run.path.read_bytes() == before
    longer = load(TrainRecipe, recipe, {"parts": [*_PARTS, {"steps": 2, "seed": 3}]})
    more = train_parts(longer, tmp_path / "run", resume=True)
    assert more.steps == 12, "a part that is added goes on from the others"
    forced = api.train(recipe=recipe, out=tmp_path / "run", force=True)
    assert forced.path.read_bytes() == before
    assert not (tmp_path / "run" / "part-3" / "model.safetensors").exists()


def test_a_run_of_one_part_is_not_gone_on_with(recipe: Path, folder: Path, tmp_path: Path) -> None:
    single = api.train("dsunet-n", data=folder, settings=_COMMON, out=tmp_path / "run")
    before = single.path.read_bytes()
    with pytest.raises(
        OutputExistsError, match="a training run of one part, the recipe has 2: resume it with the recipe"
    ):
        api.train(recipe=recipe, out=tmp_path / "run", resume=True)
    assert single.path.read_bytes() == before


def test_a_network_grows_between_parts(folder: Path, tmp_path: Path) -> None:
    small = {"middle": [16, 16]}
    parts = [{**_PARTS[0], "config": small}, {"seed": 4, "config": small}, _PARTS[1]]
    content = {**given(folder), "config": {"middle": [16, 16, 16], "finish": 16}, "parts": parts}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    whole = api.train(recipe=tmp_path / "recipe.yaml", out=tmp_path / "run")
    sizes = [models.load(str(tmp_path / "run" / f"part-{k}" / "model.safetensors")).config() for k in (1, 2, 3)]
    assert [size["middle"] for size in sizes] == [[16, 16], [16, 16], [16, 16, 16]]
    assert {size["finish"] for size in sizes} == {16}
    assert whole.model.config() == sizes[2]

    # The same three runs by hand.
    loaded = load(TrainRecipe, tmp_path / "recipe.yaml", {})
    config = {"config": {**content["config"], **small}}
    first = train("dsunet-n", open_for_all(folder), loaded.parts[0].run, tmp_path / "a", **config)
    second = train("dsunet-n", open_for_all(folder), loaded.parts[1].run, tmp_path / "b", weights=first.path, **config)
    third = train(
        *("dsunet-n", open_for_all(folder), loaded.parts[2].run, tmp_path / "c"),
        weights=second.path,
        grow=True,
        config=content["config"],
    )
    assert whole.path.read_bytes() == third.path.read_bytes()

    # What is written repeats it, each part alone too.
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert [part.get("config") for part in written["parts"]] == [small, small, None]
    again = api.train(recipe=tmp_path / "run" / "recipe.yaml", out=tmp_path / "again")
    assert again.path.read_bytes() == whole.path.read_bytes()
    alone = api.train(recipe=tmp_path / "run" / "part-3" / "recipe.yaml", out=tmp_path / "alone")
    assert alone.model.config() == sizes[2]


def test_a_growing_run_goes_on_where_it_was_killed(folder: Path, tmp_path: Path) -> None:
    content = {**given(folder), "parts": [{**_PARTS[0], "config": {"middle": [16]}}, _PARTS[1]]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    whole = api.train(recipe=tmp_path / "recipe.yaml", out=tmp_path / "whole")
    with pytest.raises(Killed):
        api.train(recipe=tmp_path / "recipe.yaml", out=tmp_path / "run", progress=kill_at(9))
    resumed = api.train(recipe=tmp_path / "recipe.yaml", out=tmp_path / "run", resume=True)
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    content["parts"][0]["config"] = {"middle": [32]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=r"part 1 of .* has another config: .*'middle': \[16\].*, now .*\[32\]"):
        api.train(recipe=tmp_path / "recipe.yaml", out=tmp_path / "run", resume=True)


def test_a_finished_run_grows_by_one_more_part(recipe: Path, folder: Path, tmp_path: Path) -> None:
    api.train(recipe=recipe, out=tmp_path / "run")
    # The whole run is of the larger size now, and the parts that are done name theirs.
    usual = models.create("dsunet-n").config()["middle"]
    parts = [*({**part, "config": {"middle": usual}} for part in _PARTS), {"steps": 2, "seed": 3}]
    longer = make(TrainRecipe, {**given(folder), "config": {"middle": [*usual, 16]}, "parts": parts})
    grown = train_parts(longer, tmp_path / "run", resume=True)
    assert (grown.steps, grown.model.config()["middle"]) == (12, [*usual, 16])


def test_weights_grow_into_the_first_part_and_on(folder: Path, tmp_path: Path) -> None:
    models.save(tmp_path / "tiny.safetensors", models.create("dsunet-n", middle=[16], channels=1))
    parts = [{**_PARTS[0], "config": {"middle": [16, 16]}}, {**_PARTS[1], "config": {"middle": [16, 16, 32]}}]
    content = {**given(folder), "channels": 1, "weights": str(tmp_path / "tiny.safetensors"), "grow": True}
    trained = train_parts(make(TrainRecipe, {**content, "parts": parts}), tmp_path / "run")
    assert (trained.model.channels, trained.model.config()["middle"]) == (1, [16, 16, 32])


@pytest.mark.parametrize(
    ("configs", "error", "message"),
    [
        (
            ({}, {"middle": [16]}),
            CheckpointError,
            "^part 2, of config {'middle': .*may be larger than .*, not smaller$",
        ),
        (
            ({"midle": [16]}, None),
            UnknownNameError,
            "^part 1, of config {'midle': .*unknown argument of dsunet 'midle'",
        ),
        (({}, {"midle": [16]}), UnknownNameError, "^part 2, of config .*midle"),
    ],
)
def test_a_network_that_cannot_grow_is_found_before_the_first_part(
    folder: Path, tmp_path: Path, configs: tuple[Any, Any], error: type[Exception], message: str
) -> None:
    parts = [{**part, "config": config} for part, config in zip(_PARTS, configs, strict=True)]
    with pytest.raises(error, match=message):
        train_parts(make(TrainRecipe, {**given(folder), "parts": parts}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_norm_over_channels_that_will_be_added_is_found_before_the_first_part(folder: Path, tmp_path: Path) -> None:
    # Fresh blocks are the identity: only trained ones, whose norms count, would not be the same function.
    small: dict[str, Any] = {"config": {"encoder": [1], "middle": 1, "decoder": [1]}}
    parts = [{"config": {"width": 8}}, {}]
    content = {**given(folder), **small, "model": "nafnet-width16", "parts": parts}
    with pytest.raises(CheckpointError, match="^part 2: .* it gives outputs up to"):
        train_parts(make(TrainRecipe, content), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_with_a_later_part_is_found_before_the_first(folder: Path, tmp_path: Path) -> None:
    loaded = make(TrainRecipe, {**given(folder), "parts": [{}, {"loss": {"l3": 1.0}}]})
    with pytest.raises(UnknownNameError, match="^part 2: .*l3"):
        train_parts(loaded, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_given_beside_parts_that_have_their_own(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="steps is 3, but part 2 of the recipe has its own, 6: change it in the recipe"
    ):
        api.train(recipe=recipe, steps=3, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # What no part has of its own counts for all.
    api.train(recipe=recipe, settings={"batch": 1}, out=tmp_path / "run")
    for k in (1, 2):
        assert yaml.safe_load((tmp_path / "run" / f"part-{k}" / "recipe.yaml").read_text())["train"]["batch"] == 1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{}, {"steps": 0}], "part 2: steps is 0: expected a whole number above 0"),
        ([{"step": 4}], r"part 1: unknown setting 'step': expected one of .*\(did you mean 'steps'\?\)"),
        (
            [{"validation_share": 0.1}],
            "part 1 has validation_share 0.1: images and processes are the same for all parts",
        ),
        ([{"devices": 2}], "part 1 has devices 2: images and processes are the same"),
        ("two", "parts is 'two': expected a list"),
        ([{}, 7], "part 2 is 7: expected settings by name"),
        ([{"config": 7}], "part 1: config is 7: expected settings by name"),
        ([{}, {"config": {"channels": 1}}], r"part 2 has config\.channels: images are the same for all parts; give"),
        ([{"weights": "dsunet-n"}], "part 1 has weights: it belongs to the whole run; give it beside train"),
    ],
)
def test_parts_that_cannot_be(parts: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(TrainRecipe, {"model": "dsunet-n", "train": {"steps": 4}, "parts": parts})


def test_another_noise_begins_anew() -> None:
    train_noise = {"sigma": [0, 30], "device_share": 0.4}
    given = {
        "model": "dsunet-n",
        "train": {"noise": train_noise},
        "parts": [{"noise": {"sigma": [0, 20]}}, {"noise": {"model": "camera"}}],
    }
    white, camera = make(TrainRecipe, given).parts
    assert white.noise == NoiseSettings(sigma=(0, 20), device_share=0.4)
    assert camera.noise == NoiseSettings(model="camera", device_share=0.4)


def test_a_loss_of_a_part_is_its_own(folder: Path, tmp_path: Path) -> None:
    given = {
        "model": "dsunet-n",
        "data": str(folder),
        "train": {**_COMMON, "loss": {"l1": 1.0}, "noise": {"sigma": [0, 30]}},
        "parts": [{}, {"loss": {"mse": 1.0}}, {"noise": {"model": "poisson-gaussian", "read": [0, 4]}}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    loaded = load(TrainRecipe, tmp_path / "recipe.yaml", {})
    assert [part.loss for part in loaded.parts] == [{"l1": 1.0}, {"mse": 1.0}, {"l1": 1.0}]
    api.train(recipe=tmp_path / "recipe.yaml", out=tmp_path / "run")
    assert load(TrainRecipe, tmp_path / "run" / "recipe.yaml", {}).parts == loaded.parts
    # As the folder's own recipe is what a run is resumed by.
    assert api.train(recipe=tmp_path / "run" / "recipe.yaml", out=tmp_path / "run", resume=True).steps == 12


def test_other_parts_are_not_gone_on_with(recipe: Path, tmp_path: Path) -> None:
    run = api.train(recipe=recipe, out=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    content = yaml.safe_load(recipe.read_text())
    for parts, error, message in (
        (
            [_PARTS[0], {**_PARTS[1], "learning_rate": 0.5}],
            RecipeError,
            r"part 2 of .* has another learning_rate: 0.001, now 0.5",
        ),
        (_PARTS[:1], OutputExistsError, "holds a training run of 2 parts, the recipe has 1: resume it with the recipe"),
    ):
        (tmp_path / "other.yaml").write_text(yaml.safe_dump({**content, "parts": parts}))
        with pytest.raises(error, match=message):
            api.train(recipe=tmp_path / "other.yaml", out=tmp_path / "run", resume=True)
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert run.path in before


def test_what_starting_over_would_delete_is_not_started_from(recipe: Path, folder: Path, tmp_path: Path) -> None:
    run = api.train(recipe=recipe, out=tmp_path / "run")
    for role in ("weights", "teacher"):
        for own in (run.path, tmp_path / "run" / "part-1" / "model.safetensors"):
            with pytest.raises(
                RecipeError, match=f"{role} .* belongs to the run that starting over .* name another folder"
            ):
                api.train(recipe=recipe, out=tmp_path / "run", force=True, **{role: own})
    single = api.train("dsunet-n", data=folder, settings=_COMMON, out=tmp_path / "single")
    with pytest.raises(RecipeError, match="weights .* belongs to the run that starting over"):
        api.train("dsunet-n", data=folder, settings=_COMMON, out=tmp_path / "single", weights=single.path, force=True)
    assert run.path.exists()
    assert single.path.exists()


def test_starting_over_leaves_folders_that_are_not_parts(recipe: Path, folder: Path, tmp_path: Path) -> None:
    run = api.train(recipe=recipe, out=tmp_path / "run")
    kept = tmp_path / "run" / "part-2-best" / "model.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(run.path.read_bytes())
    api.train("dsunet-n", data=folder, settings=_COMMON, out=tmp_path / "run", force=True)
    assert kept.exists()
    assert not (tmp_path / "run" / "part-2" / "model.safetensors").exists()


def test_weights_teacher_channels_and_config_reach_the_parts(folder: Path, tmp_path: Path) -> None:
    config = {"widths": [8, 8], "middle": [16]}
    start = tmp_path / "start.safetensors"
    models.save(
        start, models.create("dsunet-n", channels=1, **config), {"licence": "research only", "use": "non-commercial"}
    )
    shape = {**given(folder), "channels": 1, "config": config}

    def run(name: str, **more: Any) -> Trained:
        return train_parts(make(TrainRecipe, {**shape, **more}), tmp_path / name)

    plain, begun, taught = run("a"), run("b", weights=str(start)), run("c", teacher=str(start))
    assert plain.model.config() == begun.model.config() == models.load(start).config()
    assert len({run.path.read_bytes() for run in (plain, begun, taught)}) == 3
    digests = [yaml.safe_load((tmp_path / "b" / f"part-{k}" / "recipe.yaml").read_text())["weights"] for k in (1, 2)]
    assert digests == [str(start), str(tmp_path / "b" / "part-1" / "model.safetensors")]
    assert checkpoints.metadata(begun.path)["use"] == "non-commercial"
    with pytest.raises(LicenceError, match=r"start\.safetensors"):
        run("d", weights=str(start), license_clean=True)
    assert not (tmp_path / "d").exists()


def test_a_part_may_learn_without_the_teacher(folder: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.safetensors"
    models.save(teacher, models.create("dsunet-n"), {"licence": "research only", "use": "non-commercial"})

    def run(name: str, weights: list[float], *, taught: bool = True) -> Trained:
        parts = [{**part, "teacher_weight": weight} for part, weight in zip(_PARTS, weights, strict=True)]
        more = {"teacher": str(teacher)} if taught else {}
        return train_parts(make(TrainRecipe, {**given(folder), "parts": parts, **more}), tmp_path / name)

    alone, first, last = run("a", [0.5, 0.5], taught=False), run("b", [0.5, 0.0]), run("c", [0.0, 0.5])
    firsts = {name: (tmp_path / name / "part-1" / "model.safetensors").read_bytes() for name in "abc"}
    assert firsts["a"] == firsts["c"] != firsts["b"]
    assert len({run.path.read_bytes() for run in (alone, first, last)}) == 3
    # What a former part learned is in the weights still.
    assert [checkpoints.metadata(run.path)["use"] for run in (alone, first, last)] == ["owner", *["non-commercial"] * 2]
    with pytest.raises(RecipeError, match="part 1: teacher_weight is 0: the teacher dsunet would not be used"):
        run("d", [0.0, 0.0])
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("file", sorted(checkpoints.shipped().values()), ids=lambda file: file.stem)
def test_committed_recipes_are_what_the_logs_hold(file: Path) -> None:
    recipe = load(TrainRecipe, file.with_suffix(".yaml"), {})
    runs = recipe.parts or (recipe.train,)
    records = read_log(file.with_name(f"{file.stem}.log.jsonl"))
    steps = {k: [r for r in records if r.get("part", 1) == k] for k in range(1, len(runs) + 1)}
    assert sum(len(found) for found in steps.values()) == len(records)
    for k, run in enumerate(runs, 1):
        assert steps[k][-1]["step"] == run.steps
        # The warm-up may hide the peak between two records.
        assert 0.6 * run.learning_rate < max(r["learning_rate"] for r in steps[k]) <= run.learning_rate
        validated = [r["step"] for r in steps[k] if "psnr_25" in r or "psnr" in r]
        assert validated == [*range(run.validate_every, run.steps, run.validate_every), run.steps]


@pytest.mark.parametrize("file", sorted(checkpoints.shipped().values()), ids=lambda file: file.stem)
def test_committed_recipes_end_in_the_network_that_ships(file: Path, folder: Path, tmp_path: Path) -> None:
    """Every part grows out of the one before: a step each, on small crops."""
    recipe = load(TrainRecipe, file.with_suffix(".yaml"), {})
    quick = {"steps": 1, "batch": 1, "patch": 16, "validate_every": 1, "precision": "32-true", "teacher_weight": 0.5}
    parts = [{**quick, "config": part.config} for part in recipe.parts] or [quick]
    content = recipe.model_dump(include={"model", "config", "channels", "weights", "grow"})
    shared = {"accelerator": "cpu", "validation_share": 0.3}
    trained = train_parts(
        make(TrainRecipe, {**content, "data": str(folder), "train": shared, "parts": parts}), tmp_path / "run"
    )
    assert trained.model.config() == models.load(file.stem).config()


def test_settings_as_objects() -> None:
    given = {
        "model": "dsunet-n",
        "train": TrainSettings(steps=7, batch=3),
        "parts": [{"seed": 1}, TrainSettings(seed=2)],
    }
    parts = make(TrainRecipe, given).parts
    assert [part.run for part in parts] == [TrainSettings(steps=7, batch=3, seed=seed) for seed in (1, 2)]


def test_a_precision_that_a_later_part_cannot_have(folder: Path, tmp_path: Path) -> None:
    loaded = make(TrainRecipe, {**given(folder), "parts": [{}, {"precision": "16-mixed"}]})
    with pytest.raises(RecipeError, match="part 2: precision is '16-mixed', which needs a GPU"):
        train_parts(loaded, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_noise_given_beside_a_part_of_another(folder: Path, recipe: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({**content, "parts": [{}, {"noise": {"model": "camera"}}]}))
    with pytest.raises(
        RecipeError, match=r"noise\.sigma is .* but part 2 of the recipe has a noise of its own, camera"
    ):
        api.train(recipe=tmp_path / "two.yaml", sigma=(0, 30), out=tmp_path / "run")
