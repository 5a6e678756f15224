"""The image that speed is measured on: one whose useful pixels fill exactly one tile."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.reader import Bundle


def fill_one_tile(bundle: Bundle) -> tuple[NDArray[np.uint8], float]:
    """An image that costs one run of the model, and not a pixel of that run is wasted but the halo.

    It is the first golden tile, repeated: real content, for a run's time can depend on it.

    Args:
        bundle: an open bundle.
    Returns: the image, uint8 [S, S, C], S being the tile less the halo on both sides (on top and left rounded up to
        the stride); and its noise level in 8-bit units.
    Raises: BundleError: the golden tiles are damaged.
    """
    golden = bundle.golden()
    return fill(bundle.manifest, golden.noisy[0]), float(golden.sigma[0])


def fill(manifest: Manifest, tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A tile's image, uint8 [H, W, C], repeated until its pixels are the useful ones of one run."""
    halo, stride = manifest.model.halo, manifest.model.stride
    side = manifest.tile - math.ceil(halo / stride) * stride - halo
    copies = math.ceil(side / min(tile.shape[:2]))
    return np.tile(tile, (copies, copies, 1))[:side, :side]
