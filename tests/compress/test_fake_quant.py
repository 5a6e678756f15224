"""Hand-computed integers of the fake quantizers."""

from __future__ import annotations

import pytest
import torch

from edgekit.compress.fake_quant import ChannelWeights, LearnedRange


def observed(*values: float, symmetric: bool = False) -> LearnedRange:
    quantizer = LearnedRange(symmetric=symmetric)
    quantizer(torch.tensor(values))
    quantizer.learn()
    return quantizer


def test_affine_scale_and_zero_point_of_an_observed_range() -> None:
    scale, zero_point = observed(-1.0, 0.5, 3.0).calculate_qparams()
    assert scale.item() == pytest.approx(4 / 255)
    # -128 + 1 / (4 / 255) = -64.25
    assert zero_point.item() == -64


def test_range_always_holds_zero_because_convolutions_pad_with_it() -> None:
    scale, zero_point = observed(2.0, 5.1).calculate_qparams()
    assert scale.item() == pytest.approx(5.1 / 255)
    assert zero_point.item() == -128


def test_symmetric_zero_point_is_zero_and_range_the_larger_side() -> None:
    scale, zero_point = observed(-1.0, 3.0, symmetric=True).calculate_qparams()
    assert scale.item() == pytest.approx(3 / 127)
    assert zero_point.item() == 0


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_is_fitted_to_the_many_not_to_the_few(symmetric: bool) -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.randn(8000), torch.tensor([60.0, -20.0])])
    quantizer = LearnedRange(symmetric=symmetric)
    quantizer(values)
    quantizer.learn()
    error = (quantizer(values) - values).square().mean()
    low, high = (-60.0, 60.0) if symmetric else (-20.0, 60.0)
    whole = LearnedRange(symmetric=symmetric, fixed=(low, high))
    assert error < (whole(values) - values).square().mean()
    # Cutting at the normal distribution's own ends would cost the two far values too much.
    cut = LearnedRange(symmetric=symmetric, fixed=(-4.0, 4.0))
    assert error < (cut(values) - values).square().mean()


def test_extremes_as_bounds_where_no_fit_is_asked_for() -> None:
    quantizer = LearnedRange()
    quantizer(torch.cat([torch.randn(8000, generator=torch.Generator().manual_seed(0)), torch.tensor([60.0, -20.0])]))
    quantizer.learn(None)
    assert float(quantizer.calculate_qparams()[0]) == pytest.approx(80 / 255)


def test_one_image_that_reaches_far_does_not_set_the_range_of_all_image_by_image() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 1, 30, 30, generator=generator)
    # By least squared error what cutting these would cost outweighs all others' rounding.
    images[5, 0, :2, :2] = 40
    uppers = {}
    for fit in ("least-squares", "per-image"):
        quantizer = LearnedRange()
        for batch in images.split(8):
            quantizer(batch)
        quantizer.fit("least-squares")
        # A fit may be followed by another: the bounds are those of the last.
        quantizer.fit(fit)  # type: ignore[arg-type]
        quantizer.learn(fit)  # type: ignore[arg-type]
        uppers[fit] = float(quantizer.upper.detach() * quantizer.width)
        assert quantizer.upper.requires_grad
    assert uppers["least-squares"] > 2 * uppers["per-image"]
    assert uppers["per-image"] < 6


def test_a_sample_of_a_large_tensor_knows_its_images() -> None:
    quantizer = LearnedRange()
    for first in (0, 3):
        quantizer(torch.arange(first, first + 3).view(3, 1, 1, 1).expand(3, 4, 32, 32).float())
    values = torch.cat(quantizer._seen)
    assert len(values) == 2 * 8192
    assert torch.equal(values, torch.cat(quantizer._images).float())


def test_what_was_learned_is_not_fitted_again() -> None:
    quantizer = observed(*torch.linspace(-1, 2, 4000).tolist())
    with torch.no_grad():
        quantizer.upper.mul_(0.5)
    quantizer.requires_grad_(False)
    before = float(quantizer.upper)
    quantizer.fit("per-image")
    quantizer.learn()
    assert float(quantizer.upper) == before


