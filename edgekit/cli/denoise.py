"""denoise: image files and folders through a bundle."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.progress import Bars
from edgekit.errors import DataError, OutputExistsError, RecipeError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}


def denoise(
    images: Annotated[list[Path], typer.Argument(metavar="IN...", help="PNG, JPEG or TIFF files, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="File for one image, else a folder.")],
    model: Annotated[Path, typer.Option("--model", metavar="BUNDLE", help="Folder or zip that `edgekit compress` wrote.")],
    sigma: Annotated[str, typer.Option(metavar="25|auto", help="Noise level in 8-bit units, or estimate it.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> None:
    """Denoise images; size, depth, colour and alpha stay as they are."""
    from edgekit.runtime import images as files
    from edgekit.runtime.denoiser import open as open_bundle

    level = _level(sigma)
    jobs = plan(images, out, force=force)
    unreadable = []
    with open_bundle(model) as denoiser, Bars() as bars:
        for done, (source, target) in enumerate(jobs):
            bars("denoise", done, len(jobs), source.name)
            try:
                image = files.load(source)
            except DataError as error:
                # Of a folder, one bad file must not cost the others.
                if len(jobs) == 1:
                    raise
                unreadable.append(str(error))
                typer.echo(f"skipped: {error}", err=True)
                continue
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                clean = denoiser(image, sigma=level)
            for warning in told:
                typer.echo(f"note: {source}: {warning.message}", err=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.save(target, clean)
        bars("denoise", len(jobs), len(jobs))
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(jobs)} images were skipped, the first: {unreadable[0]}")


def plan(sources: Sequence[Path], out: Path, *, force: bool) -> list[tuple[Path, Path]]:
    """Which file becomes which; everything that can be refused is refused here, before any file is written.

    Args:
        sources: files, or folders that are searched to any depth.
        out: a file for a single image file, else a folder, in which the sources' own folders are kept.
        force: existing outputs may be replaced; an input never is.
    Raises: DataError: a source is missing, or a folder holds no image. OutputExistsError. RecipeError: `out` is a file but
        there are several images, has another image format's ending, or two sources would become one file.
    """
    pairs: list[tuple[Path, Path]] = []
    to_folder = out.is_dir() or len(sources) > 1 or sources[0].is_dir() or not out.suffix
    for source in sources:
        if source.is_dir():
            pairs += [(file, out / file.relative_to(source)) for file in _inside(source, out)]
        elif source.is_file():
            _known(source)
            pairs.append((source, out / source.name if to_folder else out))
        else:
            raise DataError(f"no image at {str(source)!r}: expected a PNG, JPEG or TIFF file, or a folder of them")
    if to_folder and out.is_file():
        raise RecipeError(f"-o {str(out)!r} is a file: expected a folder for {len(pairs)} images")
    if not to_folder:
        _known(out)
    _refuse_overwriting(pairs, force=force)
    return pairs


def _level(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise RecipeError(f"--sigma {text!r}: expected a number in 8-bit units, 0 to 255, or auto") from None


def _inside(folder: Path, out: Path) -> list[Path]:
    """The images in a folder; what lies in the output folder inside it came from an earlier run."""
    found = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.suffix.lower() in _SUFFIXES]
    inside = out.resolve() != folder.resolve() and out.resolve().is_relative_to(folder.resolve())
    found = [f for f in found if not (inside and f.resolve().is_relative_to(out.resolve()))]
    if not found:
        raise DataError(f"no images in {str(folder)!r}: expected files ending in {', '.join(sorted(_SUFFIXES))}")
    return found


def _known(file: Path) -> None:
    if file.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{str(file)!r} ends in {file.suffix!r}: expected one of {', '.join(sorted(_SUFFIXES))}")


def _refuse_overwriting(pairs: Sequence[tuple[Path, Path]], *, force: bool) -> None:
    inputs = {source.resolve() for source, _ in pairs}
    came_from: dict[Path, Path] = {}
    for source, target in pairs:
        place = target.resolve()
        if place in inputs:
            raise RecipeError(f"{str(target)!r} is one of the inputs: choose another -o")
        if place in came_from:
            raise RecipeError(f"{came_from[place]} and {source} would both become {target}: denoise them one at a time")
        if target.exists() and not force:
            raise OutputExistsError(f"{str(target)!r} exists: use --force to replace it, or choose another -o")
        came_from[place] = source
