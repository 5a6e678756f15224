"""Opening a bundle, folder or zip, trusting nothing in it. numpy and the standard library only; a device runs it."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import weakref
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType

import numpy as np

from edgekit.bundle import golden as golden_file
from edgekit.bundle import schema
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import Manifest
from edgekit.errors import BundleError, EdgekitError

MANIFEST = "manifest.json"
# How the names of bundles end.
SUFFIXES = (".edgekit", ".zip")
_AGAIN = "copy the bundle again, or export it again"
# A bundle is a few MB; a zip that claims more is damaged or hostile and must not fill a device's disk.
_MAX_BYTES = 4 << 30


@dataclass(eq=False, repr=False)
class Bundle:
    """An opened bundle. Close it, or use it in a `with`: a zip was unpacked into a temporary folder.

    Attributes:
        manifest: what it says about itself.
        folder: where its files lie.
        source: the path it was opened from, folder or zip.
        unlisted: files in the folder that the manifest does not know; nothing reads them.
    """

    manifest: Manifest
    folder: Path
    source: Path
    unlisted: tuple[str, ...] = ()
    _golden: Golden | None = field(default=None, init=False)
    _remove: weakref.finalize[[Path], Bundle] | None = field(default=None, init=False)

    def path(self, relative: str) -> Path:
        """Where a file of the bundle lies.

        Args:
            relative: its path as the manifest lists it, e.g. a variant's `file`.
        Raises: BundleError: the manifest does not list it.
        """
        if relative != MANIFEST and relative not in self.manifest.files:
            raise BundleError(
                f"{self.source} has no file {relative!r}: expected one of {', '.join(sorted(self.manifest.files))}"
            )
        return self.folder / relative

    def golden(self) -> Golden:
        """The golden tiles, read once. Raises: BundleError: they are damaged, or do not fit the model."""
        if self._golden is None:
            tiles = golden_file.load(self.path(self.manifest.golden))
            channels = self.manifest.model.channels
            if tiles.noisy.shape[3] != channels:
                raise BundleError(
                    f"{self.source}: golden tiles have {tiles.noisy.shape[3]} channels, the model {channels}: {_AGAIN}"
                )
            low, high = self.manifest.sigma
            # Float32 levels may miss an end of the range by a rounding.
            fits = (tiles.sigma >= np.float32(low)) & (tiles.sigma <= np.float32(high))
            if not self.manifest.model.blind and not fits.all():
                raise BundleError(
                    f"{self.source}: golden tiles have the noise levels {tiles.levels()}, the model takes "
                    f"{low:g} to {high:g}: {_AGAIN}"
                )
            self._golden = tiles
        return self._golden

    def __fspath__(self) -> str:
        """The path it was opened from: what takes a bundle's path takes a bundle."""
        return str(self.source)

    def close(self) -> None:
        """Remove the temporary folder of a zip; a folder is left alone. Closing twice is fine."""
        if self._remove is not None:
            self._remove()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        m = self.manifest
        variants = ", ".join(v.name for v in m.variants)
        return (
            f"<Bundle {m.name!r} for {m.target}: {variants} (default {m.default_variant}), tile {m.tile}, "
            f"sigma {m.sigma[0]:g}..{m.sigma[1]:g}, at {str(self.source)!r}>"
        )


