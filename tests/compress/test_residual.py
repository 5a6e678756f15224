"""What is taken from the image to give the output: rounded in the image's own steps where it fits into them."""

from __future__ import annotations

import pytest
import torch
from toys import conv, node, smooth_images, smooth_tiles

from edgekit.batch import Batch
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.quantize import observe, quantize
from edgekit.compress.scheme import Scheme
from edgekit.models import create, load
from edgekit.models.graph import GraphModel
from edgekit.recipe import QuantizeSettings
from edgekit.targets import registry

TFLITE = registry.get("tflite").scheme()


def _batch(sigma: float, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    clean = smooth_images(4, size=64, seed=seed)
    noise = sigma / 255 * torch.randn(clean.shape, generator=generator)
    return Batch(clean, ((clean + noise).clamp(0, 1) * 255).round() / 255, torch.full((4,), sigma / 255))


def _observed(sigma: float, scheme: Scheme = TFLITE, steps: int = 0) -> QuantizedProgram:
    program = QuantizedProgram(load("dsunet-n"), scheme, (0, sigma / 255))
    observe(program, [_batch(sigma, seed) for seed in range(3)], QuantizeSettings(steps=steps))
    return program


def _levels(image: torch.Tensor) -> torch.Tensor:
    return (image.clamp(0, 1) * 255).round()


def _changed(program: QuantizedProgram, sigma: float) -> float:
    """The share of the output's samples, in 8 bits, that the rounding of the residual alone changes."""
    batch, residual = _batch(sigma, seed=9), program.residual()
    assert residual is not None
    with torch.inference_mode():
        with program.in_float():
            wanted = program(batch.noisy, batch.sigma)
        with program.only(residual):
            found = program(batch.noisy, batch.sigma)
    return float((_levels(found) != _levels(wanted)).float().mean())


def test_faint_noise_leaves_a_residual_whose_rounding_costs_nothing() -> None:
    program = _observed(20)
    residual = program.residual()
    assert residual is not None
    scale, zero = residual.calculate_qparams()
    assert (scale.item(), zero.item()) == (pytest.approx(1 / 255), 0)
    # But for halves that float32 puts on either side.
    assert _changed(program, 20) < 1e-3
    # Any other step rounds twice.
    for step in (0.9, 1.1):
        residual.pin(step / 255)
        assert _changed(program, 20) > 0.05


def test_strong_noise_needs_more_than_the_images_steps_reach() -> None:
    program = _observed(50)
    residual = program.residual()
    assert residual is not None
    assert not program.exact_residual
    assert residual.calculate_qparams()[0].item() > 1.02 / 255
    assert residual.lower.requires_grad


def test_it_stays_as_it_is_through_training() -> None:
    settings = QuantizeSettings(steps=3, calibration_batches=2, warmup=1)
    program, record = quantize(
        load("dsunet-n"), TFLITE, settings, lambda step: _batch(15, step), smooth_tiles(), sigma_range=(0, 15 / 255)
    )
    residual = program.residual()
    assert residual is not None
    assert residual.ends() == (pytest.approx(-128 / 255), pytest.approx(127 / 255))
    assert "the residual in steps of one level" in record.what
    assert "tail" in [name for name, bounds in program.tensors() if bounds is residual]


@pytest.mark.parametrize("target", ["tflite", "openvino", "tensorrt"])
def test_a_target_that_leaves_it_in_float_has_none_to_round(target: str) -> None:
    program = _observed(20, registry.get(target).scheme())
    names = [name for name, _ in program.tensors()]
    rounds = target == "tflite"
    assert (program.residual() is not None) == program.exact_residual == rounds
    assert ("tail" in names) == ("middle.0.project" in names) == rounds


def test_a_network_that_writes_the_image_itself_has_none() -> None:
    torch.manual_seed(0)
    program = QuantizedProgram(create("autoencoder", widths=[8, 8]).eval(), TFLITE, (0, 20 / 255))
    observe(program, [_batch(20)], QuantizeSettings(steps=0))
    assert program.residual() is None


def _additive(moved: bool) -> GraphModel:
    """noisy + tail(...), or the sum at half the size, whose pixels are moved back."""
    half = {"block": 2, "order": "channel"}
    image, width = ("u", 12) if moved else ("noisy", 3)
    nodes = [
        {**node("space_to_depth", "noisy", **half), "name": "u"},
        {**conv(image, width, width), "name": "tail"},
        {**node("add", image, "tail"), "name": "s"},
        {**node("depth_to_space", "s", **half), "name": "out"},
    ]
    return GraphModel(channels=3, nodes=nodes if moved else nodes[1:3], level="none").eval()


@pytest.mark.parametrize("moved", [False, True])
def test_what_is_added_to_the_image_is_found_where_it_is_added(moved: bool) -> None:
    program = QuantizedProgram(_additive(moved), TFLITE, (0, 20 / 255))
    observe(program, [_batch(20)], QuantizeSettings(steps=0))
    residual = program.residual()
    assert residual is not None
    assert residual is dict(program.tensors())["layers.tail"]


def test_an_image_that_enters_in_float_is_not_rounded_where_it_is_added_to() -> None:
    program = QuantizedProgram(_additive(moved=False), registry.get("tensorrt").scheme(), (0, 20 / 255))
    observe(program, [_batch(20)], QuantizeSettings(steps=0))
    assert program.residual() is None
    assert [name for name, _ in program.tensors()] == ["noisy before layers.tail"]
    (added,) = (n for n in program.module.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    assert [term.op for term in added.args] == ["placeholder", "call_function"]
