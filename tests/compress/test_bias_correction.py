"""Bias correction: a tint that rounded weights make is gone, and the program in float is the model still."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toys import SmoothBatches

from edgekit.compress.bias_correction import correct_biases
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.models import create
from edgekit.models.base import DenoiserModel

RANGE = (0.0, 55 / 255)


def program(model: DenoiserModel, bits: int) -> QuantizedProgram:
    found = QuantizedProgram(model, Scheme("t", weight_bits=bits), RANGE)
    with found.in_float(), torch.no_grad():
        for step in range(2):
            batch = SmoothBatches()(step)
            found(batch.noisy, batch.sigma)
    for bounds in found.ranges:
        bounds.learn()
    return found


def tiny(**overrides: object) -> DenoiserModel:
    torch.manual_seed(0)
    model = create("dsunet-n", **{"widths": [8, 16], "middle": [24], "finish": 16, **overrides}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    return model


def tint(program: QuantizedProgram, model: DenoiserModel) -> float:
    """The largest mean error of a channel when weights alone are rounded."""
    batch = SmoothBatches()(5)
    weights = [layer.weight for layer in program.layers() if layer.weight is not None]
    with program.only(*weights), torch.no_grad():
        error: Tensor = program(batch.noisy, batch.sigma) - model(batch.noisy, batch.sigma)
    return float(error.mean((0, 2, 3)).abs().max())


def test_the_tint_of_rounded_weights_goes() -> None:
    model = tiny(finish=0)
    made = program(model, bits=4)  # coarse, so that there is one
    before = tint(made, model)
    correct_biases(made, [SmoothBatches()(step) for step in range(2)])
    assert tint(made, model) < before / 3


def test_one_layer_is_corrected_by_hand() -> None:
    # A pointwise layer that reads a constant image: the shift is the weights' error times that constant.
    model = tiny()
    made = program(model, bits=3)
    layer = next(layer for layer in made.layers() if layer.name == "head")
    assert layer.weight is not None
    weight, before = made.module.get_parameter("head.weight"), made.module.get_parameter("head.bias").clone()
    batch = SmoothBatches()(0)._replace(noisy=torch.full((2, 3, 32, 32), 0.5), sigma=torch.tensor([0.1, 0.1]))
    correct_biases(made, [batch])
    with torch.no_grad():
        expected = before - 0.5 * (layer.weight(weight) - weight).sum((1, 2, 3))
    torch.testing.assert_close(made.module.get_parameter("head.bias").detach(), expected.detach())


def test_means_are_of_all_batches() -> None:
    made = program(tiny(), bits=3)
    layer = next(layer for layer in made.layers() if layer.name == "head")
    assert layer.weight is not None
    weight, before = made.module.get_parameter("head.weight"), made.module.get_parameter("head.bias").clone()
    batches = [SmoothBatches()(0)._replace(noisy=torch.full((4, 3, 32, 32), level)) for level in (0.1, 0.2, 0.9)]
    correct_biases(made, batches)
    with torch.no_grad():
        expected = before - 0.4 * (layer.weight(weight) - weight).sum((1, 2, 3))
    torch.testing.assert_close(made.module.get_parameter("head.bias").detach(), expected.detach())


def test_in_float_the_program_is_the_model_and_afterwards_as_before() -> None:
    model = tiny()
    made = program(model, bits=4)
    correct_biases(made, [SmoothBatches()(0)])
    batch = SmoothBatches()(3)
    with torch.no_grad():
        before = made(batch.noisy, batch.sigma)
        with made.in_float():
            torch.testing.assert_close(made(batch.noisy, batch.sigma), model(batch.noisy, batch.sigma))
        torch.testing.assert_close(made(batch.noisy, batch.sigma), before, rtol=0, atol=0)


def test_depthwise_layers_and_gradients() -> None:
    made = program(tiny(), bits=4)
    before = made.module.get_parameter("middle.0.depthwise.bias").clone()
    correct_biases(made, [SmoothBatches()(0)])
    assert not torch.equal(made.module.get_parameter("middle.0.depthwise.bias"), before)
    batch = SmoothBatches()(1)
    made(batch.noisy, batch.sigma).sum().backward()
    assert made.module.get_parameter("middle.0.depthwise.bias").grad is not None
