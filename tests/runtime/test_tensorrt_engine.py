"""The engine `tensorrt` against a fake of its library: memory, streams, shapes, and which engine files it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_bundle
from fake_tensorrt import Fake
from golden_bundle import scenes
from tensorrt_bundle import INPUTS, NAME, OUTPUTS, TILE, write_bundle

from edgekit.bundle import build_engine, reader
from edgekit.bundle.manifest import TensorSpec, Variant
from edgekit.errors import EngineError, MissingExtraError
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.engines import tensorrt
from edgekit.runtime.engines.registry import open_engine

INT8 = Variant("int8", f"{NAME}.int8.onnx", "tensorrt", INPUTS, OUTPUTS)
FP32 = Variant("fp32", f"{NAME}.fp32.onnx", "tensorrt", INPUTS, OUTPUTS)
SHAPES = {"min": [1, 3, 16, 16], "opt": [1, 3, TILE, TILE], "max": [4, 3, 64, 64]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an int8 and an fp16 engine for an Orin and TensorRT 10.3.0, not to be altered."""
    folder = write_bundle(tmp_path_factory.mktemp("tensorrt") / "built.edgekit", profile=SHAPES)
    with pytest.MonkeyPatch.context() as patch:
        Fake().install(patch)
        patch.setattr(build_engine, "ROUNDS", 1)
        assert build_engine.main(["--precision", "int8"], folder) == 0
        assert build_engine.main(["--precision", "fp16"], folder) == 0
    return folder


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / "tiny.edgekit"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake().install(monkeypatch)


def feed(side: int = TILE, count: int = 1) -> dict[str, Any]:
    image = np.random.default_rng(side).random((count, 3, side, side), np.float32)
    return {"noisy": image, "sigma": np.full(count, 0.1, np.float32)}


def open_int8(bundle: Path) -> tensorrt.TensorRTEngine:
    return tensorrt.open(bundle / INT8.file, INT8, threads=1)


