"""Quantize: what QAT is worth, that it resumes, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from toys import random_model

from edgekit.batch import Batch
from edgekit.compress import ranges
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.qat import _loss, rates
from edgekit.compress.quantize import observe, quantize
from edgekit.compress.scheme import Scheme
from edgekit.compress.share import share
from edgekit.errors import CheckpointError, TrainingError
from edgekit.models import DenoiserModel, create, load
from edgekit.recipe import QuantizeSettings, Recipe
from edgekit.schedule import cosine
from edgekit.stage_data import open_stage_data

RANGE = (0.0, 55 / 255)
SCHEME = Scheme("tflite")


class StoppedError(Exception):
    """Stands for a killed process."""


def photographs() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Tiles of a free photograph, uint8 [K, 48, 48, 3]."""
    from skimage import data

    image = data.astronaut()[::2, ::2]
    return np.stack([image[r : r + 48, c : c + 48] for r in range(0, 240, 48) for c in range(0, 240, 48)])


def batches(step: int) -> Batch:
    """Four noisy tiles; the tiles to judge by are others."""
    rng = np.random.default_rng([7, step])
    clean = torch.from_numpy(photographs()[5:][rng.integers(0, 20, 4)]).permute(0, 3, 1, 2).float() / 255
    sigma = torch.from_numpy(rng.uniform(0, 55 / 255, 4)).float()
    noise = torch.from_numpy(rng.standard_normal(clean.shape)).float()
    noisy = ((clean + sigma[:, None, None, None] * noise).clamp(0, 1) * 255).round() / 255
    return Batch(clean, noisy, sigma)


def silent(done: int, total: int, text: str = "") -> None:
    pass


def run(
    model: DenoiserModel, steps: int, checkpoint: Path | None = None, progress: Any = silent, **changes: Any
) -> Any:
    settings = QuantizeSettings(
        steps=steps, calibration_batches=4, warmup=5, save_every=2, ema=0.9, rounding="nearest", **changes
    )
    return quantize(
        model, SCHEME, settings, batches, photographs()[:5], sigma_range=RANGE, progress=progress, checkpoint=checkpoint
    )


def tiny() -> DenoiserModel:
    torch.manual_seed(0)
    model = create("dsunet-n", widths=[8, 16], encoder=[[]], middle=[24], decoder=[[16]], up_width=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    return model.eval()


def test_a_frozen_model_learns_as_any_other() -> None:
    # As an average of weights is, which `edgekit.train` and `finetune` hand over.
    free, frozen = (run(tiny().requires_grad_(learns), steps=6)[0] for learns in (True, False))
    at_first = QuantizedProgram(tiny(), SCHEME, RANGE).module.state_dict()
    ends = frozen.module.state_dict()
    for name, _ in tiny().named_parameters():
        assert torch.equal(free.module.state_dict()[name], ends[name]), name
        assert not torch.equal(at_first[name], ends[name]), name


def test_qat_beats_calibration_alone() -> None:
    model = load("dsunet-s")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    _, record = run(model, steps=150)
    # Sigma 5 is where calibration alone loses most, over 1 dB; 150 steps win back a good part, far above their noise.
    assert record.db_after[5] > record.details["db_calibrated"]["5"] + 0.1
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=0)


def test_the_loss_is_the_root_of_the_share_of_the_float_models_own_error() -> None:
    model, batch = tiny(), batches(0)
    program = QuantizedProgram(model, SCHEME, RANGE)
    with torch.no_grad():
        program(batch.noisy, batch.sigma)
    for bounds in program.ranges:
        bounds.learn()
    with program.in_float(), torch.no_grad():
        assert float(_loss(program, model, QuantizeSettings(), batch)) == pytest.approx(0.01, rel=1e-4)
        # Beside an output that is the clean image, everything is error.
        own = [float((model(batch.noisy, batch.sigma) - batch.clean)[k].square().mean()) for k in range(4)]
        shifted = lambda noisy, sigma: model(noisy, sigma) + 0.01  # noqa: E731
        found = float(_loss(shifted, model, QuantizeSettings(), batch))  # type: ignore[arg-type]
    assert found == pytest.approx(np.mean([(1e-4 / (e + 1 / 255**2 / 12) + 1e-4) ** 0.5 for e in own]), rel=1e-3)


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing would tell the integers what to do"):
        QuantizeSettings(teacher_weight=0)
    assert QuantizeSettings(teacher_weight=0, steps=0).steps == 0


