"""Equalisation: a channel that sets a tensor's range alone is drawn in, nothing changes in float, and it pays."""

from __future__ import annotations

import pytest
import torch
from toys import SmoothBatches, random_model

from edgekit.compress import equalise as module
from edgekit.compress.equalise import equalise
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.quantize import observe
from edgekit.compress.scheme import Scheme
from edgekit.models.base import DenoiserModel
from edgekit.recipe import QuantizeSettings
from edgekit.targets import registry as targets

RANGE = (0.0, 55 / 255)
OBSERVED = [SmoothBatches()(step) for step in range(3)]


def plain() -> DenoiserModel:
    """A chain of plain convolutions with a ReLU between any two."""
    return random_model("dncnn-color-blind", widths=[16] * 3)


def stretch(model: DenoiserModel, layer: str, readers: list[str], channels: list[int], factor: float) -> None:
    """Make channels larger and their readers' weights smaller: in float the same network."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        modules[layer].weight[channels] *= factor
        modules[layer].bias[channels] *= factor
        for reader in readers:
            depthwise = modules[reader].weight.shape[1] == 1
            modules[reader].weight[channels if depthwise else (slice(None), channels)] /= factor


def observed(model: DenoiserModel, **settings: object) -> QuantizedProgram:
    program = QuantizedProgram(model, Scheme("t"), RANGE)
    observe(program, OBSERVED, QuantizeSettings(**{"bias_correction": False, "equalisation": False, **settings}))
    return program


def error(program: QuantizedProgram, model: DenoiserModel) -> float:
    """Of all that is rounded inside: the output of random weights is no image, and would be cut."""
    batch = SmoothBatches()(9)
    inside = [bounds for _, bounds in program.tensors()]
    weights = [layer.weight for layer in program.layers() if layer.weight is not None]
    with program.only(*inside, *weights), torch.no_grad():
        return float((program(batch.noisy, batch.sigma) - model(batch.noisy, batch.sigma)).square().mean().sqrt())


@pytest.mark.parametrize("fit", [True, False])
def test_a_stretched_channel_is_drawn_in(fit: bool) -> None:
    model = plain()
    whole = error(observed(model), model)
    stretch(model, "model.2", ["model.4"], [3, 7], 50.0)
    program = observed(model)
    before = error(program, model)
    changed = equalise(program, OBSERVED, fit=fit)
    assert 0 < changed["model.2"] < 0.2
    assert before > 3 * whole  # the stretch does harm
    assert error(program, model) < 1.1 * whole
    weight = program.module.get_parameter("model.2.weight").detach()
    stretched = dict(model.named_modules())["model.2"].weight.detach()
    assert (weight[[3, 7]].abs().amax((1, 2, 3)) < stretched[[3, 7]].abs().amax((1, 2, 3)) / 10).all()


def test_in_float_nothing_changes() -> None:
    model = plain()
    stretch(model, "model.2", ["model.4"], [3, 7], 50.0)
    program = observed(model)
    assert equalise(program, OBSERVED)
    batch = SmoothBatches()(9)
    with program.in_float(), torch.no_grad():
        torch.testing.assert_close(
            program(batch.noisy, batch.sigma), model(batch.noisy, batch.sigma), rtol=1e-4, atol=1e-5
        )


def test_what_does_not_pay_stays_to_the_bit() -> None:
    model = plain()
    with torch.no_grad():
        # Large because they are what counts: smaller ones would gain what nobody reads.
        dict(model.named_modules())["model.2"].weight[[3, 7]] *= 20
    program = observed(model)
    before = {name: value.clone() for name, value in program.module.state_dict().items()}
    assert equalise(program, OBSERVED) == {}
    after = program.module.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_three_depthwise_readers() -> None:
    model = random_model("pmrid")
    whole = error(observed(model), model)
    readers = ["enc1.0.conv1.depthwise", "enc1.0.proj.depthwise", "dec4.proj_conv.depthwise"]
    stretch(model, "conv0.conv", readers, [1, 5], 100.0)
    program = observed(model)
    before = error(program, model)
    assert "conv0.conv" in equalise(program, OBSERVED)
    assert before > 1.5 * whole
    assert error(program, model) < 1.2 * whole


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_grouped_readers_and_layers_without_biases(groups: int, bias: bool) -> None:
    model = plain()
    torch.manual_seed(3)
    for place in (2, 4):
        # Of all inputs or of a few, with biases or none.
        drawn = torch.nn.Conv2d(16, 16, 3, padding=1, groups=groups if place == 4 else 1, bias=bias)
        torch.nn.init.normal_(drawn.weight, 0, 0.1)
        model.model[place] = drawn
    batch = SmoothBatches()(9)
    with torch.no_grad():
        expected = model(batch.noisy, batch.sigma)
        # Two channels that different groups read, where there are groups.
        model.model[2].weight[[3, 9]] *= 200
        if bias:
            model.model[2].bias[[3, 9]] *= 200
        for channel in (3, 9):
            first = channel // (16 // groups) * (16 // groups)
            model.model[4].weight[first : first + 16 // groups, channel - first] /= 200
        torch.testing.assert_close(model(batch.noisy, batch.sigma), expected, rtol=1e-4, atol=1e-5)
    program = observed(model)
    before = error(program, model)
    assert "model.2" in equalise(program, OBSERVED)
    assert error(program, model) < before / 3
    with program.in_float(), torch.no_grad():
        torch.testing.assert_close(program(batch.noisy, batch.sigma), expected, rtol=1e-4, atol=1e-5)


def test_calibration_equalises_unless_told_not_to() -> None:
    model = plain()
    stretch(model, "model.2", ["model.4"], [3, 7], 50.0)
    assert error(observed(model, equalisation=True), model) < error(observed(model), model) / 3


def test_a_layer_that_runs_twice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    # What is scaled for one of its inputs would be scaled for the other.
    model.model[4] = model.model[2]
    program = observed(model)
    assert [link.name for link in program.links()] == ["model.0", "model.4", "model.4 (2)"]
    monkeypatch.setattr(module, "_WORTH", 1e9)
    assert equalise(program, OBSERVED) == {}


def test_a_shared_bias_is_not_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain()
    layers = dict(model.named_modules())
    layers["model.2"].bias = layers["model.4"].bias
    monkeypatch.setattr(module, "_WORTH", 1e9)
    assert equalise(observed(model), OBSERVED) == {}


def test_a_tensor_that_is_read_in_float_as_well_stays() -> None:
    # TensorRT rounds what a convolution reads, not what is set beside it.
    model = random_model("dsunet-n", widths=[8, 16], middle=[24], finish=16)
    program = QuantizedProgram(model, targets.get("tensorrt").scheme(), RANGE)
    assert "head" in [link.name for link in program.links()]
    assert "head" not in [link.name for link in module._scalable(program)]


@pytest.mark.parametrize("target", ["tflite", "openvino", "tensorrt"])
@pytest.mark.parametrize("name", ["dncnn-color-blind", "dsunet-n", "ffdnet-color", "nafnet-width8", "unet"])
def test_in_float_every_network_stays_what_it_was(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "dncnn-color-blind": {"widths": [8] * 3},
        "dsunet-n": {"widths": [8, 16], "middle": [24], "finish": 16},
        "ffdnet-color": {"widths": [8] * 3},
        "unet": {"widths": [8, 8], "encoder": [[8]], "middle": [8], "decoder": [[8]]},
    }
    model = random_model(name, **small.get(name, {}))
    program = QuantizedProgram(model, targets.get(target).scheme(), RANGE)
    observe(program, OBSERVED, QuantizeSettings(bias_correction=False, equalisation=False))
    monkeypatch.setattr(module, "_WORTH", 1e9)  # whatever it costs
    monkeypatch.setattr(module, "_LEAST", 0.0)
    assert equalise(program, OBSERVED)
    batch = SmoothBatches()(9)
    with program.in_float(), torch.no_grad():
        expected = model(batch.noisy, batch.sigma)
        torch.testing.assert_close(program(batch.noisy, batch.sigma), expected, rtol=1e-3, atol=1e-4)


def test_a_tensor_without_relu_keeps_its_extremes(monkeypatch: pytest.MonkeyPatch) -> None:
    # dsunet's depthwise layers write both signs; this channel is all negative.
    model = random_model("dsunet-n", widths=[8, 16], middle=[24], finish=16)
    with torch.no_grad():
        model.get_parameter("middle.0.depthwise.bias")[3] -= 30
        model.get_parameter("middle.0.expand.weight")[:, 3] /= 40
    program = observed(model, range_fit="extremes")
    bounds = next(bounds for name, bounds in program.tensors() if name == "middle.0.depthwise")
    lower, upper = (float((end * bounds.width).detach()) for end in (bounds.lower, bounds.upper))
    assert lower < -25
    monkeypatch.setattr(module, "_WORTH", 1e9)
    monkeypatch.setattr(module, "_LEAST", 0.0)
    assert "middle.0.depthwise" in equalise(program, OBSERVED, fit=False)
    after = [float((end * bounds.width).detach()) for end in (bounds.lower, bounds.upper)]
    assert lower / 2 < after[0] < 0
    assert after[1] <= upper * 1.0001


def test_it_comes_before_bias_correction() -> None:
    program = observed(plain(), bias_correction=True)
    with pytest.raises(ValueError, match="equalise first"):
        equalise(program, OBSERVED)
