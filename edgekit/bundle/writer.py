"""Writing a bundle: whole or not at all. Host side; needs no torch."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle import card, reader, report, samples, schema
from edgekit.bundle import golden as golden_file
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import Manifest
from edgekit.errors import BundleError, EdgekitError, MissingExtraError, OutputExistsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.runtime.verdict import Verdict

# Windows has no quota error.
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REPORT, _CARD, _VERIFY, _PYTHON, _C = "report.html", "card.md", "verify.py", "samples/python.py", "samples/denoise.c"


def write(
    folder: str | os.PathLike[str],
    manifest: Manifest,
    files: Mapping[str, Path],
    golden: Golden,
    *,
    force: bool = False,
    judge: Callable[[Path], Verdict] | None = None,
    compared: Mapping[str, NDArray[np.uint8]] = MappingProxyType({}),
) -> Path:
    """Write a bundle: everything into a folder beside it first, then renamed whole. A bundle that exists is complete.

    Added to what is given: the golden tiles, `report.html`, `card.md`, `verify.py`, `samples/`, and last
    `manifest.json` with the sha256 of each file.

    Args:
        folder: where it goes, e.g. build/dsunet-s-tflite.edgekit; folders above it are made.
        manifest: all but `files`, which is filled in.
        files: path inside the bundle -> file to copy there; every variant's file among them.
        golden: the golden tiles, with the manifest's thresholds.
        force: replace a bundle that exists; it stays until the new one is complete. Nothing but a bundle is replaced.
        judge: gives the verdict for report and card, called with the folder while it is still temporary: usually
            `edgekit.runtime.check.check`. None judges the host's output as the golden tiles recorded it; nothing runs.
        compared: by label, what the default variant and others (another target's, another quantizer's) gave for the
            golden tiles, uint8 [K, H, W, C], for a table in the report; the bundle's own comes first.
    Returns: `folder`.
    Raises: OutputExistsError; BundleError: manifest, files and golden do not fit together; EdgekitError: disk full.
    """
    destination = Path(folder)
    check_free(destination, force)
    _check_inputs(manifest, files, golden)
    with _temporary_beside(destination) as building:
        contents = _copy(building, manifest, files)
        models = {name: reader.sha256(building / name) for v in manifest.variants for name in v.files}
        golden = replace(_add_portable(building, manifest, golden), models=models, facts=golden_file.facts_of(manifest))
        golden_file.save(golden, building / manifest.golden)
        _write_manifest(building, manifest, contents)
        verdict = judge(building) if judge is not None else _recorded(building)
        _write_text(building / _CARD, card.render(manifest, verdict))
        _write_text(building / _REPORT, report.render(manifest, golden, verdict, compared))
        _write_manifest(building, manifest, [*contents, _CARD, _REPORT])
        # Proof that a device will read it, before anyone can see it.
        reader.read(building).close()
        _put(building, destination, force)
    return destination


def check_free(destination: Path, force: bool) -> None:
    """Refuse an output that exists; to be asked before a long run, too.

    Raises: OutputExistsError: `destination` exists, and `force` is false or it is neither a bundle nor empty.
    """
    if not (destination.exists() or destination.is_symlink()):
        return
    if not force:
        raise OutputExistsError(f"{destination} exists: give --force to replace it, or another --out")
    # --force must not be able to delete someone's home.
    empty = destination.is_dir() and not any(destination.iterdir())
    if destination.is_symlink() or not (empty or (destination / reader.MANIFEST).is_file()):
        raise OutputExistsError(
            f"{destination} exists and is no bundle: not replaced even with --force; give another --out"
        )


def zip_bundle(folder: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Zip a bundle to `folder` + ".zip", which `read` opens as it is; the same bundle gives the same bytes.

    Returns: the zip.
    Raises: BundleError: not a whole bundle; OutputExistsError; EdgekitError: disk full.
    """
    source = Path(folder)
    destination = source.with_name(source.name + ".zip")
    if destination.exists() and not force:
        raise OutputExistsError(f"{destination} exists: give force=True to replace it, or remove it")
    with reader.read(source) as bundle:
        names = [reader.MANIFEST, *sorted(bundle.manifest.files)]
    partial = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _disk_errors(destination):
            with zipfile.ZipFile(partial, "w") as archive:
                for name in names:
                    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                    member.compress_type, member.create_system, member.external_attr = (
                        zipfile.ZIP_DEFLATED,
                        3,
                        0o644 << 16,
                    )
                    archive.writestr(member, (source / name).read_bytes())
            partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)
    return destination


