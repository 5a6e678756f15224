from __future__ import annotations

import gc
import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_bundle import edit_golden, edit_manifest, rehash

from edgekit.bundle import reader, writer
from edgekit.errors import BundleError


def test_a_folder_opens(written_bundle: Path) -> None:
    with reader.read(written_bundle) as bundle:
        assert bundle.manifest.name == "golden-tiny"
        assert bundle.unlisted == ()
        assert bundle.path("golden-tiny.int8.tflite").is_file()
        assert bundle.path("manifest.json").is_file()
        assert bundle.golden() is bundle.golden()
        assert bundle.golden().noisy.shape == (8, 72, 72, 3)
    assert written_bundle.is_dir()


def test_it_tells_what_it_is(written_bundle: Path) -> None:
    text = repr(reader.read(written_bundle))
    assert text == (
        "<Bundle 'golden-tiny' for tflite: int8, int8-uint8io, fp32 (default int8), tile 64, sigma 0..55, "
        f"at '{written_bundle}'>"
    )


def test_a_zip_opens_and_leaves_nothing_behind(bundle_copy: Path) -> None:
    bundle = reader.read(writer.zip_bundle(bundle_copy))
    folder = bundle.folder
    assert folder.is_dir()
    assert bundle.source.suffix == ".zip"
    np.testing.assert_array_equal(bundle.golden().host, reader.read(bundle_copy).golden().host)
    bundle.close()
    bundle.close()
    assert not folder.exists()


def test_a_zip_that_nobody_closes_is_cleaned_up_too(bundle_copy: Path) -> None:
    bundle = reader.read(writer.zip_bundle(bundle_copy))
    folder = bundle.folder
    del bundle
    gc.collect()
    assert not folder.exists()


def test_a_zip_of_the_folder_itself_opens(bundle_copy: Path) -> None:
    archive = shutil.make_archive(str(bundle_copy.parent / "by-hand"), "zip", bundle_copy.parent, bundle_copy.name)
    with reader.read(archive) as bundle:
        assert bundle.manifest.name == "golden-tiny"
        assert bundle.unlisted == ()


def test_one_changed_byte_in_any_file_is_found(written_bundle: Path, bundle_copy: Path) -> None:
    files = json.loads((written_bundle / "manifest.json").read_text())["files"]
    assert {"golden-tiny.int8.tflite", "golden.npz", "report.html", "verify.py", "samples/python.py"} <= files.keys()
    for name in files:
        path = bundle_copy / name
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        message = f"the file {name} was altered or damaged: sha256 expected {files[name]}, found [0-9a-f]{{64}}; copy"
        with pytest.raises(BundleError, match=message):
            reader.read(bundle_copy)
        path.write_bytes(whole)
    reader.read(bundle_copy)


def test_without_verify_only_the_manifest_is_checked(bundle_copy: Path) -> None:
    (bundle_copy / "card.md").write_text("edited")
    (bundle_copy / "golden.npz").write_bytes(b"no zip")
    bundle = reader.read(bundle_copy, verify=False)
    with pytest.raises(BundleError, match="cannot be read as golden tiles"):
        bundle.golden()


def test_a_missing_file_is_named(bundle_copy: Path) -> None:
    (bundle_copy / "golden-tiny.fp32.tflite").unlink()
    with pytest.raises(BundleError, match=r"the file golden-tiny.fp32.tflite is missing: copy the bundle again"):
        reader.read(bundle_copy)


def test_files_that_are_not_listed_are_reported(bundle_copy: Path) -> None:
    (bundle_copy / "samples" / "notes.txt").write_text("mine")
    assert reader.read(bundle_copy).unlisted == ("samples/notes.txt",)


def test_a_file_that_is_not_listed_is_not_handed_out(written_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"has no file '../manifest.json': expected one of card.md, golden"):
        reader.read(written_bundle).path("../manifest.json")


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "samples/../../outside", "a\\..\\b", "C:x", "./card.md"]
)
def test_a_path_that_leaves_the_bundle(bundle_copy: Path, name: str) -> None:
    (bundle_copy.parent / "outside").write_text("x")
    edit_manifest(bundle_copy, lambda data: data["files"].update({name: "0" * 64}))
    with pytest.raises(BundleError, match="leaves the bundle: do not use it"):
        reader.read(bundle_copy)


