"""Equalisation: a channel that sets a tensor's range alone is drawn in, nothing changes in float, and it pays."""

from __future__ import annotations

import pytest
import torch
from toys import SmoothBatches, random_model

from edgekit.compress.equalise import equalise
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.quantize import observe
from edgekit.compress.scheme import Scheme
from edgekit.models.base import DenoiserModel
from edgekit.recipe import QuantizeSettings

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
    before = {name: value.clone() for name, value in program.module.state_dict().items() if ".scale" not in name}
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


def test_calibration_equalises_unless_told_not_to() -> None:
    model = plain()
    stretch(model, "model.2", ["model.4"], [3, 7], 50.0)
    assert error(observed(model, equalisation=True), model) < error(observed(model), model) / 3


def test_a_layer_that_runs_twice_stays() -> None:
    model = plain()
    stretch(model, "model.2", ["model.4"], [3, 7], 50.0)
    # What is scaled for one of its inputs would be scaled for the other.
    model.model[4] = model.model[2]
    assert "model.2" not in equalise(observed(model), OBSERVED)
