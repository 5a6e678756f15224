"""Losses against values by hand, and the features of a tiny VGG that the test writes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgekit import feature_loss, losses
from edgekit.errors import CheckpointError, RecipeError, UnknownNameError
from edgekit.feature_loss import Lpips, VggFeatures
from edgekit.recipe import TrainSettings, make


def images(count: int = 2, channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vgg(tmp_path: Path) -> Path:
    """Two blocks of VGG's shape, narrow and random, as torchvision writes a state dict."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for place, (inputs, outputs) in {0: (3, 4), 2: (4, 4), 5: (4, 6), 7: (6, 6)}.items():
        state[f"features.{place}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator)
        state[f"features.{place}.bias"] = torch.randn(outputs, generator=generator)
    state["classifier.0.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "vgg.pth")
    return tmp_path / "vgg.pth"


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_each_loss_is_per_image_and_least_at_the_target(name: str) -> None:
    target = images()
    output = target.clone()
    output[1] += 0.1
    found = losses.LOSSES[name](output, target)
    assert found.shape == (2,)
    assert found[0] < 0.002  # the epsilon of Charbonnier and RMSE
    assert found[1] > found[0] + 0.001


def test_rmse_by_hand() -> None:
    target = torch.zeros(2, 1, 2, 2)
    output = torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 0.8]]).view(2, 1, 2, 2)
    # The corner's 1e-6 under the root counts for 3e-6 at most.
    torch.testing.assert_close(losses.rmse(output, target), torch.tensor([0.3, 0.4]), rtol=0, atol=3e-6)


def test_rmse_of_an_image_that_is_right_has_a_gradient() -> None:
    output = images().requires_grad_()
    losses.rmse(output, output.detach().clone()).sum().backward()
    assert output.grad is not None
    assert torch.equal(output.grad, torch.zeros_like(output))


def test_rmse_is_led_by_the_mean_and_as_much_by_faint_noise_as_by_strong() -> None:
    # Of the values that a pixel may have, one in four is far away: L1 stays with the three, RMSE goes to the mean.
    likely = torch.tensor([0.0, 0.0, 0.0, 1.0]).view(1, 1, 2, 2)
    best = {
        name: min(
            torch.linspace(0, 1, 101), key=lambda x, name=name: float(losses.LOSSES[name](x.expand(1, 1, 2, 2), likely))
        )
        for name in ("l1", "mse", "rmse")
    }
    assert {name: round(float(value), 2) for name, value in best.items()} == {"l1": 0.0, "mse": 0.25, "rmse": 0.25}
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    length = {}
    for name in ("l1", "mse", "rmse"):
        for strength in (0.02, 0.2):
            output = (strength * noise).requires_grad_()
            losses.LOSSES[name](output, torch.zeros_like(output)).sum().backward()
            assert output.grad is not None
            length[name, strength] = output.grad.norm().item()
    assert length["mse", 0.2] == pytest.approx(10 * length["mse", 0.02], rel=1e-4)
    assert length["l1", 0.2] == pytest.approx(length["l1", 0.02], rel=1e-4)
    # Faint noise is near the corner at 0.001: its gradient is shorter by half of (0.001 / 0.02) squared.
    assert length["rmse", 0.2] == pytest.approx(length["rmse", 0.02], rel=2e-3)
    assert length["rmse", 0.2] == pytest.approx(length["l1", 0.2], rel=1e-2)


def test_frequency_by_hand() -> None:
    # A wave of 3 periods has two coefficients of N / 2 in an unscaled transform, of which the half spectrum holds one.
    wave = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    found = losses.frequency(wave, torch.zeros(1, 1, 16, 16))
    assert found.item() == pytest.approx((256 / 2 / 16) / (16 * 9), rel=1e-5)
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    ratio = losses.frequency(noise, torch.zeros_like(noise)) / losses.l1(noise, torch.zeros_like(noise))
    assert ratio.item() == pytest.approx(1.11, rel=0.01)


def test_frequency_teaches() -> None:
    output = images().requires_grad_()
    losses.weighted({"frequency": 1.0}, output, output.detach() * 0.5).backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert output.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_features_tell_images_apart(vgg: Path, channels: int) -> None:
    loss = VggFeatures(vgg)
    target = images(channels=channels)
    assert torch.equal(loss(target, target), torch.zeros(2))
    near, far = (loss(target + by * images(channels=channels).flip(3), target) for by in (0.01, 0.2))
    assert (near > 0).all()
    assert (near < far).all()
    output = target.flip(2).clone().requires_grad_()
    loss(output, target).sum().backward()
    assert output.grad is not None
    assert output.grad.abs().sum() > 0


def test_features_by_hand(tmp_path: Path) -> None:
    weight = torch.zeros(1, 3, 1, 1)
    weight[0, 0] = 0.229  # undoes red's normalisation
    state = {"features.0.weight": weight, "features.0.bias": torch.full((1,), 0.485)}
    torch.save(state, tmp_path / "one.pth")
    target = images()
    output = target.clone()
    output[:, 0] += 0.25
    torch.testing.assert_close(VggFeatures(tmp_path / "one.pth")(output, target), torch.full((2,), 0.25))


