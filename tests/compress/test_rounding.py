"""Rounding a layer's weights together: less error than the nearest integers, and no pair that saturates."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from toys import SmoothBatches

from edgekit.compress.fake_quant import ChannelWeights
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.quantize import observe
from edgekit.compress.rounding import round_together
from edgekit.compress.scheme import Scheme
from edgekit.models import create
from edgekit.models.base import DenoiserModel
from edgekit.recipe import QuantizeSettings

RANGE = (0.0, 55 / 255)
OBSERVED = [SmoothBatches()(step) for step in range(3)]


def tiny() -> DenoiserModel:
    torch.manual_seed(0)
    model = create("dsunet-n", widths=[8, 16], middle=[24], finish=16).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    return model


def calibrated(model: DenoiserModel, scheme: Scheme, **settings: bool) -> QuantizedProgram:
    program = QuantizedProgram(model, scheme, RANGE)
    observe(program, OBSERVED, QuantizeSettings(steps=0, equalisation=False, **settings))
    return program


def error(program: QuantizedProgram, model: DenoiserModel) -> float:
    """Mean squared, when weights alone are rounded, on images that rounding did not see."""
    batch = SmoothBatches()(7)
    weights = [layer.weight for layer in program.layers() if layer.weight is not None]
    for bounds in program.ranges:
        bounds.fake_quant_enabled[0] = 0
    with torch.no_grad():
        found: Tensor = program(batch.noisy, batch.sigma) - model(batch.noisy, batch.sigma)
    assert all(int(quantizer.fake_quant_enabled[0]) for quantizer in weights)
    return float(found.square().mean())


@pytest.mark.parametrize("correction", [True, False])
def test_less_is_lost_than_to_the_nearest(correction: bool) -> None:
    model, scheme = tiny(), Scheme("t", weight_bits=4)
    nearest = calibrated(model, scheme, bias_correction=correction)
    together = calibrated(model, scheme, bias_correction=correction)
    found = round_together(together, model, OBSERVED)
    assert error(together, model) < 0.5 * error(nearest, model)
    assert set(found) == {layer.name for layer in together.layers() if layer.weight is not None}
    assert all(gain <= 1 for gain in found.values())
    assert found["tail"] < 0.7


def test_weights_are_integers_that_stay() -> None:
    model = tiny()
    program = calibrated(model, Scheme("t", weight_bits=5))
    round_together(program, model, OBSERVED)
    for layer in program.layers():
        assert layer.weight is not None
        weight = program.module.get_parameter(f"{layer.name}.weight").detach()
        integers = weight / layer.weight.scale.view(-1, 1, 1, 1)
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
        assert integers.abs().max() <= 15.001
        assert torch.equal(layer.weight(weight), copy.deepcopy(layer.weight)(weight))
    batch = SmoothBatches()(7)
    with torch.no_grad():
        found = program.converted()(batch.noisy, batch.sigma)
        torch.testing.assert_close(found, program(batch.noisy, batch.sigma), rtol=0, atol=0.02)


def test_pairs_do_not_saturate() -> None:
    model = tiny()
    program = calibrated(model, Scheme("t", paired=True))
    kinds = set()
    round_together(program, model, OBSERVED)
    for layer in program.layers():
        quantizer = layer.weight
        assert isinstance(quantizer, ChannelWeights)
        if quantizer.pairs is None:
            continue
        kinds.add(quantizer.pairs)
        weight = program.module.get_parameter(f"{layer.name}.weight").detach()
        integers = (weight / quantizer.scale.view(-1, 1, 1, 1)).round()
        for signed in (integers.clamp(min=0), -integers.clamp(max=0)):
            two = signed.topk(2, 1).values.sum(1) if quantizer.pairs == "any" else signed[:, 0::2] + signed[:, 1::2]
            assert two.max() <= 128, layer.name
    assert kinds == {"neighbours", "any"}


def test_a_single_weight_goes_to_the_nearest() -> None:
    # What one input writes nothing makes up for.
    model = tiny()
    program = calibrated(model, Scheme("t", weight_bits=3))
    layer = next(layer for layer in program.layers() if layer.name == "sigma_bias")
    assert layer.weight is not None
    before = layer.weight(program.module.get_parameter("sigma_bias.weight")).detach().clone()
    round_together(program, model, OBSERVED)
    torch.testing.assert_close(program.module.get_parameter("sigma_bias.weight").detach(), before)
