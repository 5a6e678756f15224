"""Architectures as published: their sizes where their authors state them, small cases by hand where not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from edgekit import models
from edgekit.errors import DataError, RecipeError, ShapeError
from edgekit.models.blocks import GlobalAverage, ResidualBlock
from edgekit.models.dsunet_gpu import from_dsunet
from edgekit.models.field import Field
from edgekit.models.mrdn import MultiScaleBlock
from edgekit.models.mwrcanet import AttentionBlock, InverseHaar, haar
from edgekit.models.nafnet import ChannelNorm, NAFBlock, gate
from edgekit.train.images import open_images


def filled(module: torch.nn.Module, value: float) -> torch.nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(value)
    return module


# --- sizes


def test_nafnet_has_as_many_parameters_as_published() -> None:
    # 29.16 M for SIDD at width 32, in megvii-research/NAFNet.
    assert models.create("nafnet-sidd-width32").parameter_count() == 29_159_715


def test_pmrid_has_as_many_parameters_as_published() -> None:
    # 1.03 M for four channels, in the paper's table of networks.
    assert models.create("pmrid-bayer").parameter_count() == pytest.approx(1.03e6, rel=2e-3)


def test_edsr_is_the_published_baseline_without_its_tail() -> None:
    # 1,369,859 parameters (1.37 M) for a factor of two, less the convolution in front of its pixel-shuffle.
    assert models.create("edsr-baseline").parameter_count() == 1_369_859 - (64 * 256 * 9 + 256)


def test_the_autoencoder_is_that_of_the_tutorial() -> None:
    # The table that the tutorial's model.summary() would print: 320 + 9248 + 9248 + 9248 + 289.
    assert models.create("autoencoder", channels=1).parameter_count() == 28_353


def test_mwrcanet_by_hand() -> None:
    model = models.create("mwrcanet", channels=1)

    def group(width: int) -> int:
        squeezed = width // 16
        attention = width * squeezed + squeezed + squeezed * width + width
        block = 2 * (9 * width * width + width) + 1 + attention
        return 20 * block + 9 * width * width + width

    between = [(4, 96), (4 * 96, 128), (4 * 128, 128)]
    enter = sum(9 * a * b + b + 1 for a, b in between)
    leave = sum(9 * b * a + a for a, b in between) + 2  # no PReLU behind the last
    assert model.parameter_count() == 2 * group(96) + 2 * group(128) + group(128) + enter + leave


def test_mrdn_by_hand() -> None:
    model = models.create("mrdn", width=4, groups=[[[2, 3]]], branch=5, dilations=[2], channels=3)
    dense = (9 * 4 * 2 + 2) + (9 * 6 * 3 + 3)
    branch = (4 * 5 + 5) + (9 * 4 * 5 + 5)
    block = dense + branch + (4 + 2 + 3 + 5 + 5) * 4 + 4
    frame = (9 * 3 * 4 + 4) + (16 * 4 * 4 + 4) + (4 * 16 + 16) + (9 * 4 * 3 + 3)
    assert model.parameter_count() == frame + block + 4 * 4 + 4
    # In cells of two pixels: 4x4 by stride 2, then the branch's dilation, which reaches as far as both dense layers.
    assert model.halo == Field().conv(3).conv(4, 2).conv(5).finer().conv(3).radius == 8


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("nafnet-width8", ["intro.weight", "encoders.0.0.sca.1.bias", "middle_blks.1.norm2.weight", "ups.0.0.weight"]),
        ("pmrid", ["conv0.conv.bias", "enc4.3.conv2.pointwise.weight", "dec1.proj_conv.depthwise.weight"]),
    ],
)
def test_keys_are_the_authors(name: str, keys: list[str]) -> None:
    assert set(keys) <= models.create(name).state_dict().keys()


# --- channels


def test_packed_bayer_is_four_channels() -> None:
    model = models.create("pmrid-bayer").eval()
    with torch.no_grad():
        assert model(torch.rand(1, 4, 16, 32), torch.zeros(1)).shape == (1, 4, 16, 32)
    for other in ("edsr-s", "nafnet-width8", "dsunet-n", "mrdn-s", "autoencoder", "mwrcanet-s"):
        with pytest.raises(ShapeError, match="channels is 4: "):
            models.create(other, channels=4)


def test_nobody_trains_packed_bayer_on_photographs() -> None:
    with pytest.raises(DataError, match=r"images of 4 channels: .* 1 \(gray\) or 3 \(RGB\)"):
        open_images(None, channels=4)


def test_pmrid_scales_its_input_as_the_published_weights_want_it() -> None:
    config = {"widths": [4, 4], "encoder": [[2]], "decoder": [4, 4]}
    torch.manual_seed(0)
    plain = models.create("pmrid", **config).eval()
    scaled = models.create("pmrid", **config, scale=256.0).eval()
    scaled.load_state_dict(plain.state_dict())
    noisy = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(scaled(noisy, torch.zeros(1)), plain(256 * noisy, torch.zeros(1)) / 256)


# --- parts


def test_haar_by_hand() -> None:
    image = torch.tensor([[1.0, 2.0], [3.0, 8.0]])[None, None]
    # Half of the sum; rows, columns and diagonals against each other.
    expected = torch.tensor([7.0, -4.0, -3.0, 2.0])
    bands = haar(1)(image)
    torch.testing.assert_close(bands[0, :, 0, 0], expected)
    torch.testing.assert_close(InverseHaar(1)(bands), image)


def test_haar_and_back_gives_the_image() -> None:
    image = torch.rand(2, 3, 8, 6)
    bands = haar(3)(image)
    torch.testing.assert_close(InverseHaar(3)(bands), image)
    # Orthogonal: it keeps the energy.
    torch.testing.assert_close(bands.pow(2).sum(), image.pow(2).sum())


def test_an_untouched_mwrcanet_gives_the_image() -> None:
    model = filled(models.create("mwrcanet-s"), 0.0)
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(image, torch.zeros(1)), image)


def test_attention_weighs_channels_by_their_mean() -> None:
    block = filled(AttentionBlock(2), 0.0)
    with torch.no_grad():
        block.project.bias.copy_(torch.tensor([1.0, 4.0]))
        block.attention[1].weight.copy_(torch.tensor([[1.0, 1.0]])[..., None, None])
        block.attention[3].weight.copy_(torch.tensor([[1.0], [-1.0]])[..., None, None])
        found = block(torch.zeros(1, 2, 3, 3))[0, :, 1, 1]
    torch.testing.assert_close(found, torch.tensor([1.0, 4.0]) * torch.sigmoid(torch.tensor([5.0, -5.0])))


def test_channel_norm_is_layer_norm_over_channels() -> None:
    norm, x = ChannelNorm(5), torch.randn(2, 5, 3, 4)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(5))
        norm.bias.copy_(torch.randn(5))
        expected = F.layer_norm(x.permute(0, 2, 3, 1), (5,), norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(norm(x), expected)


def test_a_fresh_nafblock_is_the_identity_and_the_gate_a_product() -> None:
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(NAFBlock(4)(x), x)
    assert torch.equal(gate(x), x[:, :2] * x[:, 2:])


def test_a_dense_block_by_hand() -> None:
    block = filled(MultiScaleBlock(1, [1, 1], 1, [2]), 0.0)
    middle = {"dense.0": 2.0, "dense.1": 1.0, "point": 3.0, "atrous.0": 5.0}
    with torch.no_grad():
        for name, value in middle.items():
            weight = block.get_submodule(name).weight
            weight[..., weight.shape[2] // 2, weight.shape[3] // 2] = value
        block.join.weight.fill_(1.0)
        found = block(torch.full((1, 1, 1, 1), 1.0))
    # x = 1, first layer 2x = 2, second x + first = 3, branch 3x and 5x; their sum, and the skip.
    assert found.item() == 1 + (1 + 2 + 3 + 3 + 5)


def test_res_scale_scales_the_residual() -> None:
    torch.manual_seed(0)
    whole, tenth = ResidualBlock(2, 3), ResidualBlock(2, 3, 0.1)
    with torch.no_grad():
        torch.nn.init.normal_(whole.project.weight)
        tenth.load_state_dict(whole.state_dict())
        x = torch.randn(1, 2, 4, 4)
        torch.testing.assert_close(tenth(x) - x, 0.1 * (whole(x) - x))


def test_a_global_average_is_one_number_a_channel() -> None:
    x = torch.arange(12.0).reshape(1, 2, 2, 3)
    assert GlobalAverage()(x).flatten().tolist() == [2.5, 8.5]


# --- the twin for GPU delegates


@pytest.mark.parametrize("name", ["dsunet-n", "dsunet-m"])
def test_the_twin_of_a_dsunet_computes_the_same_image(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name).eval()
    with torch.no_grad():
        for p in model.parameters():
            torch.nn.init.normal_(p, 0, 0.1)
        for layer in (model.tail, *model.up):
            # One bias for the four pixels of a cell: a transposed convolution has no other.
            layer.bias.copy_(layer.bias.reshape(-1, 4)[:, :1].expand(-1, 4).reshape(-1))
        twin = from_dsunet(model)
        noisy, sigma = torch.rand(2, 3, 32, 40), torch.tensor([0.1, 0.02])
        # Sums of hundreds of products in another order.
        torch.testing.assert_close(twin(noisy, sigma), model(noisy, sigma), rtol=1e-4, atol=1e-4)
    assert twin.macs_per_pixel() == pytest.approx(model.macs_per_pixel())
    assert (twin.halo, twin.stride) == (model.halo, model.stride)
    assert twin.config() == model.config()


def test_the_twin_of_the_shipped_student_differs_by_little() -> None:
    model = models.load("dsunet-s")
    twin = from_dsunet(model)
    noisy, sigma = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([25 / 255])
    with torch.no_grad():
        difference = 255 * (twin(noisy, sigma) - model(noisy, sigma))
    # The biases that have no place in it: a third of a level on the average.
    assert 0 < difference.pow(2).mean().sqrt() < 0.6


def test_only_a_dsunet_has_a_twin() -> None:
    with pytest.raises(ShapeError, match="UNet has no twin for GPU delegates: expected a dsunet"):
        from_dsunet(models.create("unet"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("middle", 3, r"middle is 3: expected what dsunet takes, as in dsunet-n: middle: \[72, 72, 72, 72\]"),
        ("middle", ["a"], r"middle is \['a'\]: expected"),
        ("encoder", [3], r"encoder is \[3\]: expected"),
        ("finish", [3], r"finish is \[3\]: expected"),
        ("middle", [16.5], r"dsunet cannot be built from .*16\.5"),
    ],
)
def test_an_argument_that_an_architecture_does_not_take(argument: str, value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        models.create("dsunet-n", **{argument: value})


@pytest.mark.parametrize("config", [{"middle": [16, -16]}, {"widths": [0, 32]}, {"encoder": [[0]]}, {"finish": -1}])
def test_sizes_are_above_zero(config: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match=r"expected whole numbers above 0, up_width and finish at least 0"):
        models.create("dsunet-n", **config)