def test_a_link_that_leaves_the_bundle(bundle_copy: Path) -> None:
    outside = bundle_copy.parent / "outside.md"
    shutil.move(bundle_copy / "card.md", outside)
    (bundle_copy / "card.md").symlink_to(outside)
    with pytest.raises(BundleError, match=r"'card.md' leaves the bundle"):
        reader.read(bundle_copy)


def test_a_linked_folder_that_leaves_the_bundle(bundle_copy: Path) -> None:
    shutil.move(bundle_copy / "samples", bundle_copy.parent / "samples")
    (bundle_copy / "samples").symlink_to(bundle_copy.parent / "samples")
    with pytest.raises(BundleError, match="leaves the bundle"):
        reader.read(bundle_copy)


def test_a_link_to_the_bundle_is_fine(written_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written_bundle)
    assert reader.read(tmp_path / "link").manifest.name == "golden-tiny"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .*nowhere: expected a folder or zip"):
        reader.read(tmp_path / "nowhere")


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it holds no manifest.json"):
        reader.read(tmp_path)


def test_a_manifest_that_is_no_text(bundle_copy: Path) -> None:
    (bundle_copy / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match=r"manifest.json cannot be read"):
        reader.read(bundle_copy)


def test_a_file_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    with pytest.raises(BundleError, match="neither a folder nor a whole zip file"):
        reader.read(tmp_path / "model.tflite")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
def test_a_truncated_zip(bundle_copy: Path, share: float) -> None:
    path = writer.zip_bundle(bundle_copy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BundleError, match="neither a folder nor a whole zip file"):
        reader.read(path)


def test_a_zip_with_a_changed_byte(bundle_copy: Path) -> None:
    path = writer.zip_bundle(bundle_copy)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BundleError, match="is a damaged zip"):
        reader.read(path)


def add(path: Path, name: str, mode: int = 0o644) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        archive.writestr(member, "../outside")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "samples/../../outside"])
def test_a_zip_that_writes_elsewhere(bundle_copy: Path, name: str) -> None:
    path = writer.zip_bundle(bundle_copy)
    add(path, name)
    with pytest.raises(BundleError, match="leaves the bundle"):
        reader.read(path)
    assert not (bundle_copy.parent / "outside").exists()


def test_a_zip_with_a_link(bundle_copy: Path) -> None:
    path = writer.zip_bundle(bundle_copy)
    add(path, "link", stat.S_IFLNK | 0o777)
    with pytest.raises(BundleError, match="'link' leaves the bundle"):
        reader.read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_file_twice(bundle_copy: Path) -> None:
    path = writer.zip_bundle(bundle_copy)
    add(path, "golden-tiny.int8.tflite")
    with pytest.raises(BundleError, match=r"holds the file golden-tiny.int8.tflite twice"):
        reader.read(path)


def test_a_zip_that_would_fill_the_disk(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = writer.zip_bundle(bundle_copy)
    monkeypatch.setattr(reader, "_MAX_BYTES", 1000)
    with pytest.raises(BundleError, match=r"unpacks to \d+ bytes"):
        reader.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"].update(channels=1), "golden tiles have 3 channels, the model 1"),
        (lambda d: d.update(sigma=[0.0, 25.0]), r"golden tiles have the noise levels .*, the model takes 0 to 25"),
    ],
)
def test_golden_tiles_that_do_not_fit_the_model(
    bundle_copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_manifest(bundle_copy, change)
    with pytest.raises(BundleError, match=message):
        reader.read(bundle_copy)


def test_golden_tiles_of_another_bundle(bundle_copy: Path) -> None:
    edit_golden(bundle_copy, kernels="reference")
    with pytest.raises(BundleError, match=r"the file golden.npz was altered"):
        reader.read(bundle_copy)
    rehash(bundle_copy)
    assert reader.read(bundle_copy).golden().kernels == "reference"
