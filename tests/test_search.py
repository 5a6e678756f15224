"""Width search: what it keeps, what it refuses, how machines share a study, and one small search for real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from smooth_folder import write_smooth

pytest.importorskip("optuna")

import edgekit
from edgekit.compress.evaluate import NoisyTiles
from edgekit.errors import (
    CheckpointError,
    DataError,
    OutputExistsError,
    RecipeError,
    TrainingError,
    UnknownNameError,
)
from edgekit.models import create
from edgekit.recipe import SearchRecipe, TrainRecipe, load, make
from edgekit.search import study, yardstick
from edgekit.search.study import SPACE, configuration

QUICK: dict[str, Any] = {"batch": 1, "patch": 32, "warmup": 0, "optimizer": "muon", "validation_share": 0.3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smooth(tmp_path_factory.mktemp("images"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Time is a tenth of the kMAC, dB their logarithm; each candidate that is trained is told."""
    trained: list[dict[str, Any]] = []

    class Fake:
        machine = "here"

        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def time(self, config: dict[str, Any]) -> float:
            return create("dsunet-s", **config).macs_per_pixel() / 100

    def score(work: Any, config: dict[str, Any]) -> dict[float, float]:
        trained.append(config)
        return {25.0: 30 + float(np.log10(create("dsunet-s", **config).macs_per_pixel()))}

    monkeypatch.setattr(study, "Yardstick", Fake)
    monkeypatch.setattr(study._Work, "_train", score)
    return trained


def run(data: Path, out: Path, **settings: Any) -> study.Search:
    return study.search(make(SearchRecipe, {"data": data, "train": QUICK, **settings}), out=out)


def test_the_best_within_the_budget_is_written_as_a_recipe(fake: list[Any], data: Path, tmp_path: Path) -> None:
    found = run(data, tmp_path / "student.yaml", budget="40 ms/MP", trials=12)
    assert len(found.candidates) == 12
    within = [c for c in found.candidates if c.ms_per_megapixel <= 40]
    assert found.best == max(within, key=lambda c: c.mean)
    # Nothing over the budget was trained.
    assert all((c.psnr is None) == (c.ms_per_megapixel > 40) for c in found.candidates)
    assert len(fake) <= len(within)
    recipe = yaml.safe_load(found.recipe.read_text())
    assert recipe["config"] == configuration(found.best.shape)
    loaded = load(TrainRecipe, found.recipe, {})
    model = create(loaded.model, **loaded.config)
    assert model.macs_per_pixel() / 100 == pytest.approx(found.best.ms_per_megapixel, abs=0.01)
    assert (loaded.train.optimizer, loaded.train.patch) == ("muon", 32)


def test_a_second_run_goes_on_and_a_second_machine_joins(fake: list[Any], data: Path, tmp_path: Path) -> None:
    storage = str(tmp_path / "shared" / "study.log")
    first = run(data, tmp_path / "a.yaml", budget=60, trials=3, storage=storage)
    trained = len(fake)
    again = run(data, tmp_path / "a.yaml", budget=60, trials=3, storage=storage)
    assert again == first
    assert len(fake) == trained
    joined = run(data, tmp_path / "b.yaml", budget=60, trials=5, storage=storage)
    assert joined.candidates[:3] == first.candidates
    assert len(joined.candidates) == 5


