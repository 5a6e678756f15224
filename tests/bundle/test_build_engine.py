"""build_engine.py against a fake TensorRT: what it calls in each version, what it keeps, and what it refuses."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_bundle
from fake_tensorrt import Fake
from golden_bundle import edit_golden, edit_manifest, scenes
from tensorrt_bundle import NAME, TILE, write_bundle

from edgekit.bundle import build_engine, reader
from edgekit.runtime import tiling

VERSIONS = ["8.6.1", "10.3.0", "11.0.0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, not to be altered."""
    return write_bundle(tmp_path_factory.mktemp("tensorrt") / "whole.edgekit")


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle."""
    return Path(shutil.copytree(whole, tmp_path / "tiny.edgekit"))


Start = Callable[..., Fake]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Put a fake TensorRT in place, on whose clock int8 takes 1 ms a tile and float 2."""

    def begin(version: str = "10.3.0", **settings: Any) -> Fake:
        fake = Fake(version, **settings).install(monkeypatch)
        fake.cost = {"int8": 0.001, "fp16": 0.002, "fp32": 0.003}
        monkeypatch.setattr(build_engine, "time", fake.clock())
        return fake

    return begin


def engines(bundle: Path) -> list[str]:
    return sorted(path.name for path in (bundle / "engines").glob("*.engine"))