def test_rates_are_in_units_of_a_layers_scale() -> None:
    model = tiny()
    with torch.no_grad():
        model.head.weight.fill_(0.3)  # type: ignore[union-attr, operator]
        model.tail.weight.fill_(0.6)  # type: ignore[union-attr, operator]
    found = rates(QuantizedProgram(model, SCHEME, RANGE), 0.5)
    # 12 channels of 3x3 in, weights of 0.3: 0.5 * 0.3 / sqrt(108); the bias goes with its layer.
    assert found["head.weight"] == pytest.approx(0.5 * 0.3 / 108**0.5)
    assert found["head.bias"] == found["head.weight"]
    # 32 channels of 3x3, weights of 0.6.
    assert found["tail.weight"] == pytest.approx(0.5 * 0.6 / 288**0.5)


class _Scaled(DenoiserModel):
    """A transposed convolution, and numbers that are no convolution's."""

    arch, source, channels, stride, halo = "scaled", "test", 3, 2, 4

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 2, stride=2)
        self.slope = nn.Parameter(torch.tensor([0.2]))
        self.up = nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)
        nn.init.constant_(self.up.weight, 0.1)

    def config(self) -> dict[str, Any]:
        return {}

    def _run(self, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        x = self.down(noisy)
        clean: torch.Tensor = noisy - self.up(torch.relu(x) - self.slope * torch.relu(-x))
        return clean


def test_rates_of_a_transposed_convolution_and_of_what_is_none() -> None:
    found = rates(QuantizedProgram(_Scaled().eval(), SCHEME, RANGE), 1.0)
    # Of 8 channels of 4x4 taps an output sees a quarter, stride 2 by 2.
    assert found["up.weight"] == pytest.approx(0.1 / (8 * 16 / 4) ** 0.5)
    assert set(found) == {"down.weight", "down.bias", "up.weight", "up.bias"}


def test_a_layer_of_zeros_learns_at_the_middle_rate() -> None:
    model = tiny()
    torch.nn.init.zeros_(model.tail.weight)  # type: ignore[union-attr, arg-type]
    found = rates(QuantizedProgram(model, SCHEME, RANGE), 1.0)
    assert min(found.values()) < found["tail.weight"] < max(found.values())


def test_weights_stand_still_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.compress.qat._FEWEST_SETTLING", 1)
    kept: dict[int, dict[str, torch.Tensor]] = {}
    model = tiny()
    program: list[QuantizedProgram] = []

    def watch(done: int, total: int, text: str = "") -> None:
        kept[done] = {name: value.detach().clone() for name, value in program[0].module.named_parameters()}

    settings = QuantizeSettings(steps=9, calibration_batches=2, warmup=0, settle_share=1 / 3)
    quantize(
        model, SCHEME, settings, batches, photographs()[:2], sigma_range=RANGE, progress=watch,
        on_calibrated=program.append,
    )  # fmt: skip
    weights = [name for name in kept[9] if name.endswith(".weight")]
    biases = [name for name in kept[9] if name.endswith(".bias")]
    assert all(not torch.equal(kept[6][name], kept[1][name]) for name in weights)
    assert all(torch.equal(kept[9][name], kept[7][name]) for name in weights)
    assert all(not torch.equal(kept[9][name], kept[7][name]) for name in biases)
    assert all(p.requires_grad for p in program[0].module.parameters() if p.dim() > 1)


def chain() -> DenoiserModel:
    return random_model("dncnn-color-blind", widths=[8, 8])


def test_each_phase_ends_with_the_average_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.compress.qat._FEWEST_SETTLING", 1)
    program: list[QuantizedProgram] = []
    raw: list[dict[str, Tensor]] = []

    def keep() -> None:
        raw.append({name: value.detach().clone() for name, value in program[0].module.named_parameters()})

    def begin(made: QuantizedProgram) -> None:
        program.append(made)
        keep()

    settings = QuantizeSettings(steps=6, calibration_batches=2, warmup=0, settle_share=1 / 3)
    quantize(
        chain(), SCHEME, settings, batches, photographs()[:1], sigma_range=RANGE, on_calibrated=begin,
        progress=lambda done, total, text="": keep() if text.startswith("loss") else None,
    )  # fmt: skip

    def averaged(start: Tensor, steps: list[Tensor]) -> Tensor:
        for step, value in enumerate(steps):
            decay = (1 + step) / (10 + step)
            start = decay * start + (1 - decay) * value
        return start

    differ = set()
    for name, end in program[0].module.named_parameters():
        expected, last = averaged(raw[0][name], [step[name] for step in raw[1:5]]), raw[4][name]
        # Weights stand still in the second phase; what moves in it starts at the first one's average.
        if not name.endswith(".weight"):
            expected, last = averaged(expected, [step[name] for step in raw[5:]]), raw[6][name]
        torch.testing.assert_close(end.detach(), expected, rtol=1e-6, atol=1e-7)
        if not torch.equal(end, last):
            differ.add(name.rpartition(".")[2])
    assert differ == {"weight", "bias", "lower", "upper"}


def test_each_phase_has_a_schedule_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.compress.qat._FEWEST_SETTLING", 1)
    seen = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append({round(group["lr"] / group["peak"], 9) for group in optimizer.param_groups})
    )
    try:
        run(chain(), 6, settle_share=1 / 3)
    finally:
        hook.remove()
    assert seen == [{round(cosine(step, phase, 1.0), 9)} for phase in (4, 2) for step in range(phase)]


