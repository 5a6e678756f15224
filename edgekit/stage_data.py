"""What the stages of a compression run draw from: training batches, tiles to report on, tiles to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.compress.batches import Batches
from edgekit.compress.evaluate import NoisyTiles, Tiles, noisy_tiles
from edgekit.errors import DataError
from edgekit.recipe import NoiseSettings, Recipe, TrainSettings
from edgekit.train import noise
from edgekit.train.images import ImageSource, Picture, open_images, split
from edgekit.train.sampling import batches
from edgekit.train.validation import validation_levels

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
        tiles: held-out tiles for the stages' records.
        sigmas: noise levels of the stages' records, in 8-bit units: the standard ones that the recipe's range holds.
        golden: other held-out tiles, for the verdict; no stage sees them.
        digest: equal for the same images, split alike.
        licence: under what terms the images come.
        use: what for, one of `edgekit.models.licences.USES`.
        skipped: images that were left out and why, a line each.
        source: the images themselves, divided.
    """

    batches: Batches
    tiles: Tiles
    sigmas: tuple[float, ...]
    golden: GoldenImages
    digest: str
    licence: str
    use: str
    skipped: tuple[str, ...]
    source: ImageSource


def open_stage_data(recipe: Recipe, channels: int, source: ImageSource | None = None) -> StageData:
    """Read the images of a recipe and divide the held-out ones into tiles to report on and tiles to be judged by.

    Args:
        source: the recipe's images, if they are open.
    Raises: DataError: no folder, no usable image, or held-out images too small for two tiles.
    """
    stage = recipe.distillation
    source = source or open_images(recipe.data, channels=channels, patch=stage.patch, seed=recipe.seed)
    settings = recipe.noise.model_copy(update={"sigma": recipe.sigma})
    levels = validation_levels(settings)
    drawing = TrainSettings(batch=stage.batch, patch=stage.patch, seed=recipe.seed, noise=settings)
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
    seen, judged = (
        _with_noise(part, settings, seed) for seed, part in enumerate((pairs[:half], pairs[half : 2 * half]))
    )
    return StageData(
        batches=batches(source, drawing),
        tiles=seen,
        sigmas=levels,
        golden=_golden(judged, levels),
        digest=source.digest,
        licence=source.licence,
        use=source.use,
        skipped=source.skipped,
        source=source,
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


def _with_noise(pairs: list[tuple[Images, Images | None]], settings: NoiseSettings, seed: int) -> Tiles:
    """Tiles of pairs with their own noise, else with noise that is drawn; Gaussian noise is added level by level later.

    What the model is told is what training tells it of a crop: the root mean square of noisy - clean.
    """
    clean = np.stack([c for c, _ in pairs])
    given = [n for _, n in pairs if n is not None]
    if not given and settings.model == "gaussian":
        return clean
    if given:
        noisy = np.stack(given)
        sigma = np.sqrt(np.mean((noisy.astype(np.float64) - clean) ** 2, axis=(1, 2, 3)))
    else:
        images = torch.from_numpy(clean).permute(0, 3, 1, 2).float() / 255
        drawn, level = noise.draw(images, settings, torch.Generator().manual_seed(seed))
        noisy = (255 * drawn).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        sigma = 255 * level.double().numpy()
    return NoisyTiles(clean, noisy, np.clip(sigma, *settings.sigma).astype(np.float32))


def _golden(tiles: Tiles, levels: tuple[float, ...]) -> GoldenImages:
    if isinstance(tiles, NoisyTiles):
        return GoldenImages(tiles.noisy, tiles.clean, tiles.sigma)
    # Another seed than the stage records'.
    noisy = np.concatenate([noisy_tiles(tiles, level, seed=1) for level in levels])
    clean = np.concatenate([tiles] * len(levels))
    return GoldenImages(noisy, clean, np.repeat(np.array(levels, np.float32), len(tiles)))
