from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_bundle import TILE, tiny_manifest
from PIL import Image

from edgekit.bundle import reader, samples
from edgekit.errors import BundleError
from edgekit.runtime.denoiser import Denoiser

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "tests" / "data" / "tflite_c"


def test_the_python_sample_denoises_a_file(written_bundle: Path, tmp_path: Path) -> None:
    with reader.read(written_bundle) as bundle:
        noisy = bundle.golden().noisy[4]
        Image.fromarray(noisy).save(tmp_path / "noisy.png")
        command = [sys.executable, str(bundle.path("samples/python.py")), "noisy.png", "clean.png", "25"]
        subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        with Denoiser.from_bundle(bundle) as denoiser:
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "clean.png")), denoiser(noisy, sigma=25))


@pytest.fixture
def compiler() -> str:
    found = shutil.which("cc")
    if found is None:
        pytest.skip("needs a C compiler")
    return found


@pytest.mark.parametrize("unsigned", [False, True])
def test_the_c_sample_feeds_one_tile(written_bundle: Path, tmp_path: Path, compiler: str, unsigned: bool) -> None:
    manifest = reader.read(written_bundle).manifest
    if unsigned:
        manifest = replace(manifest, variants=manifest.variants[1:])
    source = tmp_path / "denoise.c"
    source.write_text(str(samples.c(manifest)))
    flags = ["-Wall", "-Wextra", "-Werror", f"-DSTUB_BYTES={TILE * TILE * 3}", f"-I{STUB}"]
    subprocess.run([compiler, *flags, str(source), "-lm", "-o", str(tmp_path / "denoise")], check=True)
    noisy = np.random.default_rng(0).integers(0, 256, (TILE, TILE, 3)).astype(np.uint8)
    run = [str(tmp_path / "denoise"), str(written_bundle / manifest.variants[0].file), "25"]
    done = subprocess.run(run, input=noisy.tobytes(), capture_output=True, check=True)
    # The stand-in for the library gives the image back: a byte that enters must leave.
    assert done.stdout == noisy.tobytes()
    level = round(25 / 255 / 0.0008458285592496395) - 128
    first = int(noisy[0, 0, 0]) - (0 if unsigned else 128)
    assert done.stderr.decode().split() == ["image[0]", str((first + 128) % 256 - 128), "sigma", str(level)]


@pytest.mark.parametrize(
    ("arguments", "size", "message"),
    [
        (["nowhere.tflite", "25"], TILE * TILE * 3, "the model file cannot be read"),
        (["nowhere.tflite"], TILE * TILE * 3, "expected a model file and a noise level, 0 to 55"),
        (["nowhere.tflite", "25"], 10, "expected 64 x 64 x 3 bytes on stdin"),
    ],
)
def test_the_c_sample_refuses_bad_input(
    written_bundle: Path, tmp_path: Path, compiler: str, arguments: list[str], size: int, message: str
) -> None:
    program = tmp_path / "denoise"
    flags = [f"-DSTUB_BYTES={TILE * TILE * 3}", f"-I{STUB}", "-w"]
    subprocess.run([compiler, *flags, str(written_bundle / "samples/denoise.c"), "-lm", "-o", str(program)], check=True)
    done = subprocess.run([str(program), *arguments], input=b"\0" * size, capture_output=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr.decode()


def test_a_bundle_of_floats_has_no_c_sample() -> None:
    manifest = tiny_manifest()
    assert samples.c(replace(manifest, variants=manifest.variants[2:])) is None


def test_a_map_of_noise_levels_is_refused_by_the_c_sample() -> None:
    manifest = tiny_manifest()
    image, sigma = manifest.variants[0].inputs
    level = replace(sigma, shape=(1, TILE, TILE, 1), layout="NHWC")
    with pytest.raises(BundleError, match="input 'sigma' is a map"):
        samples.c(replace(manifest, variants=(replace(manifest.variants[0], inputs=(image, level)),)))


def test_what_is_meant_for_copying_names_its_licence() -> None:
    manifest = tiny_manifest()
    line = "SPDX-License-Identifier: MIT"
    assert samples.python(manifest).startswith(f"# {line}\n")
    assert str(samples.c(manifest)).startswith(f"/* {line}\n")
    for name in ("verify.py", "build_engine.py"):
        assert (ROOT / "edgekit" / "bundle" / name).read_text().startswith(f"# {line}\n")
