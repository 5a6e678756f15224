"""What each tensor's integers cost: the ones made coarse must stand out, with the cause that they were given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import random_model, smooth_tiles

from edgekit.bundle.manifest import Sensitivity
from edgekit.compress.evaluate import NoisyTiles, noisy_tiles
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.compress.sensitivity import sensitivity
from edgekit.models import create
from edgekit.targets import registry as targets

SIGMAS = (5.0, 50.0)


def program(scheme: Scheme, width: int = 8) -> QuantizedProgram:
    torch.manual_seed(0)
    model = create("dsunet-n", widths=[width, 16], encoder=[[]], middle=[24], decoder=[[]], finish=16).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    found = QuantizedProgram(model, scheme, (0.0, 55 / 255))
    with found.in_float(), torch.no_grad():
        found(torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)), torch.tensor([0.02, 0.2]))
    for bounds in found.ranges:
        bounds.learn()
        # The tiles are other images than those observed.
        bounds.lower.data *= 2
        bounds.upper.data *= 2
    return found


def measured(found: QuantizedProgram) -> dict[tuple[str, str], Sensitivity]:
    items = sensitivity(found, smooth_tiles(2), SIGMAS)
    assert len({(i.name, i.kind) for i in items}) == len(items)
    return {(i.name, i.kind): i for i in items}


def test_every_tensor_is_named_by_the_module_that_writes_it() -> None:
    found = measured(program(Scheme("t")))
    assert [name for name, kind in found if kind == "activations"] == [
        "head", "sigma_bias", "down.0", "sum before middle.0.depthwise", "middle.0.depthwise", "middle.0.expand",
        "middle.0.project", "middle.0 sum", "finish", "tail",
    ]  # fmt: skip
    assert {name for name, kind in found if kind == "weights"} == {
        "head", "sigma_bias", "down.0", "middle.0.depthwise", "middle.0.expand", "middle.0.project", "up.0",
        "finish", "tail",
    }  # fmt: skip
    assert all(set(item.lost) == {"5", "50"} for item in found.values())


@pytest.mark.parametrize("target", ["tflite", "openvino", "tensorrt"])
@pytest.mark.parametrize("name", ["nafnet-width8", "mrdn-s", "autoencoder", "edsr-s"])
def test_every_architecture_can_be_measured(name: str, target: str) -> None:
    # Constants that are added or multiplied are rounded, too, and may be single numbers.
    model = random_model(name)
    found = QuantizedProgram(model, targets.get(target).scheme(), (0.0, 55 / 255))
    with found.in_float(), torch.no_grad():
        found(torch.rand(1, 3, 64, 64), torch.tensor([0.1]))
    for bounds in found.ranges:
        bounds.learn()
    items = sensitivity(found, smooth_tiles(1, size=64), (25.0,))
    assert {item.kind for item in items} == {"activations", "weights"}


def test_a_coarser_scale_shows_at_its_own_tensor_alone() -> None:
    made = program(Scheme("t"))
    before = measured(made)
    dict(made.tensors())["finish"].upper.data *= 200  # one level is left
    after = measured(made)
    # A random network is no denoiser: it may even gain.
    assert abs(before["finish", "activations"].mean) < 0.01
    assert abs(after["finish", "activations"].mean) > 0.05
    assert {k: v for k, v in after.items() if k[0] != "finish"} == {k: v for k, v in before.items() if k[0] != "finish"}


@pytest.mark.parametrize("ends", [("lower", "upper"), ("lower",), ("upper",)])
def test_values_outside_the_range_are_the_cause(ends: tuple[str, ...]) -> None:
    made = program(Scheme("t"))
    assert not any("saturation" in item.cause for item in measured(made).values())
    bounds = dict(made.tensors())["down.0"]
    for end in ends:
        getattr(bounds, end).data *= 0.02
    assert "saturation: " in measured(made)["down.0", "activations"].cause


def test_what_stands_beside_it_in_a_concatenation_is_watched_too() -> None:
    """`dsunet-s` sets what comes up beside the first convolution's output: one range for both."""
    made = program(Scheme("t"), width=12)
    assert "saturation" not in measured(made)["head", "activations"].cause
    made.module.get_parameter("up.0.weight").data *= 30
    assert "saturation: " in measured(made)["head", "activations"].cause


def test_a_range_that_few_channels_set_is_the_cause() -> None:
    made = program(Scheme("t"))
    weight = made.module.get_parameter("middle.0.expand.weight")
    weight.data[3] *= 50
    bounds = dict(made.tensors())["middle.0.expand"]
    bounds.upper.data *= 60
    assert measured(made)["middle.0.expand", "activations"].cause == "its range is set by 1 of 24 channels"


def test_noise_that_calibration_never_saw_is_the_cause() -> None:
    made = program(Scheme("t"))
    assert not any("calibration" in item.cause for item in measured(made).values())
    made.observed = (15 / 255, 40 / 255)
    told = 0
    for item in measured(made).values():
        worst = max(item.lost, key=lambda level: item.lost[level])
        side = {"5": "below 15", "50": "above 40"}[worst]
        expected = item.kind == "activations" and item.lost[worst] > 0
        assert (f"calibration saw no sigma {side}" in item.cause) == expected
        told += expected
    assert told


@pytest.mark.parametrize(("low", "high"), [(1, 55), (0.4, 49.3), (5.6, 49.3)])
def test_levels_drawn_at_random_need_not_reach_the_ends_of_their_range(low: float, high: float) -> None:
    made = program(Scheme("t"))
    made.observed = (low / 255, high / 255)
    assert not any("calibration" in item.cause for item in measured(made).values())


def test_it_tells_how_many_tensors_are_measured() -> None:
    told: list[tuple[int, int]] = []
    made = program(Scheme("t"))
    items = sensitivity(made, smooth_tiles(1), (25.0,), lambda done, total, text="": told.append((done, total)))
    assert told == [(done, len(items)) for done in range(len(items) + 1)]


def test_the_program_is_as_it_was() -> None:
    made = program(Scheme("t"))
    noisy, sigma = torch.rand(1, 3, 32, 32), torch.tensor([0.1])
    with torch.no_grad():
        before = made(noisy, sigma)
        measured(made)
        torch.testing.assert_close(made(noisy, sigma), before, rtol=0, atol=0)
    assert not any(bounds._forward_pre_hooks for bounds in made.ranges)


@pytest.mark.parametrize("scheme", [Scheme("s", symmetric_activations=True, every_tensor=False, quantized_io=False)])
def test_a_scheme_that_quantizes_at_convolutions_alone(scheme: Scheme) -> None:
    found = measured(program(scheme))
    # What is read by no convolution is not rounded.
    assert ("tail", "activations") not in found
    assert ("finish", "activations") in found


def test_tiles_that_come_with_their_noise() -> None:
    clean = smooth_tiles(4)
    tiles = NoisyTiles(clean, noisy_tiles(clean, 20), np.full(4, 20, np.float32))
    assert {tuple(item.lost) for item in sensitivity(program(Scheme("t")), tiles, SIGMAS)} == {("20",)}
