"""The built-in set: free images inside the scikit-image wheel, and dead leaves. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import DataError, MissingExtraError
from edgekit.models import licences
from edgekit.train.dead_leaves import dead_leaves
from edgekit.train.decode import Image, decode
from edgekit.train.images import ImageSource, Picture


@dataclass(frozen=True)
class FreeImage:
    """An image of the scikit-image wheel.

    Attributes:
        function: the function of skimage.data that loads it; its docstring states the terms.
        file: its file in the wheel's `data` folder.
        terms: the words of that docstring, compared with it by a test.
        shrink: average so many pixels each way: large images would outweigh the others, and lose their grain by it.
        held_out: True for the images that judge models and train none.
    """

    function: str
    file: str
    terms: str
    shrink: int = 1
    held_out: bool = False


# Left out though free: a drawing, a silhouette, a text scan, a motion-blurred clock, a hologram with banding, and a
# 102-pixel detail.
FREE_IMAGES = (
    FreeImage("astronaut", "astronaut.png", "released into the public domain"),
    FreeImage("brick", "brick.png", "licensed under the Creative Commons CC0 License"),
    FreeImage("camera", "camera.png", "CC0 by the photographer (Lav Varshney)"),
    FreeImage("chelsea", "chelsea.png", "CC0 by the photographer (Stefan van der Walt)", held_out=True),
    FreeImage("coffee", "coffee.png", "CC0 by the photographer (Rachel Michetti)", held_out=True),
    FreeImage("grass", "grass.png", "licensed under the Creative Commons CC0 License"),
    FreeImage("gravel", "gravel.png", "licensed under the Creative Commons CC0 License"),
    FreeImage("hubble_deep_field", "hubble_deep_field.jpg", "may be freely used in the public domain", shrink=2),
    FreeImage("retina", "retina.jpg", "Creative Commons CC0 1.0 Universal Public Domain Dedication", shrink=3),
    FreeImage("rocket", "rocket.jpg", "released in the public domain"),
)
LEAVES = 32
_LEAF_SIZE = 256


def builtin(*, channels: int = 3, patch: int = 96, seed: int = 0, leaves: int = LEAVES) -> ImageSource:
    """The built-in images, about 4 megapixels, split once and for all into training and held-out ones.

    Args:
        channels: 1 or 3.
        patch: side of the crops in pixels, at most 256.
        seed: of the dead leaves.
        leaves: how many dead-leaves images to draw; half of them take their colours from the training photographs.
    Raises: MissingExtraError: scikit-image is not installed. DataError: `patch` is too large, or its images are gone.
    """
    if patch > _LEAF_SIZE:
        raise DataError(
            f"patch is {patch}: the built-in images take at most {_LEAF_SIZE}; "
            "set a smaller patch, or give a folder of larger images as data"
        )
    folder = _folder()
    pictures = {
        image.function: Picture(f"skimage/{image.file}", _reader(folder, image, channels)) for image in FREE_IMAGES
    }
    training = [pictures[image.function] for image in FREE_IMAGES if not image.held_out]
    palettes = [picture.pixels()[0] for picture in training]
    for k in range(leaves):
        rng = np.random.default_rng([seed, k])
        colors = palettes[k // 2 % len(palettes)] if k % 2 else None
        smallest = float(rng.choice([1, 2, 4, 8]))
        image = dead_leaves(_LEAF_SIZE, rng, colors=colors, channels=channels, smallest=smallest)
        training.append(Picture.of(f"dead leaves {k} of seed {seed}", image))
    held_out = sorted((pictures[i.function] for i in FREE_IMAGES if i.held_out), key=lambda picture: picture.digest)
    terms = licences.of_images(None)
    return ImageSource("built-in", tuple(training), tuple(held_out), licence=terms.licence, use=terms.use)


def _folder() -> Path:
    # The package itself is not imported: it is slow, and only its files are wanted.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingExtraError.needs("the built-in image set", "scikit-image", "train")
    return Path(spec.origin).parent / "data"


def _reader(folder: Path, image: FreeImage, channels: int) -> Callable[[], Image]:
    def read() -> Image:
        pixels = decode(folder / image.file, channels)
        if image.shrink == 1:
            return pixels
        n = image.shrink
        height, width = (d // n * n for d in pixels.shape[:2])
        cells = pixels[:height, :width].reshape(height // n, n, width // n, n, channels).astype(np.float32)
        shrunk: Image = np.rint(cells.mean((1, 3))).astype(np.uint8)
        return shrunk

    return read
