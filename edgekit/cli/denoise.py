"""denoise: image files and folders through a bundle."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from edgekit.cli.progress import Bars
from edgekit.cli.wrap import say
from edgekit.errors import DataError, OutputExistsError, RecipeError, ShapeError
from edgekit.runtime import images as files
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.denoiser import open as open_bundle
from edgekit.shortened import shortened


def denoise(
    images: Annotated[
        list[Path], typer.Argument(metavar="IN...", help="PNG, JPEG, TIFF or BMP files, or folders of them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="File for one image, else a folder.")],
    model: Annotated[
        Path, typer.Option("--model", metavar="BUNDLE", help="Folder or zip that `edgekit compress` wrote.")
    ],
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="the bundle's", help="Model file: int8, fp16, fp32, ...")
    ] = None,
    sigma: Annotated[str, typer.Option(metavar="25|auto", help="Noise level in 8-bit units, or estimate it.")] = "auto",
    iso: Annotated[
        float | None,
        typer.Option(metavar="1600", help="ISO of the images: the noise level of the bundle's own table."),
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", show_default="at most 4", help="CPU threads.")] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", show_default="CPU", help="For OpenVINO: CPU, GPU, NPU, AUTO; CPU is tested.")
    ] = "",
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="For OpenVINO: keep compiled models here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Denoise images; size, depth, colour and alpha stay as they are."""
    level = _level(sigma)
    if iso is not None and level != "auto":
        raise RecipeError(f"--iso {iso:g} and --sigma {sigma}: both name a noise level; give one of them")
    if isinstance(level, float) and 0 < level < 1:
        say(f"note: --sigma {level:g} is next to no noise: levels are in 8-bit units, 0 to 255 (25, not 25 / 255)")
    jobs = plan(images, out, force=force)
    _tell_left_out(images, {source for source, _ in jobs}, out)
    # One image should be done soon; of many, the last one should.
    hint = "latency" if len(jobs) == 1 else "throughput"

    def opened(name: str | None) -> Denoiser:
        return open_bundle(model, variant=name, threads=threads, device=device, hint=hint, cache=cache)

    with Bars() as bars:
        work = _Work(level, force, len(jobs), bars)
        with opened(variant) as denoiser:
            work.level = _asked(denoiser, level, iso)
            finer = _float_variant(denoiser) if variant is None else None
            deep = work.through(denoiser, jobs, leave_deep=finer is not None)
        if deep:
            named = deep[0][0].name + (f" and {len(deep) - 1} more" if len(deep) > 1 else "")
            say(
                f"note: {named}: more than 8 bits, denoised by {finer}; integers may leave steps where an image is "
                "smooth (--variant int8 takes them, and is faster)"
            )
            with opened(finer) as denoiser:
                work.through(denoiser, deep)
        bars("denoise", len(jobs), len(jobs))
    if work.unreadable:
        raise DataError(f"skipped {len(work.unreadable)} of {len(jobs)} images, the first: {work.unreadable[0]}")


@dataclass
class _Work:
    """Files on their way through a model, or through two.

    Attributes:
        level: noise level in 8-bit units, or "auto".
        force: replace existing files.
        total: how many files there are.
        bars: told how far it is.
        done: files that were written.
        unreadable: why each other one was not.
    """

    level: float | str
    force: bool
    total: int
    bars: Bars
    done: int = 0
    unreadable: list[str] = field(default_factory=list)

    def through(
        self, denoiser: Denoiser, jobs: Sequence[tuple[Path, Path]], *, leave_deep: bool = False
    ) -> list[tuple[Path, Path]]:
        """Denoise files; the jobs that were left: those of more than 8 bits, the precision of integers, if asked to."""
        left: list[tuple[Path, Path]] = []
        under_way: deque[tuple[Path, files.Picture]] = deque()
        self.bars("denoise", self.done + len(self.unreadable), self.total)

        def pictures() -> Iterator[tuple[NDArray[Any], float | None]]:
            for source, target in jobs:
                try:
                    picture = files.load(source)
                    if leave_deep and picture.pixels.dtype != np.uint8:
                        left.append((source, target))
                        continue
                    told = _told(denoiser, source, picture, self.level)
                except (DataError, ShapeError) as error:
                    # Of a folder, one bad file must not cost the others.
                    if self.total == 1:
                        raise
                    message = str(error) if isinstance(error, DataError) else f"{source}: {error}"
                    self.unreadable.append(message)
                    say(f"skipped: {message}")
                    continue
                under_way.append((target, picture))
                yield picture.pixels, told

        for clean in denoiser.many(pictures()):
            target, picture = under_way.popleft()
            target.parent.mkdir(parents=True, exist_ok=True)
            files.save(target, clean, like=picture, overwrite=self.force)
            self.done += 1
            self.bars("denoise", self.done + len(self.unreadable), self.total, target.name)
        return left


