from __future__ import annotations

import io
import time
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import golden
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import Thresholds
from edgekit.errors import BundleError


def small(**changes: Any) -> Golden:
    random = np.random.default_rng(0)

    def images(dtype: Any) -> Any:
        return random.integers(0, np.iinfo(dtype).max + 1, (2, 5, 7, 3)).astype(dtype)

    tiles = Golden(
        noisy=images(np.uint8),
        clean=images(np.uint8),
        sigma=np.array([5, 50], np.float32),
        fp32_original=images(np.uint16),
        fp32_compressed=images(np.uint16),
        host=images(np.uint8),
        thresholds=Thresholds(0.5, 0.9),
        kernels="xnnpack",
        models={"a.tflite": "0" * 64},
    )
    return replace(tiles, **changes)


def same(a: Golden, b: Golden) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Golden)]
    return all(np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y for x, y in pairs)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    portable = {"portable": np.zeros((1, 5, 7, 3), np.uint8), "portable_at": np.array([1])}
    for tiles in (small(), small(**portable), small(models={})):
        golden.save(tiles, tmp_path / "g.npz")
        assert same(golden.load(tmp_path / "g.npz"), tiles)


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden.save(small(), tmp_path / "a.npz")
    later = time.struct_time((2040, 1, 1, 0, 0, 0, 6, 1, 0))
    monkeypatch.setattr(time, "localtime", lambda *_: later)
    monkeypatch.setattr(time, "time", lambda: 2_208_988_800.0)
    golden.save(small(), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_packing_keeps_every_byte() -> None:
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(Golden.to_uint8(Golden.pack(every / 255)), every)
    np.testing.assert_array_equal(Golden.pack(np.array([-0.5, 0.0, 1.0, 1.5])), [0, 0, 65535, 65535])


def test_packing_hardly_ever_moves_a_byte() -> None:
    values = np.random.default_rng(0).random(100_000)
    direct = np.rint(values * 255).astype(np.int16)
    apart = np.abs(Golden.to_uint8(Golden.pack(values)) - direct)
    # The 16-bit step is 1/257 of the 8-bit one; half of it lies on either side of each rounding border.
    assert apart.max() <= 1
    assert np.mean(apart) < 1 / 257


def test_levels_come_lowest_first() -> None:
    assert small(sigma=np.array([50, 5], np.float32)).levels() == (5.0, 50.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noisy": np.zeros((2, 5, 7, 3), np.float32)}, "'noisy' is float32: expected uint8"),
        ({"fp32_original": np.zeros((2, 5, 7, 3), np.uint8)}, "'fp32_original' is uint8: expected uint16"),
        (
            {"noisy": np.zeros((2, 5, 7, 4), np.uint8)},
            r"'noisy' has shape \(2, 5, 7, 4\): expected \[K, H, W, 1 or 3\]",
        ),
        ({"noisy": np.zeros((0, 5, 7, 3), np.uint8)}, r"'noisy' has shape \(0, 5, 7, 3\)"),
        ({"host": np.zeros((2, 5, 6, 3), np.uint8)}, r"'host' has shape .* expected that of 'noisy', \(2, 5, 7, 3\)"),
        ({"sigma": np.zeros(3, np.float32)}, r"'sigma' is float32 \(3,\): expected float32 \(2,\)"),
        ({"sigma": np.array([5, 300], np.float32)}, "expected 0 to 255, in 8-bit units"),
        ({"sigma": np.array([5, np.nan], np.float32)}, "expected 0 to 255, in 8-bit units"),
        ({"portable": np.zeros((1, 5, 7, 3), np.uint8)}, "'portable' and 'portable_at' go together"),
        (
            {"portable": np.zeros((1, 5, 7, 3), np.uint8), "portable_at": np.array([2])},
            r"'portable_at' is int64 \[2\]: expected int64 numbers of tiles, 0 to 1",
        ),
        (
            {"portable": np.zeros((2, 5, 7, 3), np.uint8), "portable_at": np.array([0])},
            r"'portable' is uint8 \(2, 5, 7, 3\): expected uint8 \(1, 5, 7, 3\)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        small(**changes)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, share: float) -> None:
    path = tmp_path / "golden.npz"
    golden.save(small(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BundleError, match=r"golden.npz cannot be read as golden tiles .*: copy the bundle again"):
        golden.load(path)


def test_a_changed_byte_inside_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    golden.save(small(), path)
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BundleError, match="cannot be read as golden tiles"):
        golden.load(path)


def rewritten(path: Path, **changes: Any) -> None:
    """Replace arrays of a saved file; None removes one."""
    golden.save(small(), path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    rewritten(path, noisy=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BundleError, match="allow_pickle=False"):
        golden.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": None}, "lacks host"),
        ({"threshold_max_drop": None}, "lacks threshold_max_drop"),
        ({"threshold_max_drop": np.array(np.nan)}, "threshold 'max_drop' is .*expected one finite number"),
        ({"threshold_max_drop": np.array([0.5])}, "threshold 'max_drop' is .*expected one finite number"),
        ({"kernels": np.array(1)}, "'kernels' is .*expected text of rank 0"),
        ({"model_files": np.array(["a", "b"])}, "'model_files' and 'model_sha256' differ in length"),
        ({"clean": np.zeros((2, 5, 7, 1), np.uint8)}, "'clean' has shape"),
    ],
)
def test_a_file_with_wrong_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "golden.npz"
    rewritten(path, **changes)
    with pytest.raises(BundleError, match=message):
        golden.load(path)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "golden.npz"
    golden.save(small(), path)
    monkeypatch.setattr(golden, "_MAX_BYTES", 1000)
    with pytest.raises(BundleError, match=r"unpacks to \d+ bytes: expected at most 1000"):
        golden.load(path)


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    """An array header of a terabyte over a few bytes of data."""
    path = tmp_path / "golden.npz"
    rewritten(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 10, 1 << 10, 1)}
    )
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["noisy.npy"] = header.getvalue() + b"\0" * 100
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(BundleError, match="cannot be read as golden tiles"):
        golden.load(path)
