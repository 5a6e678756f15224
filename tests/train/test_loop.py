"""The loop: it learns, resumes to the bit, and stops when it must."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Killed, kill_at
from torch import Tensor

from edgekit.errors import CheckpointError, MissingExtraError, RecipeError, ShapeError, TrainingError, UnknownNameError
from edgekit.models.base import DenoiserModel
from edgekit.recipe import AugmentSettings, NoiseSettings, TrainSettings
from edgekit.train import loop, neighbours
from edgekit.train.ema import WeightAverage
from edgekit.train.images import ImageSource
from edgekit.train.journal import read_log
from edgekit.train.loop import fit
from edgekit.train.validation import evaluate

Tiny = Callable[..., DenoiserModel]
Quick = Callable[..., TrainSettings]


def weights(model: DenoiserModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a: DenoiserModel, b: DenoiserModel) -> None:
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


def test_it_learns(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    settings = quick(
        steps=120, batch=4, learning_rate=5e-3, warmup=5, save_every=30, validate_every=30,
        noise=NoiseSettings(sigma=(50, 50)), augment=AugmentSettings(saturation=0, gain=0),
    )  # fmt: skip
    calls: list[tuple[int, int, str]] = []
    model = fit(tiny_model(), leaves, settings, tmp_path, progress=lambda *call: calls.append(call))
    records = read_log(tmp_path / "log.jsonl")
    assert [r["step"] for r in records] == [30, 60, 90, 120]
    assert records[-1]["loss"] < 0.85 * records[0]["loss"]
    assert records[-1]["psnr_50"] > records[0]["psnr_50"] + 0.8
    assert records[-1]["ssim_50"] > records[0]["ssim_50"]
    assert records[-1]["seconds"] > 0
    assert not model.training
    measured = [c for c in calls if c[2] == "held-out images"]
    assert [c[0] for c in measured] == [30, 60, 90, 120]
    assert [c[0] for c in calls if c not in measured] == list(range(1, 121))
    assert calls[-1][1] == 120
    assert calls[-1][2].startswith("loss 0.")


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2}, {"precision": "bf16-mixed"}, {"optimizer": "adamw"}], ids=str
)
def test_a_killed_run_resumes_to_the_bit(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = quick(**changes)
    whole = fit(tiny_model(), leaves, settings, tmp_path / "whole")
    # Killed after step 5: step 3 is the last checkpoint, steps 4 and 5 are taken again.
    with pytest.raises(Killed):
        fit(tiny_model(), leaves, settings, tmp_path / "parts", progress=kill_at(5))
    resumed = fit(tiny_model(seed=9), leaves, settings, tmp_path / "parts")
    assert_same(whole, resumed)
    logs = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in read_log(tmp_path / n / "log.jsonl")]
        for n in ("whole", "parts")
    ]
    assert logs[0] == logs[1]


def test_a_run_without_a_checkpoint_says_that_it_begins_anew(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        fit(tiny_model(), leaves, quick(), tmp_path, progress=kill_at(2))
    assert not caplog.messages
    fit(tiny_model(), leaves, quick(), tmp_path)
    assert caplog.messages == [f"{tmp_path} holds no checkpoint yet: training begins anew"]


def test_a_complete_run_that_is_resumed_says_that_nothing_was_left(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(tiny_model(), leaves, quick(), tmp_path)
    assert not caplog.messages
    assert_same(whole, fit(tiny_model(seed=9), leaves, quick(), tmp_path))
    (said,) = caplog.messages
    assert said == f"training in {tmp_path} was complete after {quick().steps} steps: none was taken now"


def test_a_finished_run_is_not_trained_again(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path
) -> None:
    first = fit(tiny_model(), leaves, quick(), tmp_path)
    again = fit(tiny_model(seed=1), leaves, quick(), tmp_path, progress=kill_at(1))
    assert_same(first, again)


def test_seeds_differ(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    a, b, c = (fit(tiny_model(), leaves, quick(seed=s), tmp_path / str(i)) for i, s in enumerate((0, 0, 1)))
    assert_same(a, b)
    assert not torch.equal(a.state_dict()["head.weight"], c.state_dict()["head.weight"])


def test_accumulation_averages_the_parts(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two parts of the same batch have the gradient of one.
    once = fit(tiny_model(), leaves, quick(steps=1), tmp_path / "once")
    drawn = loop.batches(leaves, quick())(0)
    monkeypatch.setattr(loop, "batches", lambda *_, **__: lambda _: drawn)
    twice = fit(tiny_model(), leaves, quick(steps=1, accumulate=2), tmp_path / "twice")
    for name, value in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_other_settings_are_not_resumed(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    fit(tiny_model(), leaves, quick(), tmp_path)
    with pytest.raises(RecipeError, match=r"holds a run with another learning_rate: 0\.002, now 0\.1; resume it with"):
        fit(tiny_model(), leaves, quick(learning_rate=0.1), tmp_path)
    with pytest.raises(RecipeError, match="another model"):
        fit(tiny_model(middle=[8]), leaves, quick(), tmp_path)
    fewer = ImageSource("fewer", leaves.training[:2], leaves.held_out)
    with pytest.raises(RecipeError, match="another set of images"):
        fit(tiny_model(), fewer, quick(), tmp_path)
    # How often a checkpoint is written changes nothing that is learned.
    fit(tiny_model(), leaves, quick(save_every=2), tmp_path)


def test_a_damaged_checkpoint_is_named(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    fit(tiny_model(), leaves, quick(steps=1), tmp_path)
    path = tmp_path / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt cannot be read, .*: delete it, and --resume begins this run, or"
    ):
        fit(tiny_model(), leaves, quick(steps=1), tmp_path)


def test_the_weights_of_an_ended_run_are_not_trained_over(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path
) -> None:
    fit(tiny_model(), leaves, quick(steps=1), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"what the run ended in")
    path = tmp_path / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    ways = r"begin another run with them in another folder \(--out\), or start over \(--force in place of --resume\)$"
    with pytest.raises(
        CheckpointError, match=rf"last\.ckpt cannot be read, .*model.safetensors, what the run .*{ways}"
    ):
        fit(tiny_model(), leaves, quick(steps=1), tmp_path)
    path.unlink()
    log = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=rf"model.safetensors is what a run ended in, and there is no .*{ways}"):
        fit(tiny_model(), leaves, quick(steps=1), tmp_path)
    assert weights.read_bytes() == b"what the run ended in"
    assert (tmp_path / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_loss_that_became_nan_stops_and_keeps_the_checkpoint(
    tiny_model: Tiny,
    leaves: ImageSource,
    quick: Quick,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpointed: bool,
) -> None:
    at = 4 if checkpointed else 1
    real = loop.batches

    def poisoned(*args: Any, **kwargs: Any) -> Callable[[int], Any]:
        draw = real(*args, **kwargs)
        return lambda step: (
            draw(step)._replace(clean=torch.full_like(draw(step).clean, math.nan)) if step == at else draw(step)
        )

    monkeypatch.setattr(loop, "batches", poisoned)
    kept = r"the last good checkpoint is .*last\.ckpt" if checkpointed else "no checkpoint was due before"
    with pytest.raises(TrainingError, match=rf"stopped at step {at + 1}: the loss is nan .*{kept}.*learning_rate"):
        fit(tiny_model(), leaves, quick(), tmp_path)
    assert (tmp_path / "last.ckpt").exists() == checkpointed
    if checkpointed:
        state = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert state["step"] == 3
        assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_a_full_disk_keeps_the_last_checkpoint(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        fit(tiny_model(), leaves, quick(), tmp_path, progress=kill_at(3))
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    def fill_disk(done: int, total: int, text: str = "") -> None:
        if done == 5:
            monkeypatch.setattr("os.fsync", full)

    with pytest.raises(CheckpointError, match=r"cannot write .*last\.ckpt .*No space left on device"):
        fit(tiny_model(), leaves, quick(), tmp_path, progress=fill_disk)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "log.jsonl"]


def test_early_stop_returns_the_best(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    psnrs = iter([20.0, 21.0, 20.5, 20.9, 30.0])
    seen: list[dict[str, torch.Tensor]] = []

    def scripted(run: Any) -> dict[str, float]:
        seen.append(weights(run.average.model))
        return {"psnr_25": next(psnrs)}

    monkeypatch.setattr(loop._Run, "measure", scripted)
    model = fit(tiny_model(), leaves, quick(steps=50, validate_every=2, patience=2), tmp_path)
    records = read_log(tmp_path / "log.jsonl")
    assert [r["psnr_25"] for r in records if "psnr_25" in r] == [20.0, 21.0, 20.5, 20.9]
    assert records[-1]["step"] == 8
    for name, value in model.state_dict().items():
        assert torch.equal(value, seen[1][name])
    # Resumed, a run that stopped early stays stopped.
    assert_same(model, fit(tiny_model(), leaves, quick(steps=50, validate_every=2, patience=2), tmp_path))
    assert next(psnrs) == 30.0


def test_fine_tuning_leaves_frozen_layers_alone(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path
) -> None:
    start = weights(tiny_model())
    settings = quick(freeze=("head.*", "middle.*"), learning_rate_factors={"tail.bias": 1e-6}, weight_decay=0)
    tuned = fit(tiny_model(), leaves, settings, tmp_path).state_dict()
    for name, value in start.items():
        frozen = name.startswith(("head.", "middle."))
        assert torch.equal(tuned[name], value) == frozen, name
    slow = (tuned["tail.bias"] - start["tail.bias"]).abs().max()
    fast = (tuned["tail.weight"] - start["tail.weight"]).abs().max()
    assert 0 < slow < 1e-4 * fast


def test_a_teacher_is_imitated(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    teacher = tiny_model(seed=5)
    with torch.no_grad():
        teacher.tail.weight.mul_(20)  # far from clean: it shows whom the student follows
    before = weights(teacher)
    settings = quick(steps=30, learning_rate=1e-2, teacher_weight=1.0, balance_sigma=False)
    student = fit(tiny_model(), leaves, settings, tmp_path / "taught", teacher=teacher)
    alone = fit(tiny_model(), leaves, settings, tmp_path / "alone")
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    batch = loop.batches(leaves, settings)(1000)
    with torch.no_grad():
        target = teacher(batch.noisy, batch.sigma)
        taught, untaught = ((m(batch.noisy, batch.sigma) - target).abs().mean() for m in (student, alone))
    assert taught < 0.8 * untaught


class Told(DenoiserModel):
    """A teacher that gives back what it was told: the level, at every pixel."""

    arch, source = "told", "test"
    channels, stride, halo = 3, 4, 0  # type: ignore[assignment]

    def config(self) -> dict[str, Any]:
        return {}

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        return sigma.expand_as(noisy)


def test_a_teacher_is_told_the_level(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    settings = quick(steps=1, teacher_weight=1.0, noise=NoiseSettings(sigma=(40, 55)))
    fit(tiny_model(), leaves, settings, tmp_path, teacher=Told())
    (record,) = read_log(tmp_path / "log.jsonl")
    batch = loop.batches(leaves, settings)(0)
    with torch.no_grad():
        output = tiny_model()(batch.noisy, batch.sigma)
    apart = (output - batch.sigma[:, None, None, None]).abs().mean()
    assert record["loss"] == pytest.approx(apart.item(), rel=1e-4)


@pytest.mark.parametrize("balance", [True, False])
def test_the_loss_is_balanced_on_request(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path, balance: bool
) -> None:
    settings = quick(steps=1, balance_sigma=balance, noise=NoiseSettings(sigma=(1, 55)))
    fit(tiny_model(), leaves, settings, tmp_path)
    (record,) = read_log(tmp_path / "log.jsonl")
    batch = loop.batches(leaves, settings)(0)
    with torch.no_grad():
        of_each = (tiny_model()(batch.noisy, batch.sigma) - batch.clean).abs().mean((1, 2, 3))
    plain, balanced = of_each.mean().item(), (of_each * 30 / (255 * batch.sigma + 5)).mean().item()
    assert abs(balanced - plain) > 0.05 * plain
    assert record["loss"] == pytest.approx(balanced if balance else plain, rel=1e-4)


def test_long_gradients_are_clipped(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    # What a step went by stands in the parameters until the next one.
    lengths = {}
    for limit in (1e-3, 1e3):
        model = tiny_model()
        fit(model, leaves, quick(steps=1, clip_norm=limit), tmp_path / str(limit))
        lengths[limit] = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
    assert lengths[1e-3] == pytest.approx(1e-3, rel=1e-2)
    assert 1e-2 < lengths[1e3] < 1e3


def test_a_teacher_that_would_not_be_used(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"teacher_weight is 0: the teacher .* would not be used; raise it, or"):
        fit(tiny_model(), leaves, quick(teacher_weight=0.0), tmp_path / "run", teacher=tiny_model(seed=5))
    assert not (tmp_path / "run").exists()


def test_tensorboard_files(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(tiny_model(), leaves, quick(tensorboard=True, steps=3), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "learning_rate", "psnr_25", "ssim_25", "seconds"} <= set(tags["scalars"])
    (image,) = events.Images("held out: noisy, denoised, clean")
    height, width, _ = leaves.held_out[0].shape
    assert (image.width, image.height) == (3 * width, height)
    (record,) = read_log(tmp_path / "log.jsonl")
    assert events.Scalars("loss")[0].value == pytest.approx(record["loss"])


def test_without_tensorboard(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"the setting tensorboard needs tensorboard, .*edgekit\[train\]"):
        fit(tiny_model(), leaves, quick(tensorboard=True), tmp_path)


def test_a_line_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 3, "loss": 1.0}) + '\n{"step": 6, "lo')
    assert read_log(path) == [{"step": 3, "loss": 1.0}]


@pytest.mark.parametrize(
    ("changes", "error", "expected"),
    [
        ({"loss": {"l3": 1.0}}, UnknownNameError, "unknown loss 'l3': .* charbonnier, feature, frequency, l1, lpips"),
        ({"loss": {}}, RecipeError, r"loss is \{\}: expected weights"),
        ({"loss": {"l1": -1.0}}, RecipeError, "expected weights of at least 0"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, RecipeError, "needs a GPU: expected bf16-mixed or 32-true"),
        ({"patch": 30}, RecipeError, "patch is 30: the model dsunet takes multiples of 4; take 28 or 32$"),
        ({"strategy": "fsdp"}, RecipeError, "strategy is 'fsdp': expected one that keeps the whole model"),
        ({"accelerator": "abacus"}, RecipeError, "accelerator 'abacus', devices 1, .* do not work here"),
        ({"noise": {"model": "rain"}}, UnknownNameError, "unknown noise model 'rain'"),
    ],
)
def test_settings_that_do_not_fit(
    tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path, changes: Any, error: Any, expected: str
) -> None:
    with pytest.raises(error, match=expected):
        fit(tiny_model(), leaves, quick(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_channels_must_agree(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"the model dsunet takes images of 1 chan.*these have 3: open the images"):
        fit(tiny_model(channels=1), leaves, quick(), tmp_path)
    with pytest.raises(ShapeError, match="the teacher dsunet takes images of 1 .* choose another teacher"):
        fit(tiny_model(), leaves, quick(), tmp_path, teacher=tiny_model(channels=1))


def test_levels_as_estimated_need_a_patch(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    settings = quick(patch=16, noise={"model": "camera", "level": "auto"})
    with pytest.raises(RecipeError, match=r"patch is 16: noise.level auto is read from \d+ pixels on; use a larger"):
        fit(tiny_model(), leaves, settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_patience_needs_held_out_images(tiny_model: Tiny, leaves: ImageSource, quick: Quick, tmp_path: Path) -> None:
    source = ImageSource("all", leaves.training, ())
    with pytest.raises(RecipeError, match="patience is 3, but no image is held out"):
        fit(tiny_model(), source, quick(patience=3), tmp_path)
    fit(tiny_model(), source, quick(steps=1), tmp_path)
    assert set(read_log(tmp_path / "log.jsonl")[0]) == {"step", "loss", "learning_rate", "seconds"}


def gaussian_score(model: DenoiserModel, source: ImageSource) -> float:
    return evaluate(model, source.held_out, 25).psnr


def pepper_score(model: DenoiserModel, source: ImageSource) -> float:
    return evaluate(model, source.held_out, noise_settings=NoiseSettings(model="salt-and-pepper")).psnr


def neighbours_score(model: DenoiserModel, source: ImageSource) -> float:
    return neighbours.score(model, source.held_out)


@pytest.mark.parametrize(
    ("changes", "score"),
    [
        ({"noise": {"sigma": (25, 25)}}, gaussian_score),
        ({"noise": {"model": "salt-and-pepper"}}, pepper_score),
        ({"self_supervised": "neighbor2neighbor"}, neighbours_score),
    ],
)
def test_what_is_validated_is_the_average(
    tiny_model: Tiny,
    leaves: ImageSource,
    quick: Quick,
    tmp_path: Path,
    changes: dict[str, Any],
    score: Callable[[DenoiserModel, ImageSource], float],
) -> None:
    trained = tiny_model()
    settings = quick(ema=0.99, learning_rate=0.03, steps=2, validate_every=2, **changes)
    average = fit(trained, leaves, settings, tmp_path)
    (found,) = (v for k, v in read_log(tmp_path / "log.jsonl")[-1].items() if k.startswith("psnr"))
    assert found == pytest.approx(score(average, leaves), abs=1e-3)
    assert abs(found - score(trained, leaves)) > 0.01


def test_average_follows_its_formula(tiny_model: Tiny) -> None:
    model = tiny_model()
    average = WeightAverage(model, 0.5)
    start = model.head.bias.detach().clone()
    with torch.no_grad():
        model.head.bias.add_(1)
    average.update(0)  # decay min(0.5, 1 / 10): a tenth of the past
    torch.testing.assert_close(average.model.head.bias, start + 0.9)
    average.update(100)  # decay min(0.5, 101 / 110)
    torch.testing.assert_close(average.model.head.bias, start + 0.95)
    assert not any(p.requires_grad for p in average.model.parameters())