def read(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """Open a bundle and check that it is whole.

    Args:
        path: the folder, or the zip that `zip_bundle` made of it.
        verify: also compare every file with its sha256 and load the golden tiles.
    Returns: the bundle; close it when done.
    Raises: BundleError: nothing there, not a bundle, a damaged zip, a newer schema, a field that is wrong, a path that
        leaves the bundle, a file that is missing or altered, golden tiles that do not load. EdgekitError: disk full.
    """
    source = Path(path)
    if source.is_dir():
        bundle = _open(source, source)
    elif source.is_file():
        bundle = _unpack(source)
    else:
        raise BundleError(f"no bundle at {source}: expected a folder or zip that `edgekit compress` wrote")
    try:
        if verify:
            _check_hashes(bundle)
            bundle.golden()
    except BaseException:
        bundle.close()
        raise
    return bundle


def sha256(path: Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def safe_name(name: str) -> bool:
    """Whether a path from a manifest or zip stays inside the bundle on every system."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and not name.startswith("/") and "\\" not in name and ":" not in name and "\0" not in name
    return plain and ".." not in parts and str(PurePosixPath(*parts)) == name


def _open(folder: Path, source: Path) -> Bundle:
    try:
        text = (folder / MANIFEST).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BundleError(
            f"{source} is not a bundle: it holds no {MANIFEST}; expected a folder or zip that `edgekit compress` wrote"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{source}: {MANIFEST} cannot be read ({error}): {_AGAIN}") from error
    manifest = schema.loads(text, f"{source}: {MANIFEST}")
    root = folder.resolve()
    for name in manifest.files:
        if not safe_name(name) or not (folder / name).resolve().is_relative_to(root):
            raise BundleError(_leaves(source, name))
        if not (folder / name).is_file():
            raise BundleError(f"{source}: the file {name} is missing: {_AGAIN}")
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
    unlisted = tuple(sorted(present - set(manifest.files) - {MANIFEST}))
    return Bundle(manifest, folder, source, unlisted)


def _leaves(source: Path, name: str) -> str:
    return f"{source}: the path {name!r} leaves the bundle: do not use it; get it again from its maker"


def _check_hashes(bundle: Bundle) -> None:
    for name, expected in bundle.manifest.files.items():
        try:
            found = sha256(bundle.folder / name)
        except OSError as error:
            raise BundleError(f"{bundle.source}: the file {name} cannot be read ({error}): {_AGAIN}") from error
        if found != expected:
            raise BundleError(
                f"{bundle.source}: the file {name} was altered or damaged: sha256 expected {expected}, found {found}; "
                f"{_AGAIN}"
            )


def _unpack(source: Path) -> Bundle:
    if not zipfile.is_zipfile(source):
        raise BundleError(
            f"{source} is neither a folder nor a whole zip file: expected what `edgekit compress` wrote; {_AGAIN}"
        )
    folder = Path(tempfile.mkdtemp(prefix="edgekit-"))
    try:
        _extract(source, folder)
        # A zip made by hand holds the folder, one made by zip_bundle its contents.
        # A Mac adds its own beside what it was told to zip.
        inner = [entry for entry in folder.iterdir() if entry.name not in ("__MACOSX", ".DS_Store")]
        root = inner[0] if len(inner) == 1 and inner[0].is_dir() else folder
        bundle = _open(root, source)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # Not TemporaryDirectory: it warns when it is collected unclosed, and a Denoiser may keep a bundle to the end.
    bundle._remove = weakref.finalize(bundle, _discard, folder)
    return bundle


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _extract(source: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            size = sum(m.file_size for m in members)
            if size > _MAX_BYTES:
                raise BundleError(f"{source} unpacks to {size} bytes: expected a bundle of at most {_MAX_BYTES}")
            for member in members:
                if not safe_name(member.filename) or stat.S_ISLNK(member.external_attr >> 16):
                    raise BundleError(_leaves(source, member.filename))
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                # "x": two members of one name are an attempt to show one file and run another.
                with archive.open(member) as packed, target.open("xb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise BundleError(f"{source} holds the file {Path(error.filename).name} twice: {_AGAIN}") from error
        if error.errno is not None:
            raise EdgekitError(
                f"{source} cannot be unpacked into {folder.parent}: {error.strerror}; free space, or set TMPDIR"
            ) from error
        raise BundleError(f"{source} is a damaged zip ({error}): {_AGAIN}") from error
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{source} is a damaged zip ({error}): {_AGAIN}") from error