def _float_variant(denoiser: Denoiser) -> str | None:
    """The float model beside an integer one; None where this is no integer one, or it is alone."""
    names = [v.name for v in denoiser.manifest.variants]
    return "fp32" if denoiser.variant.integer and "fp32" in names else None


def _asked(denoiser: Denoiser, level: float | str, iso: float | None) -> float | str:
    """The noise level that the flags name; a blind bundle has no use for it, and the user is told so."""
    found = None if iso is None else denoiser.sigma_of_iso(iso)
    if denoiser.sigma_range is None and (iso is not None or not isinstance(level, str)):
        flag = f"--sigma {level:g}" if iso is None else f"--iso {iso:g}"
        say(f"note: {flag} is ignored: {denoiser.manifest.name} is blind, it takes no noise level")
    if found is None:
        return level
    say(f"note: sigma {found:.1f} for ISO {iso:g}, from the bundle's table")
    return found


def _told(denoiser: Denoiser, source: Path, picture: files.Picture, level: float | str) -> float | None:
    """The noise level that the model is told of an image; an estimated one is said to the user."""
    if denoiser.sigma_range is None:
        return None
    if not isinstance(level, str):
        return level
    found = denoiser.estimate(picture.pixels)
    doubt = "; correlated between neighbours, as a camera leaves it" if found.correlated else ""
    if not found.correlated and source.suffix.lower() in (".jpg", ".jpeg"):
        doubt = "; JPEG noise reads too low"
    if found.clamped:
        low, high = denoiser.sigma_range
        doubt = f"{doubt}; outside what {denoiser.manifest.name} takes ({low:g} to {high:g}): using {found.sigma:g}"
    say(f"note: {source}: sigma {found.raw:.1f}, estimated{doubt}")
    return found.sigma


def plan(sources: Sequence[Path], out: Path, *, force: bool) -> list[tuple[Path, Path]]:
    """Which file becomes which; everything that can be refused is refused here, before any file is written.

    Args:
        sources: files, or folders, whose images are taken but not those of folders in them.
        out: a file for a single image file, else a folder; without a suffix it is a folder.
        force: existing outputs may be replaced; an input never is.
    Raises: DataError: a source is missing, a folder holds no image, an output has no image format's suffix.
        OutputExistsError. RecipeError: `out` is a file but there are several images, an output is also an input, or two
        sources would become one file.
    """
    pairs: list[tuple[Path, Path]] = []
    to_folder = out.is_dir() or len(sources) > 1 or sources[0].is_dir() or not out.suffix
    for source in sources:
        if source.is_dir():
            pairs += [(file, out / file.name) for file in files.list_images(source)]
        elif source.is_file():
            pairs.append((source, out / source.name if to_folder else out))
        else:
            raise DataError(f"no image at {source}: expected a file ({', '.join(files.FORMATS)}) or a folder of them")
    if to_folder and (out.is_file() or (out.suffix.lower() in files.FORMATS and not out.is_dir())):
        what = "is" if out.is_file() else "is named like"
        raise RecipeError(f"-o {out} {what} a file: expected a folder for {len(pairs)} image{'s' * (len(pairs) != 1)}")
    for _, target in pairs:
        if target.suffix.lower() not in files.FORMATS:
            raise DataError(f"{target} has the suffix {target.suffix!r}: expected one of {', '.join(files.FORMATS)}")
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists() and folder != out)
    if not above.is_dir():
        raise RecipeError(f"-o {out} lies below {above}, which is a file: choose another -o")
    _refuse_overwriting(pairs, force=force)
    return pairs


def _tell_left_out(sources: Sequence[Path], taken: Set[Path], out: Path) -> None:
    """Say what of each folder is not among the images that are taken, so that nobody takes the result for all of it."""
    for folder in (source for source in sources if source.is_dir()):
        left = [path for path in sorted(folder.iterdir()) if path not in taken and path.name[0] != "."]
        inner = [path.name for path in left if path.is_dir() and path.resolve() != out.resolve()]
        others = [path.name for path in left if not path.is_dir()]
        if others:
            told = f"{shortened(others)}; only files that end in {', '.join(files.FORMATS)} are read"
            say(f"note: left out of {folder}: {told}")
        if inner:
            say(f"note: folders in {folder} are not searched: {shortened(inner)}")


def _level(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise RecipeError(f"--sigma {text!r}: expected a number in 8-bit units, 0 to 255, or auto") from None


def _refuse_overwriting(pairs: Sequence[tuple[Path, Path]], *, force: bool) -> None:
    inputs = {source.resolve() for source, _ in pairs}
    came_from: dict[Path, Path] = {}
    for source, target in pairs:
        place = target.resolve()
        if place in inputs:
            raise RecipeError(f"{target} is one of the inputs: choose another -o")
        if place in came_from:
            raise RecipeError(f"{came_from[place]} and {source} would both become {target}: denoise them one at a time")
        if target.exists() and not force:
            raise OutputExistsError(f"{target} exists: use --force to replace it, or choose another -o")
        came_from[place] = source