def sidecar(bundle: Path) -> dict[str, Any]:
    (path,) = (bundle / "engines").glob("*.engine.json")
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def test_it_stands_alone() -> None:
    # JetPack 6 has Python 3.10.
    tree = ast.parse(Path(build_engine.__file__).read_text(), feature_version=(3, 10))
    found = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    found |= {str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert found - set(sys.stdlib_module_names) == {"numpy"}


def test_without_tensorrt_it_cannot_tell(bundle: Path) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("needs a machine without tensorrt")
    shutil.copyfile(build_engine.__file__, bundle / "build_engine.py")
    command = [sys.executable, "-I", str(bundle / "build_engine.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=bundle.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert "tensorrt cannot be imported" in done.stderr
    assert "pip install tensorrt cuda-python" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize(
    ("version", "network", "second", "flags"),
    [
        # int8 keeps FP16 for what it leaves unquantized; 1 << EXPLICIT_BATCH of the fake.
        ("8.6.1", 1 << 2, "fp16", [{"INT8", "FP16"}, {"FP16"}]),
        ("10.3.0", 0, "fp16", [{"INT8", "FP16"}, {"FP16"}]),
        ("11.0.0", 0, "fp32", [set(), set()]),
    ],
)
def test_each_version_is_called_as_it_wants(
    bundle: Path,
    start: Start,
    capsys: pytest.CaptureFixture[str],
    version: str,
    network: int,
    second: str,
    flags: list[set[str]],
) -> None:
    fake = start(version)
    assert build_engine.main([], bundle) == 0
    assert [call[1] for call in fake.named("create_network")] == [network, network]
    assert fake.named("build") == [("build", p, frozenset(f)) for p, f in zip(("int8", second), flags, strict=True)]
    assert [Path(call[1]).name for call in fake.named("parse")] == [f"{NAME}.int8.onnx", f"{NAME}.fp32.onnx"]
    one = (1, 3, TILE, TILE)
    assert fake.named("set_shape")[:2] == [("set_shape", "noisy", one, one, one), ("set_shape", "sigma", *[(1,)] * 3)]
    assert engines(bundle) == [f"{NAME}.int8.orin-sm87-mp16.trt{version}.engine"]
    out = capsys.readouterr().out
    assert ("no FP16 flag, and the bundle no FP16 file: FP32 is built in its place" in out) == (second == "fp32")
    assert not fake.live, "memory was not freed"
    assert not fake.streams


@pytest.mark.parametrize(("slow", "kept"), [("int8", "fp16"), ("fp16", "int8")])
def test_the_faster_one_is_kept(
    bundle: Path, start: Start, capsys: pytest.CaptureFixture[str], slow: str, kept: str
) -> None:
    fake = start()
    fake.cost[slow] = 0.004
    fake.cost[kept] = 0.002
    assert build_engine.main([], bundle) == 0
    name = f"{NAME}.{kept}.orin-sm87-mp16.trt10.3.0.engine"
    assert engines(bundle) == [name]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"PASS  {kept}  2.000 ms a tile (2.00x as fast as {slow})")
    assert last.endswith(f"-> engines/{name}")
    facts = sidecar(bundle)
    source = f"{NAME}.{'int8' if kept == 'int8' else 'fp32'}.onnx"
    assert facts["onnx"] == source
    assert facts["onnx_sha256"] == reader.sha256(bundle / source)
    assert facts["engine_sha256"] == reader.sha256(bundle / "engines" / name)
    assert (facts["gpu"], facts["compute_capability"], facts["multiprocessors"]) == ("Orin", "8.7", 16)
    assert (facts["tensorrt"], facts["precision"], facts["ms"]) == ("10.3.0", kept, pytest.approx(2.0))
    assert facts["macs"] == {"int8" if kept == "int8" else "float16": tensorrt_bundle.MACS}


def test_the_two_are_timed_in_turns(bundle: Path, start: Start) -> None:
    """A clock that falls while it runs must slow both alike."""
    fake = start()
    order: list[str] = []

    def compute(precision: str, output: Any) -> Any:
        order.append(precision)
        return output

    fake.compute = compute
    assert build_engine.main([], bundle) == 0
    rounds = 2 * (build_engine.WARM_UP + build_engine.ROUNDS)
    assert order[-rounds:] == ["int8", "fp16"] * (rounds // 2)


def test_dB_is_measured_on_the_golden_tiles(bundle: Path, start: Start) -> None:
    start()
    assert build_engine.main(["--precision", "fp16"], bundle) == 0
    facts, tiles = sidecar(bundle), reader.read(bundle).golden()
    assert [row["sigma"] for row in facts["db"]] == [25.0, 50.0]
    for k, row in enumerate(facts["db"]):
        model = tensorrt_bundle.onnx_bytes("fp32")
        clean = np.rint(np.clip(tensorrt_bundle.denoise(model, tiles.noisy[k], float(tiles.sigma[k])), 0, 255))
        error = float(np.mean((clean - tiles.clean[k].astype(float)) ** 2))
        assert row["device"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-6)
        assert row["device"] > row["noisy"] + 1


def test_a_fast_one_that_is_wrong_is_not_kept(bundle: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    fake = start()
    fake.compute = lambda precision, output: output + (0.1 if precision == "int8" else 0)
    assert build_engine.main([], bundle) == 0
    assert engines(bundle) == [f"{NAME}.fp16.orin-sm87-mp16.trt10.3.0.engine"]
    out = capsys.readouterr().out
    assert "  int8: total drop " in out
    assert "dB, 0.5 dB allowed" in out


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda output: output + 0.1, "0.5 dB allowed"),
        (lambda output: output * np.nan, "values that are NaN or infinite"),
    ],
)
def test_none_that_passes_is_exit_code_1(
    bundle: Path, start: Start, capsys: pytest.CaptureFixture[str], spoil: Callable[[Any], Any], reason: str
) -> None:
    fake = start()
    fake.compute = lambda precision, output: spoil(output)
    assert build_engine.main([], bundle) == 1
    out = capsys.readouterr().out
    assert out.count(reason) >= 2
    assert out.splitlines()[-1].startswith("FAIL  no engine was kept")
    assert engines(bundle) == []
    assert not fake.live


def test_an_output_worse_than_the_input_fails() -> None:
    row = {"sigma": 25.0, "noisy": 20.0, "fp32": 19.9, "device": 19.8}
    drop, problem = build_engine.judge([row], 0.5)
    assert drop == pytest.approx(0.1)
    assert problem == "output is worse than the noisy input (19.80 dB against 20.00 dB)"
    assert "total drop nan dB" in build_engine.judge([{**row, "device": float("nan")}], 0.5)[1]


def test_one_that_cannot_be_built_leaves_the_other(
    bundle: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = start()
    fake.refuse = {"int8"}
    assert build_engine.main([], bundle) == 0
    assert engines(bundle) == [f"{NAME}.fp16.orin-sm87-mp16.trt10.3.0.engine"]
    assert f"int8: TensorRT found no int8 engine for {NAME}.int8.onnx" in capsys.readouterr().out
    fake.refuse = {"int8", "fp16"}
    assert build_engine.main(["--force"], bundle) == 1


def test_a_file_that_does_not_parse_is_named(tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "odd.edgekit")
    start()
    (bundle / f"{NAME}.int8.onnx").write_bytes(b"\xff\xff no ONNX")
    digest = reader.sha256(bundle / f"{NAME}.int8.onnx")
    models = {**reader.read(bundle, verify=False).golden().models, f"{NAME}.int8.onnx": digest}
    edit_golden(bundle, models=models)
    digests = {f"{NAME}.int8.onnx": digest, "golden.npz": reader.sha256(bundle / "golden.npz")}
    edit_manifest(bundle, lambda data: data["files"].update(digests))
    assert build_engine.main([], bundle) == 0
    assert f"int8: {NAME}.int8.onnx does not parse: ModelImporter: failed to parse the model" in capsys.readouterr().out


def damage_onnx(bundle: Path) -> None:
    (bundle / f"{NAME}.fp32.onnx").write_bytes(b"x")


def damage_golden(bundle: Path) -> None:
    (bundle / "golden.npz").unlink()


def damage_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")


def loosen(bundle: Path) -> None:
    edit_manifest(bundle, lambda data: data["thresholds"].update(max_drop=9.0))


def swap_model(bundle: Path) -> None:
    (bundle / f"{NAME}.int8.onnx").write_bytes(tensorrt_bundle.onnx_bytes("fp32"))
    digest = reader.sha256(bundle / f"{NAME}.int8.onnx")
    edit_manifest(bundle, lambda data: data["files"].update({f"{NAME}.int8.onnx": digest}))


def forget_halo(bundle: Path) -> None:
    edit_manifest(bundle, lambda data: data["model"].pop("halo"))


def narrow(bundle: Path) -> None:
    profile = {"min": [1, 3, 8, 8], "opt": [1, 3, 16, 16], "max": [1, 3, 16, 16]}
    edit_manifest(bundle, lambda data: data["recipe"].update(shape_profile=profile))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_onnx, f"{NAME}.fp32.onnx was altered or damaged: sha256 expected"),
        (damage_golden, "golden.npz cannot be read"),
        (damage_manifest, "is not whole"),
        (loosen, "thresholds edited: manifest says 9.0 dB, sealed 0.5 dB"),
        (swap_model, "is not the one the golden tiles were made with"),
        (forget_halo, "is not one that this script knows (KeyError('halo'))"),
        (narrow, "expected min <= opt <= max, each [N, 3, H, W], with [1, 3, 32, 32] (one tile) within"),
    ],
)
def test_a_damaged_bundle_is_no_verdict(
    bundle: Path, start: Start, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], message: str
) -> None:
    fake = start()
    damage(bundle)
    assert build_engine.main([], bundle) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert engines(bundle) == []
    assert not fake.live


