from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden_bundle import DATA, tiny_golden, tiny_manifest, write_tiny

from edgekit.bundle import reader, writer
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import Manifest, Thresholds
from edgekit.errors import BundleError, EdgekitError, OutputExistsError
from edgekit.runtime.check import recorded


@pytest.fixture(scope="module")
def tiles() -> Golden:
    return tiny_golden(tiny_manifest())


def files(manifest: Manifest) -> dict[str, Path]:
    return {v.file: DATA / v.file for v in manifest.variants}


def contents(folder: Path) -> dict[str, str]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_a_bundle_holds_what_a_device_and_a_person_need(written_bundle: Path) -> None:
    manifest = json.loads((written_bundle / "manifest.json").read_text())
    assert contents(written_bundle).keys() - {"manifest.json"} == manifest["files"].keys()
    assert set(manifest["files"]) == {
        "golden-tiny.int8.tflite",
        "golden-tiny.int8-uint8io.tflite",
        "golden-tiny.fp32.tflite",
        "golden.npz",
        "report.html",
        "card.md",
        "verify.py",
        "samples/python.py",
        "samples/denoise.c",
    }


def test_the_golden_tiles_are_completed(written_bundle: Path) -> None:
    bundle = reader.read(written_bundle)
    golden = bundle.golden()
    assert golden.models == {v.file: bundle.manifest.files[v.file] for v in bundle.manifest.variants}
    assert golden.portable_at is not None
    assert golden.sigma[golden.portable_at].tolist() == [5.0, 50.0]


def test_the_same_inputs_give_the_same_bytes(written_bundle: Path, tmp_path: Path) -> None:
    assert contents(write_tiny(tmp_path / "again.edgekit")) == contents(written_bundle)


def test_folders_above_are_made_and_nothing_lies_beside(tmp_path: Path, tiles: Golden) -> None:
    folder = tmp_path / "new" / "deeper" / "a.edgekit"
    assert writer.write(folder, tiny_manifest(), files(tiny_manifest()), tiles) == folder
    assert [p.name for p in folder.parent.iterdir()] == ["a.edgekit"]
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_the_verdict_comes_from_the_judge_and_goes_into_report_and_card(tmp_path: Path, tiles: Golden) -> None:
    seen = []

    def judge(folder: Path) -> Any:
        seen.append(folder)
        with reader.read(folder) as bundle:
            return replace(recorded(bundle), name="judged", bytes=123_450_000)

    folder = writer.write(tmp_path / "a.edgekit", tiny_manifest(), files(tiny_manifest()), tiles, judge=judge)
    assert len(seen) == 1
    assert seen[0] != folder
    assert seen[0].parent == folder.parent
    for name in ("report.html", "card.md"):
        assert "123.45 MB" in (folder / name).read_text()


def test_an_existing_output_is_not_touched(bundle_copy: Path, tiles: Golden) -> None:
    before = contents(bundle_copy)
    with pytest.raises(OutputExistsError, match=r"copy.edgekit exists: give --force to replace it, or another --out"):
        writer.write(bundle_copy, tiny_manifest(), files(tiny_manifest()), tiles)
    assert contents(bundle_copy) == before


def test_force_replaces_a_bundle(bundle_copy: Path, tiles: Golden) -> None:
    (bundle_copy / "old").write_text("old")
    writer.write(bundle_copy, tiny_manifest(name="newer"), files(tiny_manifest()), tiles, force=True)
    assert reader.read(bundle_copy).manifest.name == "newer"
    assert not (bundle_copy / "old").exists()
    assert [p.name for p in bundle_copy.parent.iterdir()] == ["copy.edgekit"]


def test_an_empty_folder_is_no_obstacle_to_force(tmp_path: Path, tiles: Golden) -> None:
    (tmp_path / "a").mkdir()
    writer.write(tmp_path / "a", tiny_manifest(), files(tiny_manifest()), tiles, force=True)
    assert reader.read(tmp_path / "a")


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_force_replaces_nothing_but_a_bundle(tmp_path: Path, written_bundle: Path, tiles: Golden, kind: str) -> None:
    place = tmp_path / "home"
    if kind == "folder":
        place.mkdir()
        (place / "thesis.txt").write_text("years of work")
    elif kind == "file":
        place.write_text("years of work")
    else:
        place.symlink_to(written_bundle)
    with pytest.raises(OutputExistsError, match="exists and is no bundle: not replaced even with --force"):
        writer.write(place, tiny_manifest(), files(tiny_manifest()), tiles, force=True)
    if kind == "link":
        assert place.is_symlink()
    else:
        assert (place / "thesis.txt" if kind == "folder" else place).read_text() == "years of work"


