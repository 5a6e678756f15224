"""How strongly JPEG files are compressed, by the tables in them."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def jpeg_quality(path: Path) -> int | None:
    """The quality of libjpeg, 1 to 100, whose table for brightness is nearest to the file's; None if it is no JPEG.

    Cameras have tables of their own: of these it is the one that is about as coarse, by the logarithms of all 64 steps.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            # MPO is what phones call a JPEG with a second picture in it.
            tables = image.quantization if image.format in ("JPEG", "MPO") else {}  # type: ignore[attr-defined]
    except OSError:
        return None
    if len(tables.get(0, ())) != 64:
        return None
    own = np.log(np.asarray(tables[0], float).clip(min=1))
    return 1 + int(np.abs(_libjpeg() - own).sum(1).argmin())


@cache
def _libjpeg() -> NDArray[np.float64]:
    """log of the 64 steps for brightness, [100, 64], of the qualities from 1 on, as libjpeg itself writes them."""
    from PIL import Image

    found = []
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("L", (8, 8)).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            found.append(image.quantization[0])  # type: ignore[attr-defined]
    steps: NDArray[np.float64] = np.log(np.asarray(found, float))
    return steps
