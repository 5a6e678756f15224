"""The recipe: defaults, ranges, YAML, and one line for whatever is wrong."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import MissingExtraError, RecipeError
from edgekit.recipe import FinetuneRecipe, Recipe, SearchRecipe, TrainRecipe, TrainSettings, load, load_recipe, make


def test_defaults_are_the_documented_ones() -> None:
    recipe = load_recipe(target="tflite")
    assert (recipe.model, recipe.teacher, recipe.weights, recipe.data) == ("dsunet-s", "original", None, None)
    assert (recipe.sigma, recipe.prune, recipe.precision) == ((0.0, 55.0), None, "int8")
    assert (recipe.max_drop, recipe.tile, recipe.seed, recipe.steps) == (0.5, 512, 0, None)


@pytest.mark.parametrize(
    ("given", "sigma"), [("5:50", (5, 50)), ("25", (25, 25)), (25, (25, 25)), ((0, 10), (0, 10)), ([1, 2.5], (1, 2.5))]
)
def test_sigma_may_be_written_as_on_the_command_line(given: Any, sigma: tuple[float, float]) -> None:
    assert load_recipe(target="tflite", sigma=given).sigma == sigma


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "target is missing: give it in the recipe or with --target TARGET, e.g. --target tflite"),
        ({"prune": 2}, "prune is 2: expected a number from 0 to 0.9"),
        ({"prune": "much"}, "prune is 'much': expected a number"),
        ({"sigma": "5:x"}, "sigma is '5:x': expected LOW:HIGH in 8-bit units, 0 to 255, e.g. 0:55"),
        ({"sigma": "55:5"}, "sigma is '55:5': 55 is above 5; write the lower level first, 5:55"),
        ({"sigma": "5:300"}, "sigma is 300.0: expected a number from 0 to 255"),
        ({"sigma": "nan"}, "sigma is nan: expected a number from 0 to 255"),
        ({"precision": "int4"}, "precision is 'int4': expected 'int8', 'fp16' or 'fp32'"),
        ({"tile": 1.5}, "tile is 1.5: expected a whole number"),
        ({"tile": 8}, "tile is 8: expected a whole number from 32 to 4096"),
        ({"max_drop": float("nan")}, "max_drop is nan: expected a number above 0 and at most 20"),
        (
            {"distillation": {"learning_rate": float("inf")}},
            "distillation.learning_rate is inf: expected a number above 0",
        ),
        ({"seed": -1}, "seed is -1: expected a whole number at least 0 and below 4294967296"),
        ({"data": 3}, "data is 3: expected a path"),
        (
            {"quantization": {"weight_learning_rate": 0}},
            "quantization.weight_learning_rate is 0: expected a number above 0",
        ),
        ({"quantization": 3}, "quantization is 3: expected settings by name"),
        ({"pruning": {"ratio": 0.5}}, "pruning.ratio 0.5 against no prune: give prune alone"),
        (
            {"noise": {"grain": [0, 2]}},
            "noise is {'grain': [0, 2]}: grain means nothing to gaussian noise, only to camera: leave it out",
        ),
        ({"distillation": {"seed": 5}}, "distillation.seed 5 against seed 0: give seed alone"),
    ],
)
def test_wrong_setting_is_one_line(settings: dict[str, Any], message: str) -> None:
    target = {"target": "tflite"} if settings else {}
    with pytest.raises(RecipeError) as caught:
        load_recipe(**target, **settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": {"devices": 0}}, "train.devices is 0: expected a number above 0, -1 or auto for all"),
        ({"train": {"devices": "some"}}, "train.devices is 'some': expected a number above 0, -1 or auto for all"),
        ({"train": {"devices": True}}, "train.devices is True: expected a number above 0, -1 or auto for all"),
    ],
)
def test_training_that_would_not_do_what_was_asked(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(told)):
        make(TrainRecipe, {"model": "dsunet-n", **changes})


def test_devices_are_what_fabric_takes() -> None:
    for given, expected in (
        ("2", 2),
        ("-1", -1),
        ("auto", "auto"),
        (1, 1),
        ("0,2", "0,2"),
        (" 0, 2", "0, 2"),
        ("3,", "3,"),
    ):
        assert make(TrainRecipe, {"model": "dsunet-n", "train": {"devices": given}}).train.devices == expected


def test_a_range_of_sigma_that_nothing_draws_from() -> None:
    camera = {"model": "camera", "sigma": [0, 5]}
    both = {"model": "dsunet-n", "train": {"noise": {"sigma": [0, 30]}}, "parts": [{}, {"noise": {"model": "camera"}}]}
    # Given now it is refused; a file that holds it - a search writes such, earlier runs did - is read, with a word.
    for content in ({"model": "dsunet-n", "train": {"noise": camera}}, {**both, "parts": [{"noise": camera}]}):
        recipe = make(TrainRecipe, content)
        assert recipe.unread() == "noise.sigma 0 to 5 is not read: camera noise is not drawn from it"
    with pytest.raises(RecipeError, match="sigma means nothing to training on camera noise, only on gaussian: leave"):
        make(TrainRecipe, {"model": "dsunet-n", "train": {"noise": camera}}).check_given({"noise": {"sigma": "0:5"}})
    for content in (both, {"model": "dsunet-n", "train": {"noise": {"model": "camera"}}}, {"model": "dsunet-n"}):
        assert make(TrainRecipe, content).unread() == ""
    make(TrainRecipe, {"model": "dsunet-n", "train": {"noise": {"sigma": 5}}}).check_given({"noise": {"sigma": "5"}})
    # Of a model that nobody knows the name is the error, where noise is drawn.
    assert make(TrainRecipe, {"model": "dsunet-n", "train": {"noise": {**camera, "model": "rain"}}}).unread() == ""


def test_unknown_setting_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(
        RecipeError, match=r"unknown setting 'prun': expected one of data, .* \(did you mean 'prune'\?\)"
    ):
        load_recipe(target="tflite", prun=0.1)
    with pytest.raises(RecipeError, match=r"unknown setting 'pruning.ration': .* \(did you mean 'ratio'\?\)"):
        load_recipe(target="tflite", pruning={"ration": 0.1})


@pytest.mark.parametrize(
    ("text", "cls", "told"),
    [
        (
            "{model: a, parts: [{}]}",
            FinetuneRecipe,
            "`edgekit train`, not of `edgekit finetune`, .* setting parts: run",
        ),
        # Nor does it say first that a target or a budget is missing.
        (
            "{model: a, train: {}, parts: [{}]}",
            Recipe,
            "`edgekit train`, not of .* setting parts, train: run edgekit tr",
        ),
        ("{model: a, data: d, train: {}, parts: [{}]}", SearchRecipe, "`edgekit train`, not of `edgekit search`"),
        ("{target: tflite, model: a, prune: 0.2, max_drop: 0.3}", TrainRecipe, "`edgekit compress`, not of .* train`"),
        ("{model: a, data: d, replay: old}", TrainRecipe, "`edgekit finetune`, not of `edgekit train`"),
        ("{model: a, weights: w, data: d, train: {}}", Recipe, "`edgekit train` or `edgekit finetune`, not of"),
        # A slip of the pen beside what makes it another's.
        ("{modle: a, weights: w, train: {}, parts: [{}]}", Recipe, "`edgekit train`, not of `edgekit compress`"),
    ],
)
def test_recipe_of_another_command_says_whose_it_is(text: str, cls: type[Any], told: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=rf"recipe\.yaml is a recipe of {told}"):
        load(cls, file, {})


@pytest.mark.parametrize(
    ("text", "cls", "told"),
    [
        ("{model: a, steps: 500}", TrainRecipe, r"unknown setting 'steps': .* \('steps' stands under train\)"),
        ("{model: a, data: d, steps: 500}", FinetuneRecipe, r"'steps': .* stands under quantization or train\)"),
        ("{model: a, noise: {model: camera}, seed: 3}", TrainRecipe, r"'noise': .* \('noise' stands under train\)"),
        ("{target: tflite, model: a, trials: 3}", Recipe, r"unknown setting 'trials': .* \(did you mean 'tile'\?\)"),
        (
            "{model: a, train: {grow: true}}",
            TrainRecipe,
            r"'train.grow': .* \('grow' stands beside 'train', not in it\)",
        ),
        ("{model: a, wieghts: w}", TrainRecipe, r"'wieghts': .* \(did you mean 'weights'\?\)"),
    ],
)
def test_a_slip_in_the_right_recipe_is_no_other_commands(text: str, cls: type[Any], told: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=told):
        load(cls, file, {})


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("target: tflite\nprune: 0.1\ntile: 256\nquantization:\n  steps: 5\n")
    recipe = load_recipe(file, prune=0.3, tile=None)
    assert (recipe.prune, recipe.tile, recipe.quantization.steps) == (0.3, 256, 5)


def test_error_in_the_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("prune: 7\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: prune is 7: expected a number from 0 to 0\.9"):
        load_recipe(file, target="tflite", prune=0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is no YAML at line 1, column 5"),
        (b"- 1\n", "holds a list: expected settings by name"),
        (b"3: 1\n", "holds a dict: expected settings by name"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"!!python/object/apply:os.getcwd []\n", "is no YAML at line 1"),
        (b"", "target is missing"),
    ],
)
def test_file_that_is_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(file)


def test_missing_file_and_folder_as_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file or directory; give a YAML file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)


def test_yaml_library_missing_names_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"needs pyyaml, .* pip install 'edgekit\[train\]'"):
        load_recipe(tmp_path / "recipe.yaml")


def test_recipe_written_into_a_bundle_gives_the_same_recipe() -> None:
    recipe = load_recipe(target="tflite", prune=0.4, seed=7, sigma="5:50", data="images")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_training_settings_come_from_yaml_too(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("steps: 10\nnoise: {sigma: [5, 50]}\n")
    settings = load(TrainSettings, file, {"steps": 20})
    assert (settings.steps, settings.noise.sigma) == (20, (5.0, 50.0))
    file.write_text("noise: {sigm: [5, 50]}\n")
    with pytest.raises(RecipeError, match=r"unknown setting 'noise.sigm': .* \(did you mean 'sigma'\?\)"):
        load(TrainSettings, file, {})


def test_a_training_recipe_names_the_argument_that_is_missing() -> None:
    with pytest.raises(RecipeError, match="^model is missing: give it in the recipe or with MODEL$"):
        make(TrainRecipe, {})
    with pytest.raises(RecipeError, match="train.seed is -1: expected a whole number"):
        make(TrainRecipe, {"model": "dsunet-n", "train": {"seed": -1}})
