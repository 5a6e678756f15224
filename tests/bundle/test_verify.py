"""verify.py as a device runs it: a script of its own, with numpy and an interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_bundle import double_scale, edit_golden, edit_manifest, rehash

from edgekit.bundle import reader, verify
from edgekit.runtime.denoiser import Denoiser


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the bundle's own copy, isolated: no current folder, no PYTHONPATH."""
    command = [sys.executable, "-I", str(folder / "verify.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)
    return done.returncode, done.stdout, done.stderr


def test_it_stands_alone(written_bundle: Path) -> None:
    # tflite-runtime, and with it this script, still runs on Pythons that edgekit does not.
    tree = ast.parse((written_bundle / "verify.py").read_text(), feature_version=(3, 8))
    found = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    found |= {str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    # The engines are imported when a file of theirs is opened.
    assert found - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "openvino"}


def test_a_whole_bundle_passes(written_bundle: Path) -> None:
    code, out, _ = run(written_bundle)
    assert code == 0
    assert out.splitlines()[-1].startswith("PASS  FP32 25.56 dB  device 25.66 dB (total +0.10)")
    assert "int8, xnnpack kernels, 8 golden tiles" in out


def test_an_altered_model_fails(bundle_copy: Path) -> None:
    double_scale(bundle_copy / "golden-tiny.int8.tflite", layer=0, channel=2)
    code, _, err = run(bundle_copy)
    assert code == 2
    assert "golden-tiny.int8.tflite was altered or damaged" in err
    rehash(bundle_copy)
    code, out, _ = run(bundle_copy)
    assert code == 1
    assert "output differs from the host's by up to" in out
    assert "FAIL" in out.splitlines()[-1]


def test_edited_thresholds_fail(bundle_copy: Path) -> None:
    edit_manifest(bundle_copy, lambda data: data["thresholds"].update(max_drop=5.0))
    code, out, _ = run(bundle_copy)
    assert code == 1
    assert "thresholds edited: manifest says 5.0 dB, sealed 0.5 dB" in out


def test_edited_facts_fail(bundle_copy: Path) -> None:
    edit_manifest(bundle_copy, lambda data: data["model"].update(halo=4))
    code, out, _ = run(bundle_copy)
    assert code == 1
    assert "manifest edited: halo is 4, it was 15: get the bundle again" in out
    edit_golden(bundle_copy, facts={})
    rehash(bundle_copy)
    assert "manifest edited" not in run(bundle_copy)[1]


def test_a_drop_beyond_the_threshold_fails(bundle_copy: Path) -> None:
    # The clean tiles as the original's output: no device can keep up with that.
    edit_golden(bundle_copy, fp32_original=reader.read(bundle_copy).golden().clean.astype(np.uint16) * 257)
    rehash(bundle_copy)
    code, out, _ = run(bundle_copy)
    assert code == 1
    assert "dB, 0.5 dB allowed: compress with more --steps" in out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("golden-tiny.int8.tflite", b"x", "was altered or damaged"),
        ("manifest.json", b"{", "is not whole"),
        ("golden.npz", None, "is not whole (golden.npz: No such file or directory): copy it again"),
        ("manifest.json", None, "is not whole (manifest.json: No such file or directory): copy it again"),
    ],
)
def test_a_damaged_bundle_is_no_verdict(bundle_copy: Path, name: str, text: bytes | None, message: str) -> None:
    if text is None:
        (bundle_copy / name).unlink()
    else:
        (bundle_copy / name).write_bytes(text)
    code, out, err = run(bundle_copy)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_an_unknown_variant_is_named(written_bundle: Path) -> None:
    code, _, err = run(written_bundle, "int4")
    assert code == 2
    assert "unknown variant 'int4': expected one of int8, int8-uint8io, fp32" in err


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (64, 64), (65, 130)])
def test_its_tiles_are_the_denoisers(written_bundle: Path, size: tuple[int, int]) -> None:
    """The second, stand-alone implementation of the tiles must give the first one's bits."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    manifest = json.loads((written_bundle / "manifest.json").read_text())
    with reader.read(written_bundle) as bundle:
        for variant in manifest["variants"][:2]:
            alone = verify.Model(written_bundle, manifest, variant)
            with Denoiser.from_bundle(bundle, variant["name"]) as denoiser:
                np.testing.assert_array_equal(alone(image, 30.0), denoiser(image, sigma=30))


def test_portable_kernels_give_what_the_bundle_recorded(written_bundle: Path) -> None:
    manifest = json.loads((written_bundle / "manifest.json").read_text())
    golden = reader.read(written_bundle).golden()
    assert golden.portable is not None
    assert golden.portable_at is not None
    slow = verify.Model(written_bundle, manifest, manifest["variants"][0], portable=True)
    assert slow.kernels() == "other"
    for expected, k in zip(golden.portable, golden.portable_at, strict=True):
        np.testing.assert_array_equal(slow(golden.noisy[k], float(golden.sigma[k])), expected)


def test_other_kernels_are_held_to_the_portable_ones(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a device without XNNPACK: its own kernels round otherwise, and that is no reason to fail."""
    monkeypatch.setattr(verify.Model, "kernels", lambda _: "other")
    assert verify.main(bundle_copy) == 0
    double_scale(bundle_copy / "golden-tiny.int8.tflite", layer=3, channel=2)
    rehash(bundle_copy)
    assert verify.main(bundle_copy) == 1
    assert "portable kernels give other bits than the host's did" in capsys.readouterr().out


def test_a_field_that_is_missing_is_no_verdict(bundle_copy: Path) -> None:
    edit_manifest(bundle_copy, lambda data: data["model"].pop("halo"))
    code, _, err = run(bundle_copy)
    assert code == 2
    assert err.splitlines()[-1].startswith("verify.py: the bundle in")
    assert "Traceback" not in err
