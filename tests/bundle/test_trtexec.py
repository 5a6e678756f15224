"""The command lines for `trtexec`: exact words, for each version."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from tensorrt_bundle import INPUTS, NAME, OUTPUTS, manifest

from edgekit.bundle import trtexec
from edgekit.bundle.manifest import Manifest, TensorSpec
from edgekit.errors import BundleError

SHAPES = "--minShapes={0} --optShapes={0} --maxShapes={0}".format("noisy:1x3x32x32,sigma:1")
END = "--profilingVerbosity=detailed --timingCacheFile=engines/trtexec.timing --saveEngine=engines/tiny-blur"


def commands(made: Manifest) -> dict[str, list[str]]:
    """The commands below each comment that names a version."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in trtexec.lines(made):
        if line.startswith("# TensorRT "):
            heading = line[2:].split(":")[0]
        elif line.startswith("trtexec"):
            found.setdefault(heading, []).append(line)
    return found


def test_exact_lines() -> None:
    found = commands(manifest())
    assert found["TensorRT 8.6 to 10"] == [
        f"trtexec --onnx={NAME}.fp32.onnx --fp16 {SHAPES} {END}.fp16.engine",
        f"trtexec --onnx={NAME}.int8.onnx --int8 --fp16 {SHAPES} {END}.int8.engine",
    ]
    assert found["TensorRT 11"] == [
        f"trtexec --onnx={NAME}.fp32.onnx {SHAPES} {END}.fp32.engine",
        f"trtexec --onnx={NAME}.int8.onnx {SHAPES} {END}.int8.engine",
    ]


def test_the_lines_say_what_11_does_and_make_the_folder() -> None:
    written = trtexec.lines(manifest())
    assert "mkdir -p engines" in written
    text = "\n".join(written)
    assert "--fp16 and --int8 are gone. --stronglyTyped is the default" in text
    assert "holds no FP16 file, so this is FP32" in text
    assert all(line.startswith(("# ", "trtexec ", "mkdir ")) for line in written)


def test_an_fp16_file_is_used_where_types_are_the_files() -> None:
    found = commands(manifest(("int8", "fp16", "fp32")))
    assert f"--onnx={NAME}.fp32.onnx --fp16 " in found["TensorRT 8.6 to 10"][0]
    assert found["TensorRT 11"][0].startswith(f"trtexec --onnx={NAME}.fp16.onnx {SHAPES}")


def test_shapes_are_those_of_the_recipe() -> None:
    profile = {"min": [1, 3, 16, 16], "opt": [1, 3, 32, 32], "max": [4, 3, 64, 128]}
    line = commands(manifest(profile=profile))["TensorRT 11"][0]
    assert " --minShapes=noisy:1x3x16x16,sigma:1 --optShapes=noisy:1x3x32x32,sigma:1 " in line
    assert " --maxShapes=noisy:4x3x64x128,sigma:4 " in line


def test_a_static_file_is_given_no_shapes_and_a_blind_one_no_sigma() -> None:
    made = manifest(("fp32",))
    image = TensorSpec("noisy", "image", (1, 3, 32, 32), "NCHW", "float32")
    static = replace(
        made, variants=(replace(made.variants[0], inputs=(image,)),), model=replace(made.model, blind=True)
    )
    assert "Shapes" not in "".join(trtexec.lines(static))
    blind = replace(static, variants=(replace(made.variants[0], inputs=INPUTS[:1], outputs=OUTPUTS),))
    assert "--minShapes=noisy:1x3x32x32 " in trtexec.lines(blind)[-1]


def test_a_float_bundle_has_no_int8_line() -> None:
    assert "int8.onnx" not in "".join(trtexec.lines(manifest(("fp32",))))


def test_what_cannot_be_written() -> None:
    profile = {"min": [1, 3, 16, 16], "opt": [1, 3, 8, 8], "max": [1, 3, 64, 64]}
    with pytest.raises(BundleError, match="shape_profile is .*: expected min <= opt <= max"):
        trtexec.lines(manifest(profile=profile))
    made = manifest(("fp32",))
    other = replace(made.variants[0], file="x.tflite")
    with pytest.raises(BundleError, match="tiny-blur holds no ONNX file"):
        trtexec.lines(replace(made, variants=(other,), files={"x.tflite": "0" * 64, "golden.npz": "0" * 64}))


def test_it_loads_no_library() -> None:
    code = "import sys, edgekit.bundle.trtexec; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"tensorrt", "tensorrt_rtx", "cuda", "torch", "onnx", "onnxruntime"}