def rewrite(bundle: Path, precision: str, **changes: Any) -> Path:
    """Change what a sidecar says; returns its engine."""
    (path,) = (bundle / "engines").glob(f"*.{precision}.*.engine.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path.with_suffix("")


def test_it_gives_what_the_model_gives(bundle: Path, fake: Fake) -> None:
    engine = open_int8(bundle)
    expected = tensorrt_bundle.run_onnx((bundle / INT8.file).read_bytes(), feed())
    output = engine.run(feed())
    np.testing.assert_array_equal(output, expected)
    # A copy: the next run must not change it.
    engine.run({**feed(), "noisy": np.zeros_like(feed()["noisy"])})
    np.testing.assert_array_equal(output, expected)
    engine.close()


def test_the_fp16_file_is_run_by_the_fp16_engine_of_the_fp32_file(bundle: Path, fake: Fake) -> None:
    # TensorRT 8.6 to 10 makes its FP16 engine from the FP32 file.
    fp16 = Variant("fp16-tensorrt", f"{NAME}.fp16.onnx", "tensorrt", INPUTS, OUTPUTS)
    (bundle / fp16.file).write_bytes(tensorrt_bundle.onnx_bytes("fp16"))
    engine = tensorrt.open(bundle / fp16.file, fp16, threads=1)
    np.testing.assert_array_equal(
        engine.run(feed()), tensorrt_bundle.run_onnx((bundle / FP32.file).read_bytes(), feed())
    )
    engine.close()
    # Of another FP32 file it is not.
    (bundle / FP32.file).write_bytes(b"another")
    with pytest.raises(EngineError, match="was built from"):
        tensorrt.open(bundle / fp16.file, fp16, threads=1)


def test_one_run_is_one_stream_in_order(bundle: Path, fake: Fake) -> None:
    engine = open_int8(bundle)
    engine.run(feed())
    fake.calls.clear()
    engine.run(feed())
    engine.close()
    names = [call[0] for call in fake.calls]
    run = ["cudaMemcpyAsync", "cudaMemcpyAsync", "execute", "cudaMemcpyAsync", "cudaStreamSynchronize"]
    # Nothing is allocated: the buffers of the first run are used again.
    assert names[:5] == run
    kinds = [call[4].name for call in fake.named("cudaMemcpyAsync")]
    assert kinds == ["cudaMemcpyHostToDevice", "cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"]
    assert len({call[-1] for call in fake.calls[:5]}) == 1


def test_host_memory_is_page_locked(bundle: Path, fake: Fake) -> None:
    """The fake's copies refuse any other; here the pairs are counted: host and device of three tensors."""
    engine = open_int8(bundle)
    engine.run(feed())
    assert sorted(kind for kind, _ in fake.live.values()) == ["device"] * 3 + ["host"] * 3
    engine.close()


def test_other_shapes_within_the_profile(bundle: Path, fake: Fake) -> None:
    engine = open_int8(bundle)
    model = (bundle / INT8.file).read_bytes()
    for side, count in ((TILE, 1), (16, 2), (64, 4), (TILE, 1)):
        given = feed(side, count)
        np.testing.assert_array_equal(engine.run(given), tensorrt_bundle.run_onnx(model, given))
    # A smaller shape, and one that came before, fit into what is there.
    assert len(fake.named("cudaMalloc")) == 3 + 1 + 3
    assert len(fake.live) == 6
    with pytest.raises(EngineError, match=r"given shape \[1, 3, 80, 80\]: the engine takes \[1, 3, 16, 16\] to \[4, 3"):
        engine.run(feed(80))
    # A refused shape leaves no half-made state behind.
    np.testing.assert_array_equal(engine.run(feed()), tensorrt_bundle.run_onnx(model, feed()))
    engine.close()


def test_close_frees_everything_and_twice_is_fine(bundle: Path, fake: Fake) -> None:
    engine = open_int8(bundle)
    engine.run(feed())
    engine.close()
    engine.close()
    assert not fake.live
    assert not fake.streams
    with pytest.raises(EngineError, match="is closed: open it again"):
        engine.run(feed())


@pytest.mark.parametrize("call", ["cudaMallocHost", "cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_failure_of_cuda_is_told_and_leaks_nothing(bundle: Path, fake: Fake, call: str) -> None:
    engine = open_int8(bundle)
    fake.fail = {call: "cudaErrorMemoryAllocation"}
    with pytest.raises(EngineError, match=r"failed in tensorrt 10.3.0 .*: CUDA reports cudaErrorMemoryAllocation"):
        engine.run(feed())
    engine.close()
    assert not fake.live


def test_a_stream_that_cannot_be_made_frees_the_engine(bundle: Path, fake: Fake) -> None:
    fake.fail = {"cudaStreamCreate": "cudaErrorMemoryAllocation"}
    with pytest.raises(EngineError, match="cannot be opened by tensorrt 10.3.0"):
        open_int8(bundle)
    assert not fake.live


def test_what_it_says_of_itself(bundle: Path, fake: Fake) -> None:
    engine = open_int8(bundle)
    assert (engine.name, engine.kernels, engine.threads) == ("tensorrt", "tensorrt", 1)
    assert engine.library == "tensorrt 10.3.0 (int8 engine)"
    assert dict(engine.macs) == {"int8": tensorrt_bundle.MACS}
    assert {name: n.total for name, n in engine.operators.items()} == {"CaskConvolution": 2, "Reformat": 1}
    engine.close()
    rewrite(bundle, "int8", macs={"int8": "many"}, operators=None)
    engine = open_int8(bundle)
    assert (dict(engine.macs), dict(engine.operators)) == ({}, {})
    engine.close()


def test_the_fp32_file_opens_the_fp16_engine_until_there_is_one_of_its_own(
    bundle: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tensorrt.open(bundle / FP32.file, FP32, threads=1)
    assert engine.library == "tensorrt 10.3.0 (fp16 engine)"
    engine.close()
    monkeypatch.setattr(build_engine, "ROUNDS", 1)
    assert build_engine.main(["--precision", "fp32"], bundle) == 0
    engine = tensorrt.open(bundle / FP32.file, FP32, threads=1)
    assert engine.library == "tensorrt 10.3.0 (fp32 engine)"
    engine.close()


@pytest.mark.parametrize(
    ("version", "gpu", "message"),
    [
        ("10.7.0", ("Orin", 8, 7, 16), "was built by TensorRT 10.3.0, this is 10.7.0"),
        ("10.3.0", ("Orin", 8, 7, 8), r"built for Orin .*16 multiprocessors\), this is Orin .*8 multiprocessors\)"),
        ("10.3.0", ("Thor", 11, 0, 20), r"built for Orin .*8.7, .*, this is Thor \(compute capability 11.0"),
    ],
)
def test_an_engine_of_another_machine_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, version: str, gpu: tuple[str, int, int, int], message: str
) -> None:
    fake = Fake(version, gpu).install(monkeypatch)
    with pytest.raises(EngineError, match=message + ".*run `python build_engine.py` in "):
        open_int8(bundle)
    assert not fake.named("deserialize"), "it was handed to TensorRT all the same"


def test_an_engine_of_another_file_is_refused(bundle: Path, fake: Fake) -> None:
    path = bundle / INT8.file
    path.write_bytes(tensorrt_bundle.onnx_bytes("fp32"))
    digest = reader.sha256(path)[:12]
    with pytest.raises(EngineError, match=rf"was built from {INT8.file} of sha256 .*, this is {digest}.*build_engine"):
        open_int8(bundle)


def test_an_altered_engine_is_refused(bundle: Path, fake: Fake) -> None:
    engine = rewrite(bundle, "int8")
    engine.write_bytes(b"x")
    with pytest.raises(EngineError, match="was altered or damaged: sha256 expected .*, found .*build_engine"):
        open_int8(bundle)
    engine.unlink()
    with pytest.raises(EngineError, match="was altered or damaged: sha256 expected .*, found none.*build_engine"):
        open_int8(bundle)
    assert not fake.named("deserialize")


def test_an_engine_that_tensorrt_cannot_load_is_told(bundle: Path, fake: Fake) -> None:
    engine = rewrite(bundle, "int8", engine_sha256="2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    engine.write_bytes(b"x")
    with pytest.raises(EngineError, match="cannot be opened by .*TensorRT cannot load the engine.*build_engine.py"):
        open_int8(bundle)


def test_no_engine_names_the_fix_and_what_there_is(bundle: Path, fake: Fake) -> None:
    for path in (bundle / "engines").glob("*.int8.*"):
        path.unlink()
    words = r"has no engine for Orin .* and TensorRT 10.3.0: run `python build_engine.py` in .* must be unpacked first"
    with pytest.raises(EngineError, match=words + rf".*there are engines of {NAME}.fp32.onnx \(fp16\): open that"):
        open_int8(bundle)
    shutil.rmtree(bundle / "engines")
    with pytest.raises(EngineError, match=words + r"\)$"):
        open_int8(bundle)


def test_a_broken_sidecar_is_no_engine(bundle: Path, fake: Fake) -> None:
    (path,) = (bundle / "engines").glob("*.int8.*.json")
    for text in ("{", "[]", '{"gpu": "Orin"}'):
        path.write_text(text)
        with pytest.raises(EngineError, match="has no engine for"):
            open_int8(bundle)


def test_portable_kernels_do_not_exist(bundle: Path, fake: Fake) -> None:
    with pytest.raises(EngineError, match="tensorrt has no portable kernels"):
        tensorrt.open(bundle / INT8.file, INT8, threads=1, portable=True)


def test_tensors_are_those_of_the_manifest(bundle: Path, fake: Fake) -> None:
    renamed = (TensorSpec("image", "image", (-1, 3, -1, -1), "NCHW", "float32"), INPUTS[1])
    with pytest.raises(
        EngineError, match=r"has the inputs \['noisy', 'sigma'\], the manifest says \['image', 'sigma'\]"
    ):
        tensorrt.open(bundle / INT8.file, Variant("int8", INT8.file, "tensorrt", renamed, OUTPUTS), threads=1)
    other = (TensorSpec("clean", "clean", (-1, 3, -1, -1), "NCHW", "uint8"),)
    with pytest.raises(EngineError, match=r"output 'clean' of .* is float32 with 4 axes, the manifest says uint8"):
        tensorrt.open(bundle / INT8.file, Variant("int8", INT8.file, "tensorrt", INPUTS, other), threads=1)
    assert not fake.streams


def test_ill_fitting_inputs(bundle: Path, fake: Fake) -> None:
    engine = open_int8(bundle)
    given = feed()
    with pytest.raises(EngineError, match=r"was given the inputs \['noisy'\]: expected \['noisy', 'sigma'\]"):
        engine.run({"noisy": given["noisy"]})
    with pytest.raises(EngineError, match=r"was given float64 \[1, 3, 32, 32\]: expected float32 \[-1, 3, -1, -1\]"):
        engine.run({**given, "noisy": given["noisy"].astype(np.float64)})
    with pytest.raises(EngineError, match=r"was given float32 \[1, 4, 32, 32\]: expected float32 \[-1, 3, -1, -1\]"):
        engine.run({**given, "noisy": np.zeros((1, 4, TILE, TILE), np.float32)})
    engine.close()


def test_missing_libraries_name_the_pip_line(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules is an import that fails.
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match="tensorrt cannot be imported .*pip install tensorrt cuda-python"):
        open_int8(bundle)
    found = tensorrt.available()
    assert found.library is None
    assert "tensorrt cannot be imported" in found.problem
    assert found.fix.startswith("pip install tensorrt")


def test_available_with_and_without_a_gpu(fake: Fake) -> None:
    assert tensorrt.available().library == "tensorrt 10.3.0"
    fake.fail = {"cudaGetDeviceProperties": "cudaErrorNoDevice"}
    found = tensorrt.available()
    assert found.library is None
    assert "no GPU can be used (CUDA reports cudaErrorNoDevice)" in found.problem


def test_a_denoiser_runs_on_it(bundle: Path, fake: Fake) -> None:
    image = scenes(1, 60, seed=9)[0]
    with reader.read(bundle) as opened, Denoiser.from_bundle(opened) as denoiser:
        found = denoiser(image, sigma=30)
        assert denoiser.engine.kernels == "tensorrt"
    model = (bundle / INT8.file).read_bytes()
    expected = np.rint(np.clip(tensorrt_bundle.denoise(model, image, 30.0), 0, 255)).astype(np.uint8)
    np.testing.assert_array_equal(found, expected)
    assert not fake.live


def test_the_registry_opens_it(bundle: Path, fake: Fake) -> None:
    engine = open_engine(INT8, bundle / INT8.file, 2)
    assert (engine.name, engine.threads) == ("tensorrt", 2)
    engine.close()


def test_importing_it_loads_no_library() -> None:
    code = "import sys, edgekit.runtime.engines.tensorrt; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"tensorrt", "cuda", "torch", "onnx", "onnxruntime", "pydantic", "typer"}
