"""Toy images, noise and models for the tests of the stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.batch import Batch
from edgekit.models import registry
from edgekit.models.base import DenoiserModel

# Of a network's list of operators, without its name.
Node = dict[str, Any]
# Channels between its layers.
WIDTH = 8


def node(op: str, *inputs: str, **settings: Any) -> Node:
    return {"op": op, "inputs": list(inputs), **settings}


def conv(source: str, into: int = WIDTH, out: int = WIDTH) -> Node:
    layer = {"kernel": [3, 3], "stride": [1, 1], "pad": [1] * 4, "dilation": [1, 1], "groups": 1, "bias": True}
    return node("conv", source, **{"in": into, "out": out}, **layer)


def smooth_images(count: int, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth random images, [N, C, H, W] in 0..1: a wide blur denoises them well."""
    coarse = torch.rand(count, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


def smooth_tiles(count: int = 2, channels: int = 3, size: int = 32) -> NDArray[np.uint8]:
    """Held-out smooth images, uint8 [K, H, W, C]."""
    images = (smooth_images(count, channels, size, seed=99) * 255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous().numpy()


class SmoothBatches:
    """Batches of smooth images with Gaussian noise of sigma 10 to 50, drawn by step."""

    def __init__(self, channels: int = 3, count: int = 4, seed: int = 0) -> None:
        self.channels, self.count, self.seed = channels, count, seed

    def __call__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        clean = smooth_images(self.count, self.channels, seed=1000 * self.seed + step)
        sigma = (10 + 40 * torch.rand(self.count, generator=generator)) / 255
        noise = torch.randn(clean.shape, generator=generator)
        return Batch(clean, clean + sigma[:, None, None, None] * noise, sigma)


class Blur(DenoiserModel):
    """A 9x9 mean: an excellent denoiser of smooth images. Counts how often it is run."""

    arch = "blur"
    source = "this test"

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels, self.stride = channels, 1
        self.gain = nn.Parameter(torch.ones(()))
        self.runs = [0]  # a list, so that copies of the module count together

    def __deepcopy__(self, memo: dict[int, Any]) -> Blur:
        copy = Blur(self.channels)
        copy.load_state_dict(self.state_dict())
        copy.runs = self.runs
        return copy

    @property
    def halo(self) -> int:
        return 4

    def config(self) -> dict[str, Any]:
        return {"channels": self.channels}

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        self.runs[0] += 1
        return self.gain * F.avg_pool2d(F.pad(noisy, (4, 4, 4, 4), mode="reflect"), 9, stride=1)


def random_model(name: str, seed: int = 0, **overrides: Any) -> DenoiserModel:
    """A model with every weight random, scaled to keep the signal's size; biases are small, so that no ReLU is idle."""
    model = registry.create(name, **overrides).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            scale = 0.1 if p.dim() == 1 else p[0].numel() ** -0.5
            p.copy_(scale * torch.randn(p.shape, generator=generator))
    return model


def tiny_student(seed: int = 0, **overrides: Any) -> DenoiserModel:
    """A student of 8 channels with fresh weights, as training would start it."""
    torch.manual_seed(seed)
    config = {"widths": [8, 8], "encoder": [[]], "middle": [16, 16], "decoder": [[16]], "up_width": 0, **overrides}
    return registry.create("dsunet-n", **config)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every weight."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(model: nn.Module, expected: dict[str, Tensor]) -> None:
    """Every weight is equal bit for bit."""
    actual = model.state_dict()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