def _check_inputs(manifest: Manifest, files: Mapping[str, Path], golden: Golden) -> None:
    added = {reader.MANIFEST, manifest.golden, _REPORT, _CARD, _VERIFY, _PYTHON, _C}
    for name, source in files.items():
        if not reader.safe_name(name) or name in added:
            raise BundleError(
                f"the file {name!r} cannot go into a bundle: expected a relative path other than {sorted(added)}"
            )
        if not source.is_file():
            raise BundleError(f"the file {name!r} is to be copied from {source}, which does not exist")
    for variant in manifest.variants:
        for name in variant.files:
            if name not in files:
                raise BundleError(f"variant {variant.name!r} needs {name!r}: expected it among {sorted(files)}")
    # Now, and not when the engine stumbles over it.
    schema.dumps(replace(manifest, files=dict.fromkeys([*files, manifest.golden], "0" * 64)))
    if golden.thresholds != manifest.thresholds:
        raise BundleError(
            f"golden tiles are sealed with {golden.thresholds}, the manifest says {manifest.thresholds}: "
            "make them equal"
        )
    asked = manifest.recipe.get("max_drop")
    if asked != manifest.thresholds.max_drop:
        raise BundleError(
            f"the recipe's max_drop is {asked!r}, the manifest's {manifest.thresholds.max_drop}: make them equal"
        )


def _copy(building: Path, manifest: Manifest, files: Mapping[str, Path]) -> list[str]:
    """Fill the folder with all but golden tiles, card, report and manifest; returns every path but the last three."""
    for name, source in files.items():
        target = building / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    shutil.copyfile(Path(__file__).with_name("verify.py"), building / _VERIFY)
    _write_text(building / _PYTHON, samples.python(manifest))
    written = [*files, manifest.golden, _VERIFY, _PYTHON]
    if (program := samples.c(manifest)) is not None:
        _write_text(building / _C, program)
        written.append(_C)
    return written


def _write_manifest(building: Path, manifest: Manifest, names: list[str]) -> None:
    hashes = {name: reader.sha256(building / name) for name in sorted(names)}
    _write_text(building / reader.MANIFEST, schema.dumps(replace(manifest, files=hashes)))


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


def _add_portable(building: Path, manifest: Manifest, golden: Golden) -> Golden:
    """Record what the portable kernels give, unless it is there already or no engine is installed here."""
    from edgekit.runtime.check import with_portable

    if golden.portable is not None:
        return golden
    listed = replace(manifest, files={name: "" for v in manifest.variants for name in v.files})
    try:
        return with_portable(golden, reader.Bundle(listed, building, building))
    except MissingExtraError:
        return golden


def _recorded(building: Path) -> Verdict:
    from edgekit.runtime.check import recorded

    with reader.read(building) as bundle:
        return recorded(bundle)


@contextmanager
def _temporary_beside(destination: Path) -> Iterator[Path]:
    """A new folder beside `destination`, so that a rename stays on one disk; removed unless it was renamed away."""
    building = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _disk_errors(destination):
            # Not mkdtemp: its 0700 would become the bundle's.
            building.mkdir(parents=True)
            yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _disk_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free space, or give another --out" if error.errno in _FULL else "give another --out"
        raise EdgekitError(
            f"{destination} cannot be written ({error.strerror or error}): {hint}; nothing was left behind"
        ) from error


def _put(building: Path, destination: Path, force: bool) -> None:
    for path in building.rglob("*"):
        if path.is_file():
            with path.open("r+b") as stream:
                # Else a power cut after the rename could leave a bundle that exists and is empty.
                os.fsync(stream.fileno())
    # Again: a long run may have been overtaken by another.
    check_free(destination, force)
    if not destination.exists():
        building.rename(destination)
        return
    old = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}.old")
    destination.rename(old)
    try:
        building.rename(destination)
    except BaseException:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)
