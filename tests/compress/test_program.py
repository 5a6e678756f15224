"""The quantized program: what is quantized, what stays wide, and that converting it changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edgekit.compress.program import QuantizedProgram
from edgekit.compress.qat import rates
from edgekit.compress.scheme import Scheme
from edgekit.errors import RecipeError
from edgekit.models import create
from edgekit.models.base import DenoiserModel
from edgekit.targets import registry as targets

RANGE = (0.0, 55 / 255)


def tiny() -> DenoiserModel:
    torch.manual_seed(0)
    model = create(
        "dsunet-n", widths=[8, 16], encoder=[[]], middle=[24], decoder=[[16]], up_width=0, finish=0, sigma_level=0
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    return model.eval()


def observed(scheme: Scheme) -> tuple[QuantizedProgram, torch.Tensor, torch.Tensor]:
    noisy, sigma = torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0)), torch.tensor([0.02, 0.1, 0.2])
    program = QuantizedProgram(tiny(), scheme, RANGE)
    with program.in_float(), torch.no_grad():
        program(noisy, sigma)
    for bounds in program.ranges:
        bounds.learn()
    return program, noisy, sigma


def test_layers_are_the_convolutions_by_module_path_in_the_order_they_run() -> None:
    program, _, _ = observed(Scheme("t"))
    assert [layer.name for layer in program.layers()] == [
        "head",
        "sigma_bias",
        "down.0",
        "middle.0.depthwise",
        "middle.0.expand",
        "middle.0.project",
        "up.0",
        "decoder.0.0.depthwise",
        "decoder.0.0.expand",
        "decoder.0.0.project",
        "tail",
    ]
    assert all(layer.weight is not None for layer in program.layers())


def test_in_float_it_is_the_model() -> None:
    program, noisy, sigma = observed(Scheme("t"))
    with program.in_float(), torch.no_grad():
        torch.testing.assert_close(program(noisy, sigma), tiny()(noisy, sigma))


def test_quantized_it_is_not_and_its_output_is_on_the_8_bit_grid() -> None:
    program, noisy, sigma = observed(Scheme("t"))
    with torch.no_grad():
        result = program(noisy, sigma)
        assert not torch.equal(result, tiny()(noisy, sigma))
    torch.testing.assert_close(result * 255, (result * 255).round())
    assert result.min() >= 0
    assert result.max() <= 1


def test_converting_changes_no_value() -> None:
    program, noisy, sigma = observed(Scheme("t"))
    with torch.no_grad():
        torch.testing.assert_close(program.converted()(noisy, sigma), program(noisy, sigma), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 24, 24), (2, 3, 64, 20)])
def test_batch_and_size_are_dynamic(shape: tuple[int, ...]) -> None:
    program, _, _ = observed(Scheme("t"))
    assert program(torch.rand(shape), torch.full((shape[0],), 0.1)).shape == shape


def test_a_wide_layer_keeps_its_weights_in_float() -> None:
    program, _, _ = observed(Scheme("t", wide=frozenset({"tail"})))
    integers = {str(n.args[0]) for n in program.converted().graph.nodes if "quantize_per_channel" in str(n.target)}
    assert any("head" in name for name in integers)
    assert not any("tail" in name for name in integers)


def test_symmetric_scheme_has_zero_points_of_zero() -> None:
    program, _, _ = observed(Scheme("t", symmetric_activations=True, every_tensor=False, quantized_io=False))
    assert {int(r.calculate_qparams()[1]) for r in program.ranges} == {0}


@pytest.mark.parametrize("name", ["tflite", "openvino", "tensorrt"])
def test_integers_of_sigma_reach_the_upper_end_whatever_was_observed(name: str) -> None:
    program, _, sigma = observed(targets.get(name).scheme())
    (reach,) = {b.ends()[1] for b in program.ranges if b.fixed and b.ends()[1] < 1}
    assert sigma.max() < reach
    assert reach == pytest.approx(55 / 255)
    scales = [float(b.calculate_qparams()[0]) for b in program.ranges if b.fixed and b.ends()[1] == reach]
    # Of a symmetric scheme 0 to 127, of the others -128 to 127.
    assert scales == pytest.approx([55 / 255 / (127 if name == "tensorrt" else 255)] * len(scales))


def test_a_layer_that_runs_twice_is_one_kernel() -> None:
    model = create("dncnn-color-blind", widths=[8] * 3).eval()
    model.model[4] = model.model[2]
    program = QuantizedProgram(model, Scheme("t"), RANGE)
    kernels = program.kernels()
    assert [kernel.weight for kernel in kernels] == ["model.0.weight", "model.2.weight", "model.6.weight"]
    assert [kernel.bias for kernel in kernels] == ["model.0.bias", "model.2.bias", "model.6.bias"]
    assert "model.2.weight" in rates(program, 0.01)  # it learns


@pytest.mark.parametrize("scheme", [Scheme("t"), Scheme("t", every_tensor=False)])
def test_the_layer_that_writes_the_image_stays_in_integers(scheme: Scheme) -> None:
    model = create("ffdnet-color", widths=[8] * 3).eval()
    program = QuantizedProgram(model, scheme, RANGE)
    assert list(program.between()) == ["model.0", "model.2"]  # what the last convolution reads cannot be float
    asked = dataclasses.replace(scheme, wide=frozenset({"model.6"}))
    with pytest.raises(RecipeError, match=r"layer 'model.6' writes the image.*leave it out of quantization.wide"):
        QuantizedProgram(model, asked, RANGE)