def test_a_search_that_was_stopped_tries_what_it_left_again(
    fake: list[Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = study._Work._train

    def stopped(work: Any, config: dict[str, Any]) -> dict[float, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(study._Work, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "a.yaml", budget=1000, trials=2)
    monkeypatch.setattr(study._Work, "_train", score)
    found = run(data, tmp_path / "a.yaml", budget=1000, trials=4)
    shapes = [candidate.shape for candidate in found.candidates]
    assert all(first in shapes for first in study._FIRST)
    # Drawing goes on: nothing is drawn a second time.
    assert len({tuple(shape.values()) for shape in shapes}) == 4


def test_a_candidate_that_cannot_be_trained_is_left_out(
    fake: list[Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = study._Work._train

    def fails(work: Any, config: dict[str, Any]) -> dict[float, float]:
        if len(config["middle"]) == 4 or not fake:
            fake.append(config)
            raise TrainingError("NaN")
        return score(work, config)

    monkeypatch.setattr(study._Work, "_train", fails)
    found = run(data, tmp_path / "a.yaml", budget=1000, trials=3)
    assert len(found.candidates) == 3
    assert all(candidate.shape["blocks"] != 4 for candidate in found.candidates)

    def never(work: Any, config: dict[str, Any]) -> dict[float, float]:
        raise TrainingError("always NaN")

    monkeypatch.setattr(study._Work, "_train", never)
    with pytest.raises(TrainingError, match="always NaN"):
        run(data, tmp_path / "b.yaml", budget=1000, trials=3)


@pytest.mark.parametrize("content", ["my notes", '{"a": 1}\n', "[1]\n{}\n"])
def test_a_file_that_is_no_study_is_left_alone(fake: list[Any], data: Path, tmp_path: Path, content: str) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text(content)
    with pytest.raises(CheckpointError, match="notes.txt': the file is no study"):
        run(data, tmp_path / "a.yaml", budget=60, trials=2, storage=str(notes))
    assert notes.read_text() == content


def test_a_password_is_not_told(fake: list[Any], data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as told:
        run(data, tmp_path / "a.yaml", budget=60, trials=2, storage="nodatabase://me:secret@host/x")
    assert "secret" not in str(told.value)
    assert "nodatabase://me:***@host/x" in str(told.value)


def test_scores_are_on_the_noise_that_is_trained_for(
    fake: list[Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    score = study._Work._train

    def keep(work: Any, config: dict[str, Any]) -> dict[float, float]:
        seen.append(work.images.tiles)
        return score(work, config)

    monkeypatch.setattr(study._Work, "_train", keep)
    noise = {"model": "poisson-gaussian", "device_share": 0.5}
    run(data, tmp_path / "a.yaml", budget=1000, trials=1, train={**QUICK, "noise": noise})
    assert isinstance(seen[0], NoisyTiles)
    run(data, tmp_path / "b.yaml", budget=1000, trials=1)
    assert not isinstance(seen[1], NoisyTiles)


def test_the_optimizer_is_the_recipes_else_muon(tmp_path: Path) -> None:
    for text, expected in (("", "muon"), ("train: {steps: 9}\n", "muon"), ("train: {optimizer: adamw}\n", "adamw")):
        file = tmp_path / "search.yaml"
        file.write_text(f"budget: 40\n{text}")
        for given in ({}, {"train": {"noise": {"sigma": (0, 30)}}}):
            assert load(SearchRecipe, file, given).train.optimizer == expected


def test_times_are_of_useful_pixels_in_one_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"fixed": 0.02, "candidate": 0.03}

    @contextmanager
    def opened(self: Any, config: dict[str, Any]) -> Iterator[tuple[Any, int]]:
        yield (lambda: "candidate" if config else "fixed"), (400 * 500 if config else 500 * 500)

    def turns(functions: Any, *_: Any) -> list[Any]:
        return [np.array([2 * taken[run()], taken[run()]]) for run in functions]

    monkeypatch.setattr(yardstick.Yardstick, "_opened", opened)
    monkeypatch.setattr(yardstick, "in_turns", turns)

    class Attributes:
        def __init__(self) -> None:
            self.user_attrs: dict[str, Any] = {}

        def set_user_attr(self, key: str, value: Any) -> None:
            self.user_attrs[key] = value

    kept: Any = Attributes()
    nothing: Any = None
    with yardstick.Yardstick(nothing, nothing, nothing, kept) as timer:
        # 30 ms for 0.2 megapixels.
        assert timer.time({"a": 1}) == pytest.approx(150)
        # All of the machine is slower by three: a ratio stays.
        taken.update(fixed=0.06, candidate=0.09)
        assert timer.time({"a": 1}) == pytest.approx(150)
    with yardstick.Yardstick(nothing, nothing, nothing, kept) as again:
        assert again.time({"a": 1}) == pytest.approx(150)


def test_a_database_is_a_storage_too(fake: list[Any], data: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    assert len(run(data, tmp_path / "a.yaml", budget=60, trials=2, storage=url).candidates) == 2
    with pytest.raises(
        CheckpointError, match="cannot open the storage 'nodatabase://x': .*; give a file, or a database's URL"
    ):
        run(data, tmp_path / "a.yaml", budget=60, trials=2, storage="nodatabase://x")


def test_other_settings_are_another_search(fake: list[Any], data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "a.yaml", budget=60, trials=2)
    with pytest.raises(RecipeError, match="holds a search with steps 1500, this one has 9: go on with the same"):
        run(data, tmp_path / "a.yaml", budget=60, trials=2, steps=9)


def test_no_candidate_within_the_budget(fake: list[Any], data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="budget 0.1 ms/MP: none of 3 candidates is within it, the fastest takes"):
        run(data, tmp_path / "a.yaml", budget=0.1, trials=3)
    assert not fake
    assert not (tmp_path / "a.yaml").exists()


def test_a_file_of_the_users_is_not_replaced(fake: list[Any], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("model: dsunet-s\n")
    with pytest.raises(OutputExistsError, match="mine.yaml exists, and is not as a search wrote it"):
        run(data, out, budget=60, trials=2)
    assert out.read_text() == "model: dsunet-s\n"
    found = run(data, tmp_path / "a.yaml", budget=60, trials=2)
    edited = found.recipe.read_text().replace("steps: 35000", "steps: 50000")
    found.recipe.write_text(edited)
    with pytest.raises(OutputExistsError, match="a.yaml exists, and is not as"):
        run(data, found.recipe, budget=60, trials=2)
    assert found.recipe.read_text() == edited
    with pytest.raises(RecipeError, match="--storage and --out are both"):
        run(data, tmp_path / "b.yaml", budget=60, storage=str(tmp_path / "b.yaml"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"budget": "soon"}, RecipeError, "expected milliseconds per megapixel, e.g. 40ms/MP"),
        ({"budget": -1}, RecipeError, "budget is -1"),
        ({"budget": 40, "trials": 0}, RecipeError, "trials is 0"),
        ({"budget": 40, "target": "tflit"}, UnknownNameError, "unknown target 'tflit'"),
        ({"budget": 40, "data": "/nowhere"}, DataError, "/nowhere"),
        ({"budget": 40, "tile": 64}, RecipeError, "tile 64: dsunet needs a multiple of 4, at least 82"),
        ({"budget": 40, "tile": 130}, RecipeError, "tile 130: dsunet needs a multiple of 4"),
    ],
)
def test_wrong_settings(
    fake: list[Any], settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        edgekit.search(**settings, out=tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["40ms/MP", "40 ms/MP", "40ms", "40", 40, 40.0])
def test_a_budget_may_carry_its_unit(text: object) -> None:
    assert make(SearchRecipe, {"budget": text}).budget == 40


def test_the_space_holds_the_shipped_shape() -> None:
    shape = study._FIRST[0]
    shipped = {k: v for k, v in create("dsunet-s").config().items() if k != "channels"}
    assert configuration(shape) == shipped
    for name, (low, high, step) in SPACE.items():
        for first in study._FIRST:
            assert low <= first[name] <= high
            assert (first[name] - low) % step == 0


def test_a_search_for_real(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("litert_torch")
    small = {"width": 16, "middle_width": 24, "blocks": 1, "hidden": 32, "up_width": 8, "finish": 16}
    monkeypatch.setattr(study, "_FIRST", (small,))
    monkeypatch.setattr(yardstick, "_RUNS", 3)
    found = run(data, tmp_path / "student.yaml", budget=1e6, trials=1, steps=2, tile=128)
    (only,) = found.candidates
    assert only.shape == small
    assert only.ms_per_megapixel > 0
    assert only.psnr is not None
    assert only.psnr.keys() == {"5", "15", "25", "50"}
    trained = edgekit.train(recipe=found.recipe, steps=1, out=tmp_path / "run")
    assert {k: v for k, v in trained.model.config().items() if k != "channels"} == configuration(small)
