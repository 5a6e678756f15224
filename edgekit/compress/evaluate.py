"""How well a model denoises held-out tiles, as a device would see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.compress.record import SIGMAS
from edgekit.errors import ShapeError
from edgekit.models.base import DenoiserModel
from edgekit.runtime.tiling import window
from edgekit.runtime.verdict import decibels


class NoisyTiles(NamedTuple):
    """Held-out tiles with a noise that is no matter of one number: clean and noisy uint8 [K, H, W, C], and sigma [K],
    what the model is told of each, in 8-bit units.
    """

    clean: NDArray[np.uint8]
    noisy: NDArray[np.uint8]
    sigma: NDArray[np.float32]


# What a model is judged on: clean tiles, uint8 [K, H, W, C], to which seeded Gaussian noise of every level is added, or
# tiles that come with their noise.
Tiles = NDArray[np.uint8] | NoisyTiles

# Anything that maps (noisy float32 [N, C, H, W] in 0..1, sigma float32 [N] in 0..1) to the clean estimate.
Denoise = Callable[[Tensor, Tensor], Tensor]


def noisy_tiles(tiles: NDArray[np.uint8], sigma: float, seed: int = 0) -> NDArray[np.uint8]:
    """Add seeded Gaussian noise as a device hands it over: clipped and rounded to 8 bits.

    Args:
        tiles: clean images, uint8 [K, H, W, C].
        sigma: standard deviation in 8-bit units, 0..255.
    Returns: uint8 [K, H, W, C]; a tile's noise depends on its place k, sigma and seed, not on how many tiles there are.
    """
    noisy = np.empty_like(tiles)
    for k, tile in enumerate(tiles):
        rng = np.random.default_rng([seed, round(1000 * sigma), k])
        noisy[k] = np.clip(np.rint(tile + sigma * rng.standard_normal(tile.shape)), 0, 255)
    return noisy


def evaluate(
    model: DenoiserModel | Denoise, tiles: Tiles, sigmas: Sequence[float] = SIGMAS, seed: int = 0
) -> dict[float, float]:
    """Measure PSNR on held-out tiles, noise and output clipped and rounded to 8 bits.

    Args:
        model: a model, or any function (noisy [N, C, H, W], sigma [N]) -> clean, all in 0..1. A model is put in
            evaluation mode for the while; its weights and mode are as before afterwards.
        tiles: see `Tiles`; of any size.
        sigmas: levels of the Gaussian noise, in 8-bit units.
    Returns: mean PSNR over the tiles in dB, by sigma (the mean of theirs, where tiles come with noise); a tile without
        a wrong pixel counts as `edgekit.runtime.verdict.EQUAL_DB`.
    Raises: ShapeError: tiles of another rank or dtype, or that do not fit the model.
    """
    clean = tiles.clean if isinstance(tiles, NoisyTiles) else tiles
    if clean.ndim != 4 or clean.dtype != np.uint8 or not len(clean):
        raise ShapeError(f"tiles are {clean.dtype} {list(clean.shape)}: expected uint8 [K, H, W, C] with K at least 1")
    was_training = isinstance(model, nn.Module) and model.training
    if isinstance(model, DenoiserModel):
        model.eval()
    try:
        if isinstance(tiles, NoisyTiles):
            return {round(float(tiles.sigma.mean()), 1): _psnr(model, tiles)}
        return {
            level: _psnr(model, NoisyTiles(clean, noisy_tiles(clean, level, seed), np.full(len(clean), level)))
            for level in sigmas
        }
    finally:
        if isinstance(model, DenoiserModel):
            model.train(was_training)


def _psnr(model: Denoise, tiles: NoisyTiles) -> float:
    total = 0.0
    # One tile at a time: memory stays that of a tile, and the figure does not depend on a batch size.
    for clean, noisy, sigma in zip(*tiles, strict=True):
        output = np.rint(np.clip(denoise_whole(model, noisy, float(sigma)), 0, 1) * 255.0)
        if not np.isfinite(output).all():
            return math.nan  # training says where it comes from
        total += decibels(output.astype(np.uint8), clean)
    return total / len(tiles.clean)


@torch.no_grad()
def denoise_whole(model: Denoise, noisy: NDArray[np.uint8], sigma: float) -> NDArray[np.float32]:
    """Denoise an image in torch as the runtime defines it: mirrored by the halo and up to the stride, run, cropped.

    Args:
        model: what has `halo` and `stride` (a model, a quantized program) is given a mirrored border; a plain function
            gets the image as it is.
        noisy: uint8 [H, W, C].
        sigma: in 8-bit units.
    Returns: float32 [H, W, C], not clipped.
    """
    halo, stride = getattr(model, "halo", 0), getattr(model, "stride", 1)
    border = -(-halo // stride) * stride
    height, width = noisy.shape[:2]
    padded = window(noisy, -border, -border, *(2 * border + -(-side // stride) * stride for side in (height, width)))
    device = next(model.parameters()).device if isinstance(model, nn.Module) else None
    output = model(_to_tensor(padded).to(device), torch.full((1,), sigma / 255, device=device)).float().cpu()
    result: NDArray[np.float32] = output[0].permute(1, 2, 0).numpy()
    return result[border : border + height, border : border + width]


def _to_tensor(image: NDArray[Any]) -> Tensor:
    """uint8 [H, W, C] to float32 [1, C, H, W] in 0..1, channels last in memory, which convolutions prefer."""
    return (
        (torch.from_numpy(image.copy()).float() / 255)
        .permute(2, 0, 1)[None]
        .contiguous(memory_format=torch.channels_last)
    )
