"""What every registered model promises, checked on each of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgekit import models
from edgekit.errors import RecipeError, ShapeError, UnknownNameError
from edgekit.models.base import DenoiserModel


def _narrow(value: Any) -> Any:
    """The same architecture with every width cut to 4: halo and stride do not depend on widths."""
    return [_narrow(v) for v in value] if isinstance(value, list) else min(value, 4)


def slim(name: str, **overrides: Any) -> DenoiserModel:
    config = {key: _narrow(v) for key, v in models.create(name).config().items()}
    return models.create(name, **{**config, **overrides}).eval()


def randomize(model: DenoiserModel, seed: int = 0) -> DenoiserModel:
    """Random weights everywhere: fresh blocks end in zeros, which would hide half of the network."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            # He et al. 2015: values stay of order one through the layers.
            spread = (2 / p[0].numel()) ** 0.5 if p.dim() > 1 else 0.1
            p.copy_(spread * torch.randn(p.shape, generator=generator))
    return model


def image(model: DenoiserModel, count: int = 2, cells: int = 3) -> torch.Tensor:
    side = cells * max(model.stride, 4)
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, model.channels, side, side + max(model.stride, 4), generator=generator)


pytestmark = pytest.mark.parametrize("name", models.names())


def test_keeps_shape_and_dtype(name: str) -> None:
    model = randomize(slim(name))
    noisy = image(model)
    with torch.no_grad():
        clean = model(noisy, torch.tensor([0.1, 0.05]))
    assert clean.shape == noisy.shape
    assert clean.dtype == torch.float32
    assert torch.isfinite(clean).all()
    assert not torch.equal(clean, noisy)


@pytest.mark.parametrize("channels", [1, 3])
def test_builds_for_gray_and_color(name: str, channels: int) -> None:
    model = randomize(slim(name, channels=channels))
    assert model(image(model), torch.tensor([0.1, 0.1])).shape[1] == channels


def test_refuses_two_channels(name: str) -> None:
    with pytest.raises(ShapeError, match=r"channels is 2: \w+ takes 1 \(gray\) or 3 \(RGB\)"):
        slim(name, channels=2)


def test_constant_map_equals_scalar(name: str) -> None:
    model = randomize(slim(name)).double()
    noisy = image(model).double()
    level = torch.tensor([0.1, 0.02], dtype=torch.float64)
    plane = level[:, None, None, None].expand(-1, 1, *noisy.shape[2:]).contiguous()
    with torch.no_grad():
        torch.testing.assert_close(model(noisy, plane), model(noisy, level), rtol=0, atol=1e-9)


def test_sigma_matters_unless_blind(name: str) -> None:
    model = randomize(slim(name))
    noisy = image(model)
    with torch.no_grad():
        low, high = (model(noisy, torch.tensor([s, s])) for s in (0.02, 0.2))
    assert torch.equal(low, high) == model.blind


def test_each_image_of_a_batch_stands_alone(name: str) -> None:
    model = randomize(slim(name)).double()  # in float32 the summation order, which depends on the batch, shows
    noisy, level = image(model).double(), torch.tensor([0.1, 0.02], dtype=torch.float64)
    with torch.no_grad():
        both = model(noisy, level)
        torch.testing.assert_close(both[1:], model(noisy[1:], level[1:]), rtol=0, atol=1e-9)


def test_stride_is_named_when_a_size_does_not_fit(name: str) -> None:
    model = slim(name)
    if model.stride == 1:
        assert model(torch.rand(1, model.channels, 7, 5), torch.zeros(1)).shape == (1, model.channels, 7, 5)
        return
    side = 4 * model.stride
    with pytest.raises(ShapeError, match=f"noisy is {side}x{side + 1}: .* multiples of {model.stride}"):
        model(torch.rand(1, model.channels, side, side + 1), torch.zeros(1))


def test_wrong_channels_and_sigma_are_named(name: str) -> None:
    model = slim(name)
    noisy = image(model)
    with pytest.raises(ShapeError, match=rf"expects \[N, {model.channels}, H, W\]"):
        model(noisy[:, :1].expand(-1, 2, -1, -1), torch.zeros(2))
    with pytest.raises(ShapeError, match=r"sigma has shape \(3,\): expected \[2\]"):
        model(noisy, torch.zeros(3))
    with pytest.raises(ShapeError, match="sigma map is"):
        model(noisy, torch.zeros(2, 1, 4, 4))


def test_halo_is_what_an_impulse_reaches(name: str) -> None:
    # With every weight and bias positive all ReLUs are open, and no path cancels another: the gradient of an output
    # pixel is positive exactly where that pixel can see. Rows and columns behave alike, so a diagonal of one stride
    # cell meets every position that a pixel can have within its cell.
    model = slim(name).double()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.1)
    if not model.blind:  # residual models subtract: flip the tail so that the two paths add up
        with torch.no_grad():
            list(model.parameters())[-2].neg_()
    start = -(-model.halo // model.stride) * model.stride + model.stride
    side = 2 * start + model.stride
    noisy = torch.full((1, model.channels, side, side), 0.5, dtype=torch.float64, requires_grad=True)
    output = model(noisy, torch.full((1,), 0.5, dtype=torch.float64))
    reach = 0
    for i in range(start, start + model.stride):
        (gradient,) = torch.autograd.grad(output[0, :, i, i].sum(), noisy, retain_graph=True)
        rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
        reach = max(reach, *(int((axis - i).abs().max()) for axis in (rows, columns)))
    assert reach == model.halo


def test_config_rebuilds_the_module(name: str) -> None:
    model = randomize(slim(name))
    again = models.build(model.arch, model.config())
    again.load_state_dict(model.state_dict())
    noisy, level = image(model), torch.tensor([0.1, 0.02])
    with torch.no_grad():
        assert torch.equal(again(noisy, level), model(noisy, level))
    assert again.config() == model.config()


def test_counts_parameters_and_macs(name: str) -> None:
    model = slim(name)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    parameters = [c.weight.numel() + (c.bias is not None) * c.out_channels for c in convolutions]
    assert model.parameter_count() == sum(parameters)
    # Each weight is used once per output position: count positions by running it.
    counts: list[int] = []
    handles = [
        c.register_forward_hook(lambda m, _, out: counts.append(m.weight.numel() * out.shape[2] * out.shape[3]))
        for c in convolutions
    ]
    noisy = torch.rand(1, model.channels, 64, 64)
    model(noisy, torch.zeros(1))
    for handle in handles:
        handle.remove()
    macs = sum(counts) / 64**2
    assert model.macs_per_pixel() == pytest.approx(macs, rel=2e-3)  # sigma's own layer: once an image, so size matters


def test_says_where_it_comes_from(name: str) -> None:
    model = slim(name)
    assert model.source
    assert model.arch in name or name.startswith(model.arch)


def test_unknown_names_and_settings(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown model '{name}x': expected one of .*did you mean '{name}'"):
        models.create(name + "x")
    with pytest.raises(RecipeError, match="cannot be built from"):
        models.create(name, depth=3)
