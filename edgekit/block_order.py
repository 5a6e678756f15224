"""The two ways to number the channels that a pixel-shuffle makes pixels of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def block_first(deep: int, block: int) -> NDArray[Any]:
    """For each of `deep` channels, numbered by the place in the block first, its number where the channel comes first.

    torch numbers by the channel first (ONNX's CRD), TFLite and ONNX's SpaceToDepth and DCR by the place.
    """
    return np.arange(deep).reshape(-1, block * block).T.reshape(-1)