def test_no_gpu_and_an_old_tensorrt_are_no_verdict(
    bundle: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = start()
    fake.fail = {"cudaGetDevice": "cudaErrorNoDevice"}
    assert build_engine.main([], bundle) == 2
    assert "no GPU can be used (CUDA reports cudaErrorNoDevice)" in capsys.readouterr().err
    start("8.5.3")
    assert build_engine.main([], bundle) == 2
    assert "tensorrt is 8.5.3: expected 8.6 to 11" in capsys.readouterr().err


def test_full_memory_fails_and_is_named(bundle: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    fake = start()
    fake.fail = {"cudaMalloc": "cudaErrorMemoryAllocation"}
    assert build_engine.main([], bundle) == 1
    assert "int8: CUDA reports cudaErrorMemoryAllocation" in capsys.readouterr().out
    assert not fake.live


def test_a_second_run_checks_again_and_builds_nothing(
    bundle: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = start()
    assert build_engine.main([], bundle) == 0
    before = (bundle / "engines" / engines(bundle)[0]).stat().st_mtime_ns
    capsys.readouterr()
    assert build_engine.main([], bundle) == 0
    assert len(fake.named("build")) == 2
    out = capsys.readouterr().out
    assert "is there already and is checked again" in out
    assert "PASS  int8" in out
    assert (bundle / "engines" / engines(bundle)[0]).stat().st_mtime_ns == before
    # One that fails now is not trusted for having passed once.
    fake.compute = lambda precision, output: output + (0.1 if precision == "int8" else 0)
    assert build_engine.main([], bundle) == 0
    assert len(fake.named("build")) == 4
    assert engines(bundle) == [f"{NAME}.fp16.orin-sm87-mp16.trt10.3.0.engine"]


def test_force_builds_anew_with_the_timings_of_the_first_build(bundle: Path, start: Start) -> None:
    fake = start()
    assert build_engine.main([], bundle) == 0
    assert build_engine.main(["--force"], bundle) == 0
    assert len(fake.named("build")) == 4
    written = (bundle / "engines" / "orin-sm87-mp16.trt10.3.0.timing").read_bytes()
    assert written == b"cache 10.3.0 Orin"
    assert [call[1] for call in fake.named("create_timing_cache")] == [b"", written, written, written]


def test_timings_of_another_gpu_are_not_used(bundle: Path, start: Start) -> None:
    fake = start()
    (bundle / "engines").mkdir()
    path = bundle / "engines" / "orin-sm87-mp16.trt10.3.0.timing"
    path.write_bytes(b"cache 10.3.0 Thor")
    assert build_engine.main([], bundle) == 0
    assert [call[1] for call in fake.named("create_timing_cache")][:2] == [b"cache 10.3.0 Thor", b""]
    assert path.read_bytes() == b"cache 10.3.0 Orin"


@pytest.mark.parametrize(
    ("version", "gpu", "words"),
    [
        ("10.7.0", ("Orin", 8, 7, 16), "was built by TensorRT 10.3.0, this is 10.7.0"),
        (
            "10.3.0",
            ("Orin", 8, 7, 8),
            "was built for Orin (compute capability 8.7, 16 multiprocessors), "
            "this is Orin (compute capability 8.7, 8 multiprocessors)",
        ),
    ],
)
def test_an_engine_of_another_machine_is_named_and_left_alone(
    bundle: Path,
    start: Start,
    capsys: pytest.CaptureFixture[str],
    version: str,
    gpu: tuple[str, int, int, int],
    words: str,
) -> None:
    start()
    assert build_engine.main([], bundle) == 0
    first = engines(bundle)[0]
    fake = start(version, gpu=gpu)
    assert build_engine.main([], bundle) == 0
    assert f"not used: {first} {words}" in capsys.readouterr().out
    assert len(fake.named("build")) == 2
    assert first in engines(bundle)
    assert len(engines(bundle)) == 2


def test_an_altered_engine_is_named_and_built_anew(
    bundle: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = start()
    assert build_engine.main([], bundle) == 0
    path = bundle / "engines" / engines(bundle)[0]
    path.write_bytes(path.read_bytes() + b" ")
    assert build_engine.main([], bundle) == 0
    assert f"not used: {path.name} was altered or damaged: sha256 expected" in capsys.readouterr().out
    assert len(fake.named("build")) == 4


def test_fp16_under_11_needs_a_file_of_its_own(
    tmp_path: Path, bundle: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = start("11.0.0")
    assert build_engine.main(["--precision", "fp16"], bundle) == 2
    err = capsys.readouterr().err
    assert f"--precision fp16: TensorRT 11.0.0 has no FP16 flag, and the bundle no {NAME}.fp16.onnx" in err
    assert "expected one of int8, fp32" in err
    with_half = write_bundle(tmp_path / "half.edgekit", precisions=("int8", "fp16", "fp32"))
    assert build_engine.main([], with_half) == 0
    assert [Path(call[1]).name for call in fake.named("parse")] == [f"{NAME}.int8.onnx", f"{NAME}.fp16.onnx"]
    assert [call[1] for call in fake.named("build")] == ["int8", "fp16"]


def test_a_precision_can_be_asked_for(bundle: Path, start: Start) -> None:
    fake = start()
    assert build_engine.main(["--precision", "fp32"], bundle) == 0
    assert fake.named("build") == [("build", "fp32", frozenset())]
    assert build_engine.main(["--precision", "int8", "--workspace", "64"], bundle) == 0
    assert fake.named("set_memory_pool_limit") == [("set_memory_pool_limit", "WORKSPACE", 64 << 20)]
    # An engine that answered another question stays.
    assert [name.split(".")[1] for name in engines(bundle)] == ["fp32", "int8"]


@pytest.mark.parametrize("arguments", [["--workspace", "0"], ["--precision", "int4"]])
def test_bad_arguments_are_exit_code_2(bundle: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_engine.main(arguments, bundle)
    assert caught.value.code == 2


def test_the_recipe_says_the_shapes(tmp_path: Path, start: Start) -> None:
    shapes = {"min": [1, 3, 16, 16], "opt": [1, 3, 32, 32], "max": [4, 3, 64, 128]}
    fake = start()
    assert build_engine.main([], write_bundle(tmp_path / "b.edgekit", profile=shapes)) == 0
    assert fake.named("set_shape")[:2] == [
        ("set_shape", "noisy", (1, 3, 16, 16), (1, 3, 32, 32), (4, 3, 64, 128)),
        ("set_shape", "sigma", (1,), (1,), (4,)),
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_layers_in_int8_are_named_by_their_weights(
    bundle: Path, start: Start, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    fake = start(version)
    # Its border is int8 all the same, as TensorRT shows it.
    fake.left_float = {"mix"}
    assert build_engine.main([], bundle) == 0
    out = capsys.readouterr().out
    assert "int8: 1 of 2 layers that multiply are in int8" in out
    assert "  int8: blur\n" in out
    assert "  not int8: mix (float32)\n" in out
    facts = sidecar(bundle)
    assert facts["int8_layers"] == ["blur"]
    assert facts["other_layers"] == {"mix": "float32"}
    assert facts["macs"] == {"int8": TILE * TILE * 81, "float32": TILE * TILE * 9}
    assert facts["operators"] == {"CaskConvolution": 2, "Reformat": 1}


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        ({"TacticName": "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32"}, "int8"),
        ({"LayerType": "gemm", "Inputs": [{"DataType": "Half", "Format": "kLINEAR"}]}, "float16"),
        ({"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}, "unknown"),
        ({"LayerType": "CaskDeconvolution", "Weights": {"Type": "Int8", "Count": 4}}, "int8"),
    ],
)
def test_layers_that_tell_less_are_read_by_tactic_and_input(layer: dict[str, Any], dtype: str) -> None:
    (found,) = build_engine.products([layer, {"LayerType": "Reformat", "TacticName": "copy"}])
    assert found.dtype == dtype
    # A share of what is not known would be made up.
    assert build_engine.macs_by_dtype([found]) == {}


def test_macs_of_a_transposed_convolution_go_by_its_source() -> None:
    sides = {"Inputs": [{"Dimensions": [1, 8, 4, 4]}], "Outputs": [{"Dimensions": [1, 2, 8, 8]}]}
    weights = {"Weights": {"Type": "Half", "Count": 8 * 2 * 4}}
    (found,) = build_engine.products([{"LayerType": "CaskDeconvolutionV2", **sides, **weights}])
    assert found.macs == 16 * 64
    (found,) = build_engine.products([{"LayerType": "CaskConvolution", **sides, **weights}])
    assert found.macs == 64 * 64


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (32, 32), (33, 70)])
def test_its_tiles_are_the_denoisers(bundle: Path, start: Start, size: tuple[int, int]) -> None:
    """The stand-alone implementation of the tiles gives what edgekit's own gives."""
    start()
    here = build_engine.machine()
    path = bundle / f"{NAME}.fp32.onnx"
    manifest = json.loads((bundle / "manifest.json").read_text())
    shapes = build_engine.shape_profile(manifest)
    session = build_engine.Session(here, build_engine.build(here, path, "fp16", shapes, bundle / "timing", None))
    image = scenes(1, 80, seed=5)[0][: size[0], : size[1]]
    found = build_engine.Tiler(session, manifest)(image, 30.0)
    session.close()
    expected = np.rint(np.clip(tensorrt_bundle.denoise(path.read_bytes(), image, 30.0), 0, 255)).astype(np.uint8)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("tile", "halo", "stride"), [(32, 1, 4), (64, 15, 4), (96, 17, 8), (40, 0, 8)])
def test_its_windows_are_tilings(bundle: Path, start: Start, tile: int, halo: int, stride: int) -> None:
    """The tiny model gives the same at any origin; a network with a grid does not."""
    start()
    session: Any = SimpleNamespace(inputs=["noisy"], ranks={"noisy": 4})
    tiler = build_engine.Tiler(session, {"tile": tile, "model": {"halo": halo, "stride": stride}})
    for size in (1, tile - 1, tile, 3 * tile + 5):
        spans = tiling.spans(size, tile, halo, stride)
        assert tiler._windows(size) == [(s.origin, s.start, s.stop) for s in spans]


def test_old_cuda_python_is_found_by_its_name(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake().install(monkeypatch, old_cuda=True)
    assert build_engine.machine().gpu == ("Orin", "8.7", 16)
    monkeypatch.delitem(sys.modules, "cuda.cudart")
    assert build_engine.main([], bundle) == 2
    assert not fake.named("build")
