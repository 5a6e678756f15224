"""Where training images come from: a folder of clean images, a folder of pairs, or the built-in set."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import DataError
from edgekit.models import licences
from edgekit.pair_folder import is_paired
from edgekit.train.decode import SUFFIXES, Image, decode

log = logging.getLogger("edgekit.train")

# Name, reader of the clean image, reader of the noisy one.
_Found = tuple[str, Callable[[], Image], Callable[[], Image] | None]

# Decoded images beyond this many bytes are read from the disk again for every crop.
_MEMORY = 2 * 2**30


class _MismatchError(DataError):
    """A pair whose two images are of different size: the set is wrong, not one file."""


class Picture:
    """One training image, or a pair of a noisy and a clean one.

    Attributes:
        name: where it comes from: a path below the data folder, or a name in the built-in set.
        shape: (height, width, channels).
        digest: sha256 of the clean pixels and their shape: the same image has the same digest in any file format.
        noisy_digest: the same of the noisy image; empty without one.
    """

    def __init__(
        self, name: str, decode_clean: Callable[[], Image], decode_noisy: Callable[[], Image] | None = None
    ) -> None:
        """Decode once, to see that it works. `keep` decides whether the pixels stay in memory."""
        self.name = name
        self._decoders = (decode_clean, decode_noisy)
        self._kept: tuple[Image, Image | None] | None = (decode_clean(), decode_noisy() if decode_noisy else None)
        clean, noisy = self._kept
        self.shape: tuple[int, ...] = clean.shape
        if noisy is not None and noisy.shape != clean.shape:
            raise _MismatchError(
                f"the pair {name} does not match: noisy is {noisy.shape[1]}x{noisy.shape[0]}, "
                f"clean is {clean.shape[1]}x{clean.shape[0]}; both must show the same pixels"
            )
        self.digest = pixel_digest(clean)
        self.noisy_digest = "" if noisy is None else pixel_digest(noisy)

    @classmethod
    def of(cls, name: str, clean: Image, noisy: Image | None = None) -> Picture:
        """A picture from arrays, uint8 [H, W, C]."""
        return cls(name, lambda: clean, None if noisy is None else lambda: noisy)

    @property
    def paired(self) -> bool:
        """True when the noisy image is given, too."""
        return self._decoders[1] is not None

    @property
    def nbytes(self) -> int:
        """Bytes that the decoded pixels take."""
        height, width, channels = self.shape
        return height * width * channels * (2 if self.paired else 1)

    def pixels(self) -> tuple[Image, Image | None]:
        """(clean, noisy or None), uint8 [H, W, C]."""
        if self._kept is not None:
            return self._kept
        clean, noisy = self._decoders
        return clean(), noisy() if noisy else None

    def drop(self) -> None:
        """Keep no pixels in memory: they are decoded when they are asked for."""
        self._kept = None


@dataclass(frozen=True)
class ImageSource:
    """The images of a run, split so that what judges a model never trained it.

    Attributes:
        name: the folder as given, or "built-in".
        training: what batches are drawn from.
        held_out: what validation and golden tiles are cut from; in the order of their digests.
        skipped: what was left out and why, a line each.
        licence: under what terms the images come, as far as edgekit knows.
        use: what for, one of `edgekit.models.licences.USES`.
    """

    name: str
    training: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    skipped: tuple[str, ...] = ()
    licence: str = licences.OWNERS_WORD
    use: str = licences.OWNER

    @property
    def paired(self) -> bool:
        """True when every image comes with its own noise."""
        return self.training[0].paired

    @property
    def digest(self) -> str:
        """sha256 of all images' digests: equal for the same images, split alike."""
        digests = (p.digest + p.noisy_digest for p in (*self.training, *self.held_out))
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return self.training[0].shape[2]


