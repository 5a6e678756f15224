"""A device's install: `edgekit[litert]` in an environment of its own, without torch, does all that a device does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from golden_bundle import scenes, write_tiny
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
# What a host has and a device must not need. pydantic is not among them: newer releases of typer bring it.
_HOST = ("torch", "torchao", "lightning_fabric", "litert_torch", "skimage", "scipy", "yaml", "tifffile", "safetensors")
_API = """
import sys, numpy as np, edgekit
bundle = sys.argv[1]
verdict = edgekit.check(bundle)
with edgekit.open(bundle) as denoiser:
    clean = denoiser(np.zeros((50, 70, 3), np.uint16), sigma="auto")
print(verdict.passed, clean.shape, clean.dtype, [m for m in ("torch", "pydantic", "typer") if m in sys.modules])
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of executables of a fresh environment with edgekit[litert], from a wheel built here."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder)
    programs = folder / "bin"
    # The host's versions are within what a device allows, and a test should not change with the day.
    done = _pip(programs, "install", "-q", "-c", ROOT / "constraints.txt", f"{ROOT}[litert]")
    assert done.returncode == 0, done.stderr
    return programs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("bundle") / "tiny.edgekit")


def _pip(programs: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """This environment's pip at work on the other one, which needs none of its own."""
    command = [sys.executable, "-m", "pip", "--python", programs / "python", *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=280)


def _run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Without the variables that would let this environment's packages through.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(w) for w in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.timeout(400)
def test_install_is_small_and_knows_no_host_library(device: Path, tmp_path: Path) -> None:
    code = f"import importlib.util as u; print([m for m in {_HOST!r} if u.find_spec(m)], u.find_spec('edgekit').origin)"
    said = _run(device / "python", "-c", code, cwd=tmp_path).stdout
    assert said.startswith("[] ")
    assert str(device.parent) in said
    assert _pip(device, "check").returncode == 0


def test_check_denoise_and_inspect_work(device: Path, bundle: Path, tmp_path: Path) -> None:
    done = _run(device / "edgekit", "check", bundle, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]
    assert _run(device / "edgekit", "inspect", bundle, cwd=tmp_path).returncode == 0
    Image.fromarray(scenes(1, 90, seed=3)[0]).save(tmp_path / "in.png")
    words = ["denoise", "in.png", "-o", "out.png", "--model", bundle, "--sigma", "25"]
    done = _run(device / "edgekit", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (90, 90)


def test_python_api_works_and_imports_no_host_library(device: Path, bundle: Path, tmp_path: Path) -> None:
    done = _run(device / "python", "-c", _API, bundle, cwd=tmp_path)
    assert done.stdout == "True (50, 70, 3) uint16 []\n", done.stderr


@pytest.mark.parametrize(
    ("words", "extra"), [(("compress", "--target", "tflite"), "train,tflite"), (("models",), "train")]
)
def test_host_commands_name_the_pip_line(device: Path, tmp_path: Path, words: tuple[str, ...], extra: str) -> None:
    done = _run(device / "edgekit", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f"pip install 'edgekit[{extra}]'\n")
    assert done.stderr.count("\n") == 1
