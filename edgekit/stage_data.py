"""What the stages of a compression run draw from: training batches, tiles to report on, tiles to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.batches import Batches
from edgekit.compress.evaluate import noisy_tiles
from edgekit.compress.record import SIGMAS
from edgekit.errors import DataError
from edgekit.recipe import NoiseSettings, Recipe, TrainSettings
from edgekit.train.images import ImageSource, Picture, open_images, split
from edgekit.train.sampling import batches

# Side of a tile in pixels, and how many of each kind: enough for 0.01 dB of repeatable figures, few enough to ship.
TILE = 96
TILES = 8

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class GoldenImages:
    """Tiles that a bundle is judged by: noisy and clean uint8 [K, H, W, C], sigma float32 [K] in 8-bit units."""

    noisy: Images
    clean: Images
    sigma: NDArray[np.float32]


@dataclass(frozen=True)
class StageData:
    """Images of one run.

    Attributes:
        batches: training batches by step number.
        tiles: held-out clean tiles for the stages' records, uint8 [K, H, W, C].
        sigmas: noise levels of the stages' records, in 8-bit units: the standard ones that the recipe's range holds.
        golden: other held-out tiles, for the verdict; no stage sees them.
        digest: equal for the same images, split alike.
        licence: under what terms the images come.
        skipped: images that were left out and why, a line each.
    """

    batches: Batches
    tiles: Images
    sigmas: tuple[float, ...]
    golden: GoldenImages
    digest: str
    licence: str
    skipped: tuple[str, ...]


def open_stage_data(recipe: Recipe, channels: int) -> StageData:
    """Read the images of a recipe and divide the held-out ones into tiles to report on and tiles to be judged by.

    Raises: DataError: no folder, no usable image, or held-out images too small for two tiles.
    """
    stage = recipe.distillation
    source = open_images(recipe.data, channels=channels, patch=stage.patch, seed=recipe.seed)
    # All as a device sees it: clipped and rounded.
    noise = NoiseSettings(sigma=recipe.sigma, device_share=1.0)
    settings = TrainSettings(batch=stage.batch, patch=stage.patch, seed=recipe.seed, noise=noise)
    pairs = list(islice(_tiles(source, recipe.seed), 2 * TILES))
    share = 0.04
    while len(pairs) < 2 and share < 0.5:
        # Small images: hold out more of them.
        training, held_out = split((*source.training, *source.held_out), share)
        source = replace(source, training=training, held_out=held_out)
        pairs, share = list(islice(_tiles(source, recipe.seed), 2 * TILES)), 2 * share
    if len(pairs) < 2:
        raise DataError(
            f"{source.name}: held-out images ({', '.join(p.name for p in source.held_out)}) give {len(pairs)} tiles of "
            f"{TILE}x{TILE}: at least 2 are needed; add larger images"
        )
    half = min(TILES, len(pairs) // 2)
    seen, judged = pairs[:half], pairs[half : 2 * half]
    return StageData(
        batches=batches(source, settings),
        tiles=np.stack([clean for clean, _ in seen]),
        sigmas=_levels(recipe.sigma),
        golden=_golden(judged, recipe.sigma),
        digest=source.digest,
        licence=source.licence,
        skipped=source.skipped,
    )


def _tiles(source: ImageSource, seed: int) -> Iterator[tuple[Images, Images | None]]:
    """Tiles that do not overlap, (clean, noisy or None), one of each held-out picture in turn, at seeded places."""
    rng = np.random.default_rng([seed, len(source.held_out)])
    grids = [_grid(picture, rng) for picture in source.held_out]
    while any(grids):
        for picture, grid in zip(source.held_out, grids, strict=True):
            if grid:
                cell = grid.pop()
                clean, noisy = picture.pixels()
                # Copies: a view would keep the whole image in memory.
                yield clean[cell].copy(), None if noisy is None else noisy[cell].copy()


def _grid(picture: Picture, rng: np.random.Generator) -> list[tuple[slice, slice]]:
    rows, columns = (side // TILE for side in picture.shape[:2])
    places = [(TILE * r, TILE * c) for r in range(rows) for c in range(columns)]
    cells = [(slice(top, top + TILE), slice(left, left + TILE)) for top, left in places]
    return [cells[i] for i in rng.permutation(len(cells))]


def _levels(sigma: tuple[float, float]) -> tuple[float, ...]:
    """The levels that the field reports, as far as they lie in the range; its upper end where none does."""
    low, high = sigma
    return tuple(s for s in SIGMAS if low <= s <= high) or (high,)


def _golden(pairs: list[tuple[Images, Images | None]], sigma: tuple[float, float]) -> GoldenImages:
    clean = np.stack([c for c, _ in pairs])
    given = [n for _, n in pairs if n is not None]
    low, high = sigma
    if given:
        noisy = np.stack(given)
        level = float(np.sqrt(np.mean((noisy.astype(np.float64) - clean) ** 2)))
        return GoldenImages(noisy, clean, np.full(len(clean), np.clip(level, low, high), np.float32))
    levels = _levels(sigma)
    # Another seed than the stage records'.
    noisy = np.concatenate([noisy_tiles(clean, level, seed=1) for level in levels])
    return GoldenImages(
        noisy, np.concatenate([clean] * len(levels)), np.repeat(np.array(levels, np.float32), len(clean))
    )