def open_images(
    data: str | os.PathLike[str] | None = None,
    *,
    channels: int = 3,
    patch: int = 96,
    validation_share: float = 0.02,
    seed: int = 0,
    leaves: int = 32,
) -> ImageSource:
    """Read the images of a run and hold some of them out.

    Args:
        data: a folder: clean images, searched recursively; or `noisy/` and `clean/` below it, paired by name. None is
            the built-in set: images of the scikit-image wheel that are CC0 or public domain, and dead leaves.
            `licence.yaml` in the folder may state its terms.
        channels: 3 (gray images get three equal channels) or 1 (colour images become luma).
        patch: side of the crops, in pixels; smaller images are left out.
        validation_share: share of the images to hold out, at least one; 0 holds none out. Which ones is decided by
            their digests, so that the same folder is split alike anywhere. The built-in set has its own fixed split.
        seed: of the dead leaves.
        leaves: how many of these the built-in set has.
    Raises: DataError: no folder, no image, all unreadable or too small, images without a partner; other channels.
    """
    if channels not in (1, 3):
        raise DataError(
            f"images of {channels} channels: image files are read as 1 (gray) or 3 (RGB); a network for packed Bayer "
            "is trained in Python, on an ImageSource of your own"
        )
    if data is None:
        from edgekit.train.builtin import builtin

        return builtin(channels=channels, patch=patch, seed=seed, leaves=leaves)
    folder = check_folder(data)
    if is_paired(folder):
        from edgekit.train.pairs import pairs

        found: list[_Found] = [
            (name, _reader(clean, channels), _reader(noisy, channels)) for name, clean, noisy in pairs(folder)
        ]
    else:
        found = [(str(path.relative_to(folder)), _reader(path, channels), None) for path in image_files(folder)]
    if not found:
        raise DataError(
            f"data folder {str(data)!r} holds no images: expected files ending in {', '.join(sorted(SUFFIXES))}, "
            "or noisy/ and clean/ with such files"
        )
    pictures, skipped = _read_all(found, folder, patch)
    training, held_out = split(pictures, validation_share)
    terms = licences.of_images(folder)
    return ImageSource(str(data), training, held_out, tuple(skipped), terms.licence, terms.use)


def check_folder(data: str | os.PathLike[str]) -> Path:
    """The data folder as a path. Raises: DataError: there is none."""
    folder = Path(data)
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"data folder {str(data)!r} {problem}: expected a folder of clean images, or of noisy/ and clean/"
        )
    return folder


def image_files(folder: Path) -> list[Path]:
    """Every file below a folder whose name ends like an image, in a fixed order; hidden ones are left out."""
    files = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    return sorted(files, key=lambda path: path.relative_to(folder).parts)


def pixel_digest(image: Image) -> str:
    """sha256 of an image's shape and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def split(pictures: Sequence[Picture], share: float) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """(training, held out): the share of clean images with the smallest digests is held out.

    Raises: DataError: one clean image alone cannot be split.
    """
    if share == 0:
        return tuple(pictures), ()
    # Pairs may show a scene more than once, under one clean image: a scene is on one side or the other.
    scenes = sorted({picture.digest for picture in pictures})
    if len(scenes) < 2:
        raise DataError(
            f"only one usable image ({pictures[0].name}): at least 2 are needed, one of them held out to judge by; "
            "add images, or set validation_share to 0"
        )
    chosen = set(scenes[: min(len(scenes) - 1, max(1, round(share * len(scenes))))])
    held_out = sorted((p for p in pictures if p.digest in chosen), key=lambda picture: (picture.digest, picture.name))
    return tuple(p for p in pictures if p.digest not in chosen), tuple(held_out)


def _reader(path: Path, channels: int) -> Callable[[], Image]:
    return lambda: decode(path, channels)


def _read_all(found: Iterable[_Found], folder: Path, patch: int) -> tuple[list[Picture], list[str]]:
    pictures: list[Picture] = []
    unreadable: list[str] = []
    small: list[str] = []
    twice: list[str] = []
    seen: dict[str, str] = {}
    largest, memory = 0, 0
    for name, clean, noisy in found:
        try:
            picture = Picture(name, clean, noisy)
        except _MismatchError:
            raise
        except DataError as error:
            unreadable.append(str(error))
            continue
        if min(picture.shape[:2]) < patch:
            small.append(f"{name} is {picture.shape[1]}x{picture.shape[0]}, smaller than the {patch}-pixel crop")
            largest = max(largest, min(picture.shape[:2]))
        elif picture.digest in seen and not picture.paired:
            # A copy in the training half would leak what is held out.
            twice.append(f"{name} is the same image as {seen[picture.digest]}")
        else:
            seen[picture.digest] = name
            pictures.append(picture)
            memory += picture.nbytes
            if memory > _MEMORY:
                picture.drop()
    if not pictures and small:
        fits = largest // 8 * 8 or largest  # a multiple of every model's stride
        raise DataError(
            f"all {len(small)} readable images in {folder} are smaller than the {patch}-pixel crop "
            f"(the largest has a side of {largest}): give larger images, or set patch to {fits} or less"
        )
    if not pictures:
        raise DataError(f"none of the {len(unreadable)} images in {folder} can be read; the first: {unreadable[0]}")
    skipped = [*unreadable, *small, *twice]
    if skipped:
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        counts = f"{len(unreadable)} unreadable, {len(small)} too small, {len(twice)} repeated"
        total = len(pictures) + len(skipped)
        log.warning("skipped %d of %d images (%s): %s%s", len(skipped), total, counts, "; ".join(skipped[:3]), more)
    return pictures, skipped