def test_every_step_learns_from_a_batch_of_its_own() -> None:
    asked = []

    def watched(step: int) -> Batch:
        asked.append(step)
        return batches(step)

    settings = QuantizeSettings(steps=3, calibration_batches=2)
    quantize(chain(), SCHEME, settings, watched, photographs()[:1], sigma_range=RANGE)
    assert asked == [0, 1, 2, 3, 4]


def test_no_steps_is_calibration_alone() -> None:
    _, record = run(tiny(), steps=0)
    assert {str(s): db for s, db in record.db_after.items()} == record.details["db_calibrated"]
    assert "calibration alone" in record.what
    assert "together" not in record.what


def test_without_training_weights_are_rounded_together() -> None:
    settings = QuantizeSettings(steps=0, calibration_batches=4)
    _, record = quantize(tiny(), SCHEME, settings, batches, photographs()[:5], sigma_range=RANGE)
    assert record.what.endswith("calibration alone, weights of a layer rounded together")
    assert set(record.details["rounded"]) >= {"head", "tail"}
    assert max(record.details["rounded"].values()) <= 1


def test_a_killed_run_resumes_to_the_same_program(tmp_path: Path) -> None:
    whole, _ = run(tiny(), steps=5)

    def stop(done: int, total: int, text: str = "") -> None:
        if done == 3:
            raise StoppedError

    checkpoint = tmp_path / "quantize.ckpt"
    with pytest.raises(StoppedError):
        run(tiny(), 5, checkpoint, stop)
    resumed, _ = run(tiny(), 5, checkpoint)
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(resumed.module.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("last", [2, 4, 5])
def test_resumed_before_at_and_behind_the_end_of_a_phase(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.compress.qat._FEWEST_SETTLING", 1)
    monkeypatch.setattr("edgekit.compress.qat._SETTLED_EMA", 0.5)

    def learned(checkpoint: Path | None, progress: Any = silent) -> Any:
        settings = QuantizeSettings(steps=6, calibration_batches=2, warmup=1, save_every=1, settle_share=1 / 3)
        program, _ = quantize(
            tiny(), SCHEME, settings, batches, photographs()[:1], sigma_range=RANGE, progress=progress,
            checkpoint=checkpoint,
        )  # fmt: skip
        return program.module.state_dict()

    def stop(done: int, total: int, text: str = "") -> None:
        if done == last:
            raise StoppedError

    with pytest.raises(StoppedError):
        learned(tmp_path / "quantize.ckpt", stop)
    resumed = learned(tmp_path / "quantize.ckpt")
    for name, value in learned(None).items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_a_checkpoint_knows_its_run_in_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The order of a set changes with the hash seed, that of its text too.
    told: list[Any] = []
    monkeypatch.setattr("edgekit.compress.quantize.fingerprint", lambda *_, **named: told.append(named) or "run")
    wide = Scheme("tflite", wide=frozenset({"tail", "head", "down.0"}))
    settings = QuantizeSettings(steps=1, calibration_batches=1, warmup=0)
    quantize(tiny(), wide, settings, batches, photographs()[:1], sigma_range=RANGE, progress=silent)
    assert told[0]["scheme"]["wide"] == ["down.0", "head", "tail"]


def test_activations_that_overflow_are_refused() -> None:
    model = tiny()
    torch.nn.init.constant_(model.tail.weight, 1e38)  # type: ignore[union-attr, arg-type]
    with pytest.raises(TrainingError, match="expected finite values"):
        run(model, steps=2)


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * float("nan")


def test_a_gradient_that_is_nan_keeps_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "quantize.ckpt"
    seen = []

    def poisoned(*arguments: Any) -> torch.Tensor:
        seen.append(path.read_bytes() if path.exists() else b"")
        loss = _loss(*arguments)
        return loss if len(seen) < 3 else _NaNGradient.apply(loss)

    monkeypatch.setattr("edgekit.compress.qat._loss", poisoned)
    settings = QuantizeSettings(steps=4, calibration_batches=1, save_every=1)
    with pytest.raises(TrainingError, match=r"quantize: the gradient became nan at step 2 .* good checkpoint is"):
        quantize(
            tiny(),
            SCHEME,
            settings,
            batches,
            photographs()[:5],
            sigma_range=RANGE,
            progress=silent,
            checkpoint=path,
        )
    assert path.read_bytes() == seen[2]


def test_a_loss_that_is_nan_stops_and_says_where() -> None:
    def poisoned(step: int) -> Batch:
        batch = batches(step)
        return batch if step < 6 else batch._replace(clean=batch.clean * float("nan"))

    settings = QuantizeSettings(steps=4, calibration_batches=4, warmup=1)
    with pytest.raises(TrainingError, match="quantize: the loss became nan at step 2"):
        quantize(tiny(), SCHEME, settings, poisoned, photographs()[:5], sigma_range=RANGE, progress=silent)


def test_the_record_says_whose_channels_were_equalised() -> None:
    model = random_model("dncnn-color-blind", widths=[16] * 3)
    with torch.no_grad():
        model.get_parameter("model.2.weight")[3] *= 50
        model.get_parameter("model.2.bias")[3] *= 50
        model.get_parameter("model.4.weight")[:, 3] /= 50
    settings = QuantizeSettings(steps=0, calibration_batches=2)
    _, record = quantize(model, SCHEME, settings, batches, photographs()[:2], sigma_range=RANGE)
    equalised = record.details["equalised"]
    assert 0 < equalised["model.2"] < 0.2
    assert f"channels of {len(equalised)} tensors equalised, calibration alone" in record.what
    asked = settings.model_copy(update={"equalisation": False})
    _, plain = quantize(model, SCHEME, asked, batches, photographs()[:2], sigma_range=RANGE)
    assert "equalised" not in plain.details
    assert "equalised" not in plain.what


def test_what_the_defaults_replaced_can_be_asked_for() -> None:
    observed = [batches(step) for step in range(2)]
    made = {}
    for name, changes in {
        "default": {},
        "extremes": {"range_fit": "extremes"},
        "uncorrected": {"bias_correction": False},
    }.items():
        made[name] = QuantizedProgram(tiny(), SCHEME, RANGE)
        observe(made[name], observed, QuantizeSettings(steps=0, **changes))
    widths = {name: sum(float(b.width) for b in program.ranges) for name, program in made.items()}
    assert widths["extremes"] > 1.02 * widths["default"]
    assert widths["uncorrected"] == widths["default"]
    biases = {name: program.module.get_parameter("tail.bias") for name, program in made.items()}
    assert torch.equal(biases["uncorrected"], tiny().get_parameter("tail.bias"))
    assert not torch.equal(biases["default"], biases["uncorrected"])
    sigma = torch.cat([batch.sigma for batch in observed])
    assert made["default"].observed == (float(sigma.min()), float(sigma.max()))


@pytest.mark.parametrize(("bias_correction", "equalisation"), [(True, True), (False, False)])
def test_without_training_the_fit_that_loses_least_is_kept(bias_correction: bool, equalisation: bool) -> None:
    # Among these batches are crops of clutter under faint noise, which make the last block reach five times as far.
    model, data = load("dsunet-s").eval(), open_stage_data(Recipe(target="tflite", model="dsunet-s", seed=2), 3)
    observed = [data.batches(step) for step in range(8)]
    lost, programs = {}, {}
    for fit in ("least-squares", "per-image", "auto"):
        programs[fit] = program = QuantizedProgram(model, SCHEME, RANGE)
        settings = QuantizeSettings(steps=0, range_fit=fit, equalisation=equalisation, bias_correction=bias_correction)
        observe(program, observed, settings)
        with torch.no_grad():
            shares = [share(program(b.noisy, b.sigma), model(b.noisy, b.sigma), b.clean) for b in observed]
        lost[fit] = 10 * float(torch.log10(1 + torch.cat(shares)).mean())
    assert programs["auto"].range_fit == "per-image"
    assert [float(b.width) for b in programs["auto"].ranges] == [float(b.width) for b in programs["per-image"].ranges]
    assert lost["auto"] == lost["per-image"]
    assert lost["per-image"] < 0.5 * lost["least-squares"]


def test_a_fit_that_was_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_lost", None)
    for fit in ("least-squares", "per-image", "extremes"):
        program = QuantizedProgram(tiny(), SCHEME, RANGE)
        observe(program, [batches(0)], QuantizeSettings(steps=0, range_fit=fit))
        assert program.range_fit == fit
        assert all(bounds.fixed or bounds.lower.requires_grad for bounds in program.ranges)


def test_least_squares_where_it_loses_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_lost", lambda program, observed, taught, fit, correct: float(fit == "per-image"))
    made = {}
    for fit in ("auto", "least-squares"):
        made[fit] = QuantizedProgram(tiny(), SCHEME, RANGE)
        observe(made[fit], [batches(0)], QuantizeSettings(steps=0, range_fit=fit))
    assert made["auto"].range_fit == "least-squares"
    assert [float(b.width) for b in made["auto"].ranges] == [float(b.width) for b in made["least-squares"].ranges]


def test_where_training_follows_ranges_begin_by_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_lost", lambda program, observed, taught, fit, correct: float(fit != "per-image"))
    program = QuantizedProgram(tiny(), SCHEME, RANGE)
    observe(program, [batches(0)], QuantizeSettings(steps=5))
    assert program.range_fit == "least-squares"


def test_auto_and_what_it_means_are_one_run(tmp_path: Path) -> None:
    checkpoint = tmp_path / "qat.pt"
    run(tiny(), 4, checkpoint)
    # Not refused as that of another run: with steps both are the same.
    run(tiny(), 4, checkpoint, range_fit="least-squares")
    with pytest.raises(CheckpointError, match="other settings"):
        run(tiny(), 4, checkpoint, range_fit="extremes")


def test_the_record_says_how_ranges_were_fitted() -> None:
    _, record = run(tiny(), 0, range_fit="per-image")
    assert record.details["range_fit"] == "per-image"
    assert "ranges fitted image by image" in record.what
    _, record = run(tiny(), 0, range_fit="least-squares")
    assert "image by image" not in record.what
