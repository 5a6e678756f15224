"""Distillation: the teacher matters, a run that was killed ends where the whole one does, NaN stops it."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import Blur, SmoothBatches, assert_same_weights, random_model, smooth_tiles, tiny_student, weights_of

from edgekit.compress.batches import Progress
from edgekit.compress.distill import distill
from edgekit.compress.lessons import OUTPUT, Lessons
from edgekit.compress.steps import Checkpoint
from edgekit.errors import CheckpointError, RecipeError, ShapeError, TrainingError, UnknownNameError
from edgekit.models.base import DenoiserModel
from edgekit.recipe import DistillSettings

QUICK = DistillSettings(steps=12, cache_batches=3, save_every=4, warmup=2)


class Killed(Exception):
    """What stops a run in these tests."""


def killed_after(steps: int, of: DistillSettings = QUICK) -> Progress:
    def report(done: int, total: int, text: str = "") -> None:
        if done == of.cache_batches + steps:
            raise Killed

    return report


def mean_db(figures: dict[int, float]) -> float:
    return float(np.mean(list(figures.values())))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_garbage_teacher_gives_a_worse_student_than_a_good_one(seed: int) -> None:
    settings = DistillSettings(steps=120, cache_batches=24, learning_rate=4e-3, seed=seed)
    batches, tiles = SmoothBatches(seed=seed), smooth_tiles(4)
    garbage = random_model("dsunet-n", seed=seed)
    results = {}
    for name, teacher in (("good", Blur()), ("garbage", garbage)):
        _, record = distill(tiny_student(seed), teacher, settings, batches, tiles)
        results[name] = mean_db(record.db_after)
        untrained = mean_db(record.db_before)
    assert results["good"] > untrained + 1
    assert results["good"] > results["garbage"] + 1


def test_a_frozen_student_learns_as_any_other() -> None:
    ends = [
        distill(tiny_student().requires_grad_(learns), Blur(), QUICK, SmoothBatches(), smooth_tiles())[0]
        for learns in (True, False)
    ]
    assert_same_weights(ends[0], weights_of(ends[1]))


def test_training_on_clean_images_alone_needs_no_teacher() -> None:
    settings = DistillSettings(steps=80, cache_batches=16, learning_rate=4e-3)
    _, record = distill(tiny_student(), None, settings, SmoothBatches(), smooth_tiles(2))
    assert mean_db(record.db_after) > mean_db(record.db_before) + 1
    assert record.details["teacher"] is None
    assert record.what == "80 steps on the clean images"


def test_student_and_teacher_are_untouched_and_the_record_says_what_was_done() -> None:
    student, teacher = tiny_student().eval(), Blur()
    before = weights_of(student)
    trained, record = distill(student, teacher, QUICK, SmoothBatches(), smooth_tiles(1))
    assert_same_weights(student, before)
    assert teacher.training
    assert teacher.gain.grad is None
    assert not trained.training
    assert trained.config() == student.config()
    assert not torch.equal(trained.state_dict()["head.weight"], before["head.weight"])
    assert all(value.is_contiguous() for value in trained.state_dict().values())  # as .safetensors wants it
    assert (record.stage, record.what) == ("distill", "12 steps on the outputs of blur")
    assert record.before == record.after
    assert len(record.details["losses"]) == 12


@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_the_student_ends_as_the_average_of_its_steps(tmp_path: Path, ema: float) -> None:
    path, raw = tmp_path / "distill.ckpt", [weights_of(tiny_student())]

    def keep(done: int, total: int, text: str = "") -> None:
        if text.startswith("loss"):
            raw.append(torch.load(path, weights_only=True)["student"])

    settings = DistillSettings(steps=4, cache_batches=2, save_every=1, ema=ema)
    trained, _ = distill(
        tiny_student(), None, settings, SmoothBatches(), smooth_tiles(1), checkpoint=path, progress=keep
    )
    assert len(raw) == 5
    for name, value in trained.named_parameters():
        expected = raw[0][name]
        for step, taken in enumerate(raw[1:]):
            decay = min(ema, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * taken[name]
        torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=1e-7)
        assert torch.allclose(value, raw[-1][name], rtol=1e-6, atol=1e-6) is (ema == 0), name


@pytest.mark.parametrize("balanced", [False, True])
def test_images_are_weighted_by_their_noise_where_that_is_asked_for(balanced: bool) -> None:
    settings = DistillSettings(
        steps=1, cache_batches=1, balance_sigma=balanced, output_weight=0.3, clean_weight=0.7, precision="32-true"
    )
    _, record = distill(tiny_student(), Blur(), settings, SmoothBatches(), smooth_tiles(1))
    lesson = Lessons([SmoothBatches()(0)], [{}], settings.seed).draw(0)
    with torch.no_grad():
        output, taught = (model(lesson.noisy, lesson.sigma) for model in (tiny_student(), Blur()))
    errors = sum(
        weight * (output - target).abs().mean((1, 2, 3)) for weight, target in ((0.3, taught), (0.7, lesson.clean))
    )
    weights = 30 / (255 * lesson.sigma + 5) if balanced else torch.ones(4)
    # The teacher's output is kept in half precision.
    assert record.details["losses"] == [pytest.approx(float((weights * errors).mean()), rel=1e-4)]


@pytest.mark.parametrize("features", [{}, {"middle.0": "middle.1"}])
def test_a_killed_run_ends_with_the_very_weights_of_a_whole_one(tmp_path: Path, features: dict[str, str]) -> None:
    settings = QUICK.model_copy(update={"features": features, "feature_weight": 0.1 if features else 0.0})
    teacher = random_model("dsunet-n", seed=5)
    inputs: tuple[Any, ...] = (tiny_student(), teacher, settings, SmoothBatches(), smooth_tiles(1))
    whole, whole_record = distill(*inputs)
    path, cache = tmp_path / "work" / "distill.ckpt", tmp_path / "work" / "taught.safetensors"
    for steps in (1, 6, 9):  # before the first checkpoint, then between two
        with pytest.raises(Killed):
            distill(*inputs, checkpoint=path, cache=cache, progress=killed_after(steps))
    assert torch.load(path, weights_only=True)["step"] == 8
    resumed, resumed_record = distill(*inputs, checkpoint=path, cache=cache)
    assert_same_weights(resumed, weights_of(whole))
    assert resumed_record.details == whole_record.details
    assert resumed_record.db_after == whole_record.db_after
    assert sorted(p.name for p in path.parent.iterdir()) == ["distill.ckpt", "taught.safetensors"]


def test_the_teacher_runs_once_over_the_pool_and_never_with_a_cache(tmp_path: Path) -> None:
    teacher, cache = Blur(), tmp_path / "taught.safetensors"
    inputs = (tiny_student(), teacher, QUICK, SmoothBatches(), smooth_tiles(1))
    first, _ = distill(*inputs, cache=cache)
    assert teacher.runs == [3]
    second, _ = distill(*inputs, cache=cache)
    assert teacher.runs == [3]
    assert_same_weights(second, weights_of(first))


def test_a_cache_of_another_teacher_of_other_images_or_damaged_is_written_anew(tmp_path: Path) -> None:
    teacher, cache = Blur(), tmp_path / "taught.safetensors"
    student, tiles = tiny_student(), smooth_tiles(1)
    distill(student, teacher, QUICK, SmoothBatches(), tiles, cache=cache)
    distill(student, teacher, QUICK, SmoothBatches(seed=1), tiles, cache=cache)
    assert teacher.runs == [6]
    with torch.no_grad():
        teacher.gain.fill_(0.9)
    distill(student, teacher, QUICK, SmoothBatches(seed=1), tiles, cache=cache)
    assert teacher.runs == [9]
    cache.write_bytes(cache.read_bytes()[:-100])
    distill(student, teacher, QUICK, SmoothBatches(seed=1), tiles, cache=cache)
    assert teacher.runs == [12]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "distill.ckpt"
    distill(tiny_student(), None, QUICK, SmoothBatches(), smooth_tiles(1), checkpoint=path)
    longer = QUICK.model_copy(update={"steps": 20})
    with pytest.raises(CheckpointError, match=r"distill.ckpt belongs to another run .*: delete it to start over"):
        distill(tiny_student(), None, longer, SmoothBatches(), smooth_tiles(1), checkpoint=path)
    with pytest.raises(CheckpointError, match="another run"):
        distill(tiny_student(seed=1), None, QUICK, SmoothBatches(), smooth_tiles(1), checkpoint=path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "distill.ckpt"
    # The first step throws the weights out of float's range, so the second loss is not finite.
    settings = QUICK.model_copy(update={"learning_rate": 1e30, "warmup": 0, "save_every": 1})
    with pytest.raises(
        TrainingError, match=r"distill: the loss became (nan|inf) at step 1 .*: lower the .*distill.ckpt"
    ):
        distill(tiny_student(), None, settings, SmoothBatches(), smooth_tiles(1), checkpoint=path)
    state = torch.load(path, weights_only=True)
    assert state["step"] == 1
    assert len(state["losses"]) == 1


def test_a_loss_that_is_not_finite_at_once_says_that_there_is_no_checkpoint(tmp_path: Path) -> None:
    student = tiny_student()
    with torch.no_grad():
        student.get_submodule("head").weight[0, 0] = float("nan")
    path = tmp_path / "distill.ckpt"
    with pytest.raises(TrainingError, match="the loss became nan at step 0 .*no checkpoint was written yet"):
        distill(student, None, QUICK, SmoothBatches(), smooth_tiles(1), checkpoint=path)
    assert not path.exists()


def test_features_are_imitated_through_adapters_that_are_dropped() -> None:
    student, teacher = tiny_student(), random_model("dsunet-n", seed=5)
    settings = QUICK.model_copy(update={"features": {"down.0": "down.0"}, "feature_weight": 1.0})
    plain, _ = distill(student, teacher, QUICK, SmoothBatches(), smooth_tiles(1))
    trained, _ = distill(student, teacher, settings, SmoothBatches(), smooth_tiles(1))
    assert trained.state_dict().keys() == student.state_dict().keys()
    assert not trained.get_submodule("down.0")._forward_hooks
    assert not torch.equal(trained.state_dict()["down.0.weight"], plain.state_dict()["down.0.weight"])


@pytest.mark.parametrize(
    ("change", "teacher", "error", "message"),
    [
        ({"loss": "l3"}, Blur(), UnknownNameError, "'l3': expected one of charbonnier, frequency, l1, mse, rmse"),
        ({"steps": 0}, None, RecipeError, "distillation.steps is 0: expected at least 1"),
        ({}, Blur(channels=1), RecipeError, "teacher blur has 1 channels, student dsunet 3"),
        ({"feature_weight": 1.0}, Blur(), RecipeError, "feature_weight is 1.0 and features name 0 modules"),
        ({"features": {"head": "head"}}, Blur(), RecipeError, "feature_weight is 0.0 and features name 1 modules"),
        ({"feature_weight": 1.0, "features": {"head": "head"}}, None, RecipeError, "without a teacher"),
        ({"clean_weight": 0.0}, None, RecipeError, "clean_weight is 0 and there is no teacher"),
        (
            {"clean_weight": 0.0, "output_weight": 0.0},
            Blur(),
            RecipeError,
            "clean_weight is 0 and there is no output_weight",
        ),
        ({"output_weight": 0.0}, Blur(), RecipeError, "the teacher blur would not be used"),
        (
            {"feature_weight": 1.0, "features": {"head": "haed"}},
            random_model("dsunet-n"),
            UnknownNameError,
            r"unknown module of dsunet 'haed': .*did you mean 'head'\?",
        ),
        (
            {"feature_weight": 1.0, "features": {"head": "down.0"}},
            random_model("dsunet-n"),
            RecipeError,
            r"features pair 'head' of the student \(16x16\) with 'down.0' of the teacher \(8x8\)",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    change: dict[str, Any], teacher: DenoiserModel | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        distill(tiny_student(), teacher, QUICK.model_copy(update=change), SmoothBatches(), smooth_tiles(1))


def test_a_teacher_whose_stride_the_patches_miss_is_refused() -> None:
    teacher = random_model("unet", widths=[8] * 6, encoder=[[]] * 5, middle=[8], decoder=[[]] * 5)
    with pytest.raises(ShapeError, match="noisy is 32x32: unet expects .* multiples of 64"):
        distill(tiny_student(), teacher, QUICK, SmoothBatches(), smooth_tiles(1))


def test_a_cycle_visits_each_batch_once_and_turns_all_its_images_alike() -> None:
    pool = [SmoothBatches()(step) for step in range(4)]
    taught = [{OUTPUT: batch.noisy.half(), "deep": batch.clean.half()} for batch in pool]
    lessons = Lessons(pool, taught, seed=0)
    orders, turned = [], 0
    for cycle in range(3):
        drawn = [lessons.draw(4 * cycle + place) for place in range(4)]
        for lesson in drawn:
            torch.testing.assert_close(lesson.taught[OUTPUT], lesson.noisy, atol=2e-3, rtol=0)
            torch.testing.assert_close(lesson.taught["deep"], lesson.clean, atol=2e-3, rtol=0)
            turned += not any(torch.equal(lesson.clean, batch.clean) for batch in pool)
        orders.append([[b.sigma is lesson.sigma for b in pool].index(True) for lesson in drawn])
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert turned >= 6  # 7 of 8 turns change an image
    again = Lessons(pool, taught, seed=0).draw(5)
    torch.testing.assert_close(again.noisy, lessons.draw(5).noisy, atol=0, rtol=0)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "distill.ckpt"
    checkpoint = Checkpoint(path, "run")
    assert checkpoint.load() is None
    checkpoint.save(step=3, numbers={"a": torch.arange(3)})
    state = checkpoint.load()
    assert state is not None
    assert state["step"] == 3
    assert state["numbers"]["a"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*distill.ckpt .*delete it to start over"):
        checkpoint.load()


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "distill.ckpt"
    Checkpoint(path).save(step=1)
    good = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="cannot write .*distill.ckpt .*No space left on device"):
        Checkpoint(path).save(step=2)
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["distill.ckpt"]


def test_a_copy_of_the_toy_teacher_counts_with_it() -> None:
    teacher = Blur()
    copy.deepcopy(teacher)(torch.rand(1, 3, 16, 16), torch.zeros(1))
    assert teacher.runs == [1]
