"""Rounding a layer's weights together: less error than the nearest integers, and no pair that saturates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import SmoothBatches, random_model

from edgekit.batch import Batch
from edgekit.compress.fake_quant import ChannelWeights
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.quantize import observe
from edgekit.compress.rounding import _descend, _Seen, round_together
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
    told: list[tuple[int, int]] = []
    found = round_together(together, model, OBSERVED, lambda done, total, text="": told.append((done, total)))
    assert error(together, model) < 0.5 * error(nearest, model)
    assert {"head", "tail"} <= set(found) <= {layer.name for layer in together.layers()}
    assert all(0 < gain < 1 for gain in found.values())
    assert found["tail"] < 0.7
    assert told[-1] == (len(told), len(told))


def rounded(model: DenoiserModel, observed: list[Batch]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What was found on some batches, and the weights of the layers that were rounded together."""
    program = calibrated(model, Scheme("t", weight_bits=4))
    found = round_together(program, model, observed)
    return found, {name: program.module.get_parameter(f"{name}.weight").detach() for name in found}


def test_the_last_batch_judges_and_has_no_say() -> None:
    model = random_model("dncnn-color-blind", widths=[8, 8])
    judge = OBSERVED[2]._replace(noisy=1 - OBSERVED[2].noisy)
    (first, weights), (second, others) = (rounded(model, [*OBSERVED[:2], last]) for last in (OBSERVED[2], judge))
    assert first.keys() == second.keys() == {"model.0", "model.2", "model.4"}
    for name, share in first.items():
        assert torch.equal(weights[name], others[name]), name
        assert share != second[name]


def test_images_that_the_model_denoises_well_count_most() -> None:
    model = random_model("dncnn-color-blind", widths=[8, 8])

    def batch(step: int) -> Batch:
        """An image that the model denoises without a fault, and one that it is far away from."""
        _, noisy, sigma = SmoothBatches(count=2)(step)
        with torch.no_grad():
            return Batch(model(noisy, sigma) + torch.tensor([0, 100]).view(2, 1, 1, 1), noisy, sigma)

    mixed = [batch(step) for step in range(3)]
    good, bad = ([Batch(*(part[k : k + 1] for part in both)) for both in mixed] for k in range(2))
    _, weights = rounded(model, mixed)
    for alone, same in ((good, True), (bad, False)):
        _, others = rounded(model, alone)
        assert all(torch.equal(weights[name], others[name]) is same for name in ("model.0", "model.2", "model.4"))


def test_weights_are_integers_that_stay() -> None:
    model = tiny()
    program = calibrated(model, Scheme("t", weight_bits=5))
    found = round_together(program, model, OBSERVED)
    for layer in program.layers():
        if layer.name not in found:
            continue
        assert layer.weight is not None
        weight = program.module.get_parameter(f"{layer.name}.weight").detach()
        scale = layer.weight.scale.clone()
        integers = weight / scale.view(-1, 1, 1, 1)
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
        assert integers.abs().max() <= 15.001
        torch.testing.assert_close(layer.weight(0.31 * weight), (0.31 * integers).round() * scale.view(-1, 1, 1, 1))
        assert torch.equal(layer.weight.scale, scale)
    batch = SmoothBatches()(7)
    with torch.no_grad():
        converted = program.converted()(batch.noisy, batch.sigma)
        torch.testing.assert_close(converted, program(batch.noisy, batch.sigma), rtol=0, atol=1e-5)
        with program.in_float():
            program(batch.noisy, batch.sigma)


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
            for order in quantizer.pairs:
                two = signed[:, order[0::2]] + signed[:, order[1::2]]
                assert two.max() <= 128, layer.name
    # The image's channels are numbered by the place in the block in the file.
    assert (0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11) in {order for kind in kinds for order in kind}


def test_inputs_that_have_nothing_in_common_go_to_the_nearest() -> None:
    weight = torch.randn(5, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = ChannelWeights(bits=3)
    quantizer(weight)
    power = torch.diag_embed(torch.linspace(0.5, 3, 54).double())[None]
    found = _descend(quantizer, weight, _Seen("w", None, power, torch.zeros(1, 54).double(), 1.0), centred=False)
    torch.testing.assert_close(found, (weight / quantizer.scale.view(-1, 1, 1, 1)).round().clamp(-3, 3))


def test_two_inputs_that_are_one_share_their_error() -> None:
    # 0.4 and 0.4 of the same number are 0.8 of it: one of them goes up.
    weight = torch.tensor([[0.4, 0.4, 3.0]]).view(1, 3, 1, 1)
    quantizer = ChannelWeights(bits=3)
    quantizer(weight)
    assert float(quantizer.scale) == 1
    same = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]).double()
    found = _descend(quantizer, weight, _Seen("w", None, same, torch.zeros(1, 3).double(), 1.0), centred=False)
    assert sorted(found.flatten().tolist()) == [0, 1, 3]


class _Odd(DenoiserModel):
    """Dilated, grouped and channelwise convolutions, channels in the batch, a dead channel and a layer of zeros."""

    arch, source, channels, stride, halo = "odd", "test", 3, 1, 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Conv2d(3, 8, 3, padding=2, dilation=2, bias=False)
        self.each = nn.Conv2d(1, 1, 3, padding=1)
        self.dead = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.zero = nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            self.dead.weight[3] = 0
            self.dead.bias[3] = 0.7  # type: ignore[index]
            self.zero.weight.zero_()

    def config(self) -> dict[str, Any]:
        return {}

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        n, _, height, width = noisy.shape
        x = self.each(noisy.reshape(n * 3, 1, height, width)).reshape(n, 3, height, width)
        x = self.grouped(self.depthwise(torch.relu(self.dead(self.wide(x)))))
        clean: Tensor = noisy - self.zero(x) - 0.1 * x[:, :3]
        return clean


def test_odd_layers_are_no_worse() -> None:
    model, scheme = _Odd().eval(), Scheme("t", weight_bits=4)
    nearest, together = calibrated(model, scheme), calibrated(model, scheme)
    before = together.module.get_parameter("depthwise.weight").detach().clone()
    found = round_together(together, model, OBSERVED)
    assert {"grouped", "wide"} <= set(found)
    assert "zero" not in found
    moved = together.module.get_parameter("depthwise.weight").detach() - before
    scale = next(layer.weight.scale for layer in together.layers() if layer.name == "depthwise")  # type: ignore[union-attr]
    assert (moved.flatten().abs() <= 1.01 * scale).all()
    assert error(together, model) <= error(nearest, model)


def test_one_batch_is_too_few() -> None:
    model = tiny()
    program = calibrated(model, Scheme("t"))
    before = program.module.get_parameter("tail.weight").detach().clone()
    assert round_together(program, model, OBSERVED[:1]) == {}
    assert torch.equal(program.module.get_parameter("tail.weight"), before)