def broken_copy(error: BaseException) -> Any:
    """A copyfile that fails at the third file."""
    copy, calls = shutil.copyfile, []

    def fail(source: Any, target: Any) -> Any:
        calls.append(target)
        if len(calls) == 3:
            raise error
        return copy(source, target)

    return fail


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_things_as_they_were(
    tmp_path: Path, written_bundle: Path, tiles: Golden, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    place = tmp_path / "out" / "a.edgekit"
    if force:
        shutil.copytree(written_bundle, place)
    before = contents(tmp_path)
    monkeypatch.setattr(shutil, "copyfile", broken_copy(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(EdgekitError, match=r"a.edgekit cannot be written \(No space left on device\): free space"):
        writer.write(place, tiny_manifest(), files(tiny_manifest()), tiles, force=force)
    assert contents(tmp_path) == before
    assert [p.name for p in place.parent.iterdir()] == (["a.edgekit"] if force else [])


def test_an_interrupt_leaves_nothing(tmp_path: Path, tiles: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "copyfile", broken_copy(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        writer.write(tmp_path / "a.edgekit", tiny_manifest(), files(tiny_manifest()), tiles)
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_brings_the_old_bundle_back(
    bundle_copy: Path, tiles: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = contents(bundle_copy), Path.rename

    def fail(self: Path, target: Any) -> Any:
        if Path(target) == bundle_copy and not self.name.endswith(".old"):
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(EdgekitError, match="Permission denied"):
        writer.write(bundle_copy, tiny_manifest(name="newer"), files(tiny_manifest()), tiles, force=True)
    assert contents(bundle_copy) == before
    assert [p.name for p in bundle_copy.parent.iterdir()] == ["copy.edgekit"]


@pytest.mark.parametrize(
    ("manifest", "extra", "message"),
    [
        (tiny_manifest(thresholds=Thresholds(5.0, 1.0)), {}, "golden tiles are sealed with .*max_drop=0.5"),
        (tiny_manifest(recipe={"max_drop": 1.0}), {}, "the recipe's max_drop is 1.0, the manifest's 0.5"),
        (tiny_manifest(recipe={}), {}, "the recipe's max_drop is None, the manifest's 0.5"),
        (tiny_manifest(), {"../a": "golden-tiny.json"}, "the file '../a' cannot go into a bundle"),
        (tiny_manifest(), {"manifest.json": "golden-tiny.json"}, "the file 'manifest.json' cannot go into a bundle"),
        (tiny_manifest(), {"notes.md": "nowhere.md"}, "'notes.md' is to be copied from .*nowhere.md, which does not"),
        (tiny_manifest(tile=66), {}, "field 'tile' is 66: expected a multiple"),
    ],
)
def test_inputs_that_do_not_fit_write_nothing(
    tmp_path: Path, tiles: Golden, manifest: Manifest, extra: dict[str, str], message: str
) -> None:
    given = files(manifest) | {name: DATA / source for name, source in extra.items()}
    with pytest.raises(BundleError, match=message):
        writer.write(tmp_path / "a.edgekit", manifest, given, tiles)
    assert list(tmp_path.iterdir()) == []


def test_every_variant_needs_its_file(tmp_path: Path, tiles: Golden) -> None:
    given = files(tiny_manifest())
    del given["golden-tiny.fp32.tflite"]
    with pytest.raises(BundleError, match=r"variant 'fp32' needs 'golden-tiny.fp32.tflite'"):
        writer.write(tmp_path / "a.edgekit", tiny_manifest(), given, tiles)


def test_the_same_bundle_gives_the_same_zip(bundle_copy: Path) -> None:
    path = writer.zip_bundle(bundle_copy)
    assert path == bundle_copy.with_name("copy.edgekit.zip")
    first = path.read_bytes()
    with pytest.raises(OutputExistsError, match="exists: give force=True"):
        writer.zip_bundle(bundle_copy)
    (bundle_copy / "card.md").touch()
    assert writer.zip_bundle(bundle_copy, force=True).read_bytes() == first
    assert sorted(p.name for p in bundle_copy.parent.iterdir()) == ["copy.edgekit", "copy.edgekit.zip"]


def test_a_damaged_bundle_is_not_zipped(bundle_copy: Path) -> None:
    (bundle_copy / "card.md").write_text("edited")
    with pytest.raises(BundleError, match=r"card.md was altered"):
        writer.zip_bundle(bundle_copy)
    assert [p.name for p in bundle_copy.parent.iterdir()] == ["copy.edgekit"]
