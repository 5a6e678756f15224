"""Noisy images sorted by ISO, and the noise of each."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.profile.jpeg import jpeg_quality
from edgekit.profile.line import NoiseProfile, fit
from edgekit.runtime import images
from edgekit.runtime.estimate import SigmaEstimate, estimate_sigma

# ISO100, iso_3200, 1600
_ISO = re.compile(r"(?:iso)?[ _-]*(\d{2,7})", re.IGNORECASE)
_ALPHA = {2: 1, 4: 3}


@dataclass(frozen=True)
class IsoFolder:
    """Images of one ISO; `iso` is None where the folder's name says none."""

    iso: int | None
    files: tuple[Path, ...]


@dataclass(frozen=True)
class IsoProfile:
    """What was found for one ISO.

    Attributes:
        iso: as the folder's name says.
        images: how many were read.
        line: the sensor's noise.
        sigma: what a denoiser is best told, in 8-bit units.
        correlated: whether most images' noise is correlated between neighbours: then `line` is too low, and `sigma` is
            the median of the images' estimates; else it is the root mean square of the noise by the line.
        qualities: libjpeg's quality, 1 to 100, of each image that is a JPEG.
    """

    iso: int | None
    images: int
    line: NoiseProfile
    sigma: float
    correlated: bool
    qualities: tuple[int, ...] = ()


def iso_folders(folder: Path) -> tuple[list[IsoFolder], list[str]]:
    """The images below a folder by ISO, the lowest first, and the names of what is left out: folders that say none, and
    where there are folders that do, images beside them.

    A folder without subfolders that are named after an ISO is taken whole.

    Raises: DataError: no such folder, an ISO twice, or no image.
    """
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}: expected noisy images, or folders of them named ISO100, ISO1600, ...")
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    named: dict[int, Path] = {}
    for path in below:
        if match := _ISO.fullmatch(path.name):
            iso = int(match[1])
            if iso in named:
                raise DataError(f"{named[iso].name} and {path.name} in {folder} are both ISO {iso}: join them")
            named[iso] = path
    if not named:
        own = _ISO.fullmatch(folder.resolve().name)
        left = [path.name for path in below]
        return [IsoFolder(int(own[1]) if own else None, tuple(images.list_images(folder)))], left
    found = [IsoFolder(iso, tuple(images.list_images(named[iso]))) for iso in sorted(named)]
    beside = (p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix.lower() in images.FORMATS)
    return found, [path.name for path in (*below, *beside) if path not in named.values() and path.name[0] != "."]


def measure(
    folders: Sequence[IsoFolder],
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    on_skipped: Callable[[str], None] = lambda why: None,
) -> list[IsoProfile]:
    """Fit the noise of each ISO.

    Args:
        folders: of `iso_folders`.
        progress: told the files that were read.
        on_skipped: told of each file that cannot be read, and why; the others are measured.
    Raises: DataError: no image of a folder can be read, or none has blocks flat enough to show noise.
    """
    total = sum(len(folder.files) for folder in folders)
    done = 0
    found = []
    for folder in folders:
        estimates: list[SigmaEstimate] = []
        wrong: list[str] = []
        qualities: list[int] = []

        def pixels(
            folder: IsoFolder = folder,
            estimates: list[SigmaEstimate] = estimates,
            wrong: list[str] = wrong,
            qualities: list[int] = qualities,
        ) -> Iterator[NDArray[Any]]:
            # One image is in memory at a time.
            nonlocal done
            for file in folder.files:
                done += 1
                progress("profile", done, total)
                try:
                    image = _colours(images.load(file).pixels)
                except DataError as error:
                    wrong.append(str(error))
                    on_skipped(wrong[-1])
                    continue
                if (quality := jpeg_quality(file)) is not None:
                    qualities.append(quality)
                if min(image.shape[:2]) >= 3:
                    estimates.append(estimate_sigma(image))
                yield image

        try:
            line = fit(pixels())
        except DataError as error:
            unread = len(wrong) == len(folder.files)
            what = f"none of its {len(wrong)} images can be read: {wrong[0]}" if unread else error
            raise DataError(f"{folder.files[0].parent}: {what}") from None
        correlated = sum(e.correlated for e in estimates) > len(estimates) / 2
        level = statistics.median(e.raw for e in estimates) if correlated else line.level
        count = len(folder.files) - len(wrong)
        found.append(IsoProfile(folder.iso, count, line, level, correlated, tuple(qualities)))
    return found


def _colours(image: NDArray[Any]) -> NDArray[Any]:
    planes = image[..., None] if image.ndim == 2 else image
    return planes[..., : _ALPHA.get(planes.shape[2], planes.shape[2])]