def test_a_mix_with_features(vgg: Path) -> None:
    target, output = images(), images().flip(3)
    learned = feature_loss.learned({"l1": 1.0, "feature": 0.5}, vgg)
    found = losses.weighted({"l1": 1.0, "feature": 0.5}, output, target, learned=learned)
    expected = losses.l1(output, target).mean() + 0.5 * VggFeatures(vgg)(output, target).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("sigma", "divisor"), [(5, 10 / 30), (25, 1), (50, 55 / 30)])
def test_balance_divides_by_the_level_in_8_bit_units(sigma: float, divisor: float) -> None:
    target = images()
    found = losses.weighted({"l1": 1.0}, target + 0.1, target, torch.full((2,), sigma / 255))
    assert found.item() == pytest.approx(0.1 / divisor, rel=1e-5)


def test_features_need_weights_that_the_user_has(tmp_path: Path, vgg: Path) -> None:
    with pytest.raises(RecipeError, match="needs the weights of a VGG, .* does not download: .*feature_weights: vgg16"):
        feature_loss.learned({"feature": 1.0}, None)
    with pytest.raises(RecipeError, match="the loss has no part 'feature' or 'lpips'"):
        feature_loss.learned({"l1": 1.0}, vgg)
    assert feature_loss.learned({"l1": 1.0}, None) == {}
    with pytest.raises(CheckpointError, match=r"missing\.pth"):
        feature_loss.learned({"feature": 1.0}, tmp_path / "missing.pth")
    torch.save({"features.0.weight": torch.zeros(8, 1, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth is no VGG without batch norm: expected a torchvision"):
        feature_loss.learned({"feature": 1.0}, tmp_path / "other.pth")


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG-16 of random weights, with torchvision's names: features keep their size from block to block."""
    generator = torch.Generator().manual_seed(0)
    state, place, inputs = {}, 0, 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            spread = (2 / (9 * inputs)) ** 0.5
            state[f"features.{place}.weight"] = spread * torch.randn(width, inputs, 3, 3, generator=generator)
            state[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=generator)
            place, inputs = place + 2, width
        place += 1  # the pooling
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


def test_lpips_is_that_of_torchmetrics(vgg16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import lpips

    def features(name: str, pretrained: bool) -> torch.nn.Sequential:
        """What torchvision, which is not installed, would give: the same network with the test's weights."""
        state = torch.load(vgg16, weights_only=True)
        layers = []
        for place in range(31):
            weight = state.get(f"features.{place}.weight")
            if weight is not None:
                layers.append(torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1))
                layers[-1].load_state_dict({"weight": weight, "bias": state[f"features.{place}.bias"]})
            else:
                # After a ReLU that no convolution follows directly there is a pooling.
                pools = place and isinstance(layers[-1], torch.nn.ReLU)
                layers.append(torch.nn.MaxPool2d(2) if pools else torch.nn.ReLU())
        return torch.nn.Sequential(*layers)

    monkeypatch.setattr(lpips, "_get_tv_model_features", features)
    theirs = lpips._LPIPS(net="vgg")
    target, output = images(side=48), images(side=48).flip(3)
    found = Lpips(vgg16)(output, target)
    assert (found > 0.01).all()
    torch.testing.assert_close(found, theirs(output, target, normalize=True).flatten())
    assert torch.equal(Lpips(vgg16)(target, target), torch.zeros(2))


def test_lpips_teaches_and_takes_gray(vgg16: Path) -> None:
    target = images(1, channels=1, side=32)
    output = target.flip(2).requires_grad_()
    Lpips(vgg16)(output, target).sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert output.grad.abs().sum() > 0


def test_lpips_needs_vgg16(vgg: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vgg\.pth holds a VGG of 4 convolutions .* take torchvision's vgg16"):
        feature_loss.learned({"lpips": 1.0}, vgg)
    with pytest.raises(RecipeError, match="the loss 'lpips' needs the weights of a VGG, .* take 'lpips' out of loss"):
        feature_loss.learned({"l1": 1.0, "lpips": 1.0}, None)


def test_an_unknown_loss_is_named() -> None:
    # Two lists, because losses stand below the features that some of them are made of.
    assert set(losses.LEARNED) == set(feature_loss.KINDS)
    with pytest.raises(UnknownNameError, match="unknown loss 'frequenzy': .*did you mean 'frequency'"):
        losses.weighted({"frequenzy": 1.0}, images(), images())


def test_a_model_trains_on_them(
    vgg: Path, tiny_model: Callable, leaves: object, quick: Callable, tmp_path: Path
) -> None:
    from edgekit.train.loop import fit

    settings = quick(loss={"l1": 1.0, "frequency": 0.1, "feature": 0.01}, feature_weights=vgg)
    before = tiny_model()
    trained = fit(tiny_model(), leaves, settings, tmp_path / "run")
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), trained.parameters(), strict=True))
    assert make(TrainSettings, settings.model_dump(mode="json")) == settings