def test_image_by_image_counts_the_images_of_every_batch_apart() -> None:
    quantizer = LearnedRange()
    quantizer(torch.rand(2, 3, 4, 4))
    quantizer(torch.rand(3, 1, 4, 4))
    quantizer(torch.tensor(0.5))
    assert torch.bincount(torch.cat(quantizer._images)).tolist() == [48, 48, 16, 16, 16, 1]


def test_a_range_without_tails_stays_as_it_is() -> None:
    quantizer = observed(*torch.linspace(-1, 2, 4000).tolist())
    assert float(quantizer.lower.detach() * quantizer.width) == pytest.approx(-1, abs=0.05)
    assert float(quantizer.upper.detach() * quantizer.width) == pytest.approx(2, abs=0.09)


def test_fixed_range_is_that_of_an_8_bit_image_whatever_it_sees() -> None:
    quantizer = LearnedRange(fixed=(0.0, 1.0))
    quantizer(torch.tensor([-7.0, 9.0]))
    quantizer.learn()
    scale, zero_point = quantizer.calculate_qparams()
    assert scale.item() == pytest.approx(1 / 255)
    assert zero_point.item() == -128
    levels = torch.arange(256) / 255
    torch.testing.assert_close(quantizer(levels), levels)


def test_values_land_on_the_grid_and_saturate() -> None:
    quantizer = observed(0.0, 2.55)  # scale 0.01
    result = quantizer(torch.tensor([0.004, 0.006, 1.234, 9.0, -1.0]))
    torch.testing.assert_close(result, torch.tensor([0.0, 0.01, 1.23, 2.55, 0.0]))


def test_an_upper_bound_learns_from_what_it_cuts_off() -> None:
    quantizer = observed(0.0, 1.0)
    quantizer(torch.tensor([5.0, 0.5])).sum().backward()  # a larger output is better: the bound must rise
    assert quantizer.upper.grad is not None
    assert quantizer.upper.grad.item() > 0


def test_a_tensor_of_zeros_gives_a_finite_scale() -> None:
    scale, _ = observed(0.0, 0.0).calculate_qparams()
    # Like the image's: XNNPACK refuses scales far from all others.
    assert scale.item() == pytest.approx(1 / 255)


def test_a_dead_output_channel_has_a_scale_near_the_others() -> None:
    quantizer = ChannelWeights()
    quantizer(torch.tensor([[127.0], [0.0]])[:, :, None, None])
    assert quantizer.calculate_qparams()[0].tolist() == pytest.approx([1.0, 2.0**-16])


def test_a_transposed_convolution_counts_channels_along_its_second_axis() -> None:
    quantizer = ChannelWeights(axis=1)
    weight = torch.tensor([[1.27, -12.7], [0.1, 0.2]])[:, :, None, None]
    result = quantizer(weight)
    assert quantizer.calculate_qparams()[0].tolist() == pytest.approx([0.01, 0.1])
    torch.testing.assert_close(result[:, 0], weight[:, 0])


def test_learned_bounds_survive_a_state_dict() -> None:
    source, copy = observed(-1.0, 3.0), observed(-9.0, 9.0)
    copy.load_state_dict(source.state_dict())
    assert copy.calculate_qparams() == source.calculate_qparams()


@pytest.mark.parametrize(("bits", "peak"), [(8, 127), (7, 63)])
def test_weights_have_one_scale_an_output_channel(bits: int, peak: int) -> None:
    quantizer = ChannelWeights(bits=bits)
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.25]])[:, :, None, None]
    result = quantizer(weight)
    scale, zero_point = quantizer.calculate_qparams()
    torch.testing.assert_close(scale, torch.tensor([2 / peak, 0.5 / peak]))
    assert zero_point.tolist() == [0, 0]
    assert (result - weight).abs().max() <= scale.max() / 2


def test_a_transposed_convolution_counts_its_output_channels_on_the_second_axis() -> None:
    quantizer = ChannelWeights(axis=1)
    weight = torch.tensor([[1.0, -2.0, 0.3], [0.5, 0.25, 0.1]])[:, :, None, None]
    result = quantizer(weight)
    scale, _ = quantizer.calculate_qparams()
    torch.testing.assert_close(scale, torch.tensor([1 / 127, 2 / 127, 0.3 / 127]))
    grid = scale[None, :, None, None]
    torch.testing.assert_close(result, (weight / grid).round() * grid)
