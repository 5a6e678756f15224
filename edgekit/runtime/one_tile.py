"""The image that speed is measured on: one whose useful pixels fill exactly one tile."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

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
    manifest, golden = bundle.manifest, bundle.golden()
    halo, stride = manifest.model.halo, manifest.model.stride
    side = manifest.tile - math.ceil(halo / stride) * stride - halo
    copies = math.ceil(side / min(golden.noisy.shape[1:3]))
    image = np.tile(golden.noisy[0], (copies, copies, 1))[:side, :side]
    return image, float(golden.sigma[0])
