"""What every registered model promises, checked on each of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgekit import models
from edgekit.errors import ShapeError, UnknownNameError
from edgekit.models.base import DenoiserModel
from edgekit.models.blocks import GlobalAverage


def _narrow(value: Any) -> Any:
    """The same architecture with every number cut to 4: widths, on which halo and stride do not depend, and blocks."""
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
    with pytest.raises(ShapeError, match=r"channels is 2: [\w-]+ takes 1 \(gray\) or 3 \(RGB\)"):
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


def freeze_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages over the whole input are constants: what the halo of a network that has them counts."""
    monkeypatch.setattr(GlobalAverage, "forward", lambda self, x: torch.full_like(x[:, :, :1, :1], 0.5))


def strip(model: DenoiserModel, length: int, axis: int) -> tuple[int, int]:
    """Height and width of a strip along an axis: as narrow as the stride allows, so that deep networks run quickly."""
    narrow = max(model.stride, 4)
    return (length, narrow) if axis == 0 else (narrow, length)


def reached(model: DenoiserModel, length: int) -> int:
    """The farthest pixel along each axis that an output pixel in the middle depends on, by its gradient."""
    generator = torch.Generator().manual_seed(2)
    start = (length // 2) // model.stride * model.stride
    found = 0
    for axis in (0, 1):
        shape = (1, model.channels, *strip(model, length, axis))
        noisy = torch.rand(shape, dtype=torch.float64, generator=generator).requires_grad_()
        output = model(noisy, torch.full((1,), 0.5, dtype=torch.float64)).sum((0, 1, 3 - axis))
        for i in range(start, start + model.stride):
            (gradient,) = torch.autograd.grad(output[i], noisy, retain_graph=True)
            places = gradient.abs().sum((0, 1, 3 - axis)).nonzero()
            found = max(found, int((places - i).abs().max()))
    return found


def positive(model: DenoiserModel) -> DenoiserModel:
    """Every weight and bias positive: all ReLUs are open, and no path cancels another."""
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.1)
        if not model.blind:  # residual models subtract: flip the tail so that the two paths add up
            list(model.parameters())[-2].neg_()
    return model


def test_halo_is_what_an_impulse_reaches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    freeze_averages(monkeypatch)
    model = slim(name).double()
    length = 2 * (-(-model.halo // model.stride) + 1) * model.stride + model.stride
    # Where a network normalises, or splits into bands of both signs, equal weights cancel: random ones do not. A max
    # pool passes a gradient to one of its pixels alone: to each of them, for one seed or another.
    found = [reached(positive(model), length)]
    for seed in range(8):
        if max(found) == model.halo:
            break
        found.append(reached(randomize(model, seed), length))
    assert max(found) == model.halo


def test_a_network_that_averages_over_everything_says_so(name: str) -> None:
    model = randomize(slim(name)).double()
    # Far more than the convolutions reach; a slim network's averages move little, but float64 shows it.
    height, width = strip(model, 2 * (-(-model.halo // model.stride) + 2) * model.stride, 0)
    noisy = torch.rand(1, model.channels, height, width, generator=torch.Generator().manual_seed(1)).double()
    other = noisy.clone()
    other[:, :, -1, -1] += 0.5
    level = torch.full((1,), 0.1, dtype=torch.float64)
    with torch.no_grad():
        changed = not torch.equal(model(noisy, level)[:, :, 0, 0], model(other, level)[:, :, 0, 0])
    assert changed == model.pools_globally


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
    fixed = {name for name, _ in model.named_buffers()}
    assert model.parameter_count() == sum(p.numel() for name, p in model.state_dict().items() if name not in fixed)
    # Each weight is used once per output position, or per input position where it is spread: count by running it.
    counts: list[int] = []

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        positions = min(inputs[0].shape[2] * inputs[0].shape[3], output.shape[2] * output.shape[3])
        counts.append(module.weight.numel() * positions)

    # Haar transforms are convolutions whose weights are buffers.
    convolutions = [m for m in model.modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 4]
    handles = [c.register_forward_hook(count) for c in convolutions]
    # The size that macs_per_pixel takes: what is done once an image (sigma, attention) counts alike.
    side = 256 // model.stride * model.stride
    model(torch.rand(1, model.channels, side, side), torch.zeros(1))
    for handle in handles:
        handle.remove()
    assert model.macs_per_pixel() == pytest.approx(sum(counts) / side**2)


def test_says_where_it_comes_from(name: str) -> None:
    model = slim(name)
    assert model.source
    assert model.arch in name or name.startswith(model.arch)


def test_unknown_names_and_settings(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown model '{name}x': expected one of .*did you mean '{name}'"):
        models.create(name + "x")
    with pytest.raises(UnknownNameError, match=r"unknown argument of [\w-]+ 'chanels': .*did you mean 'channels'"):
        models.create(name, chanels=3)
