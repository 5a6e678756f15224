from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgekit.bundle.manifest import Variant
from edgekit.errors import EngineError, MissingExtraError
from edgekit.runtime.engines import litert
from edgekit.runtime.engines.base import OperatorCount

if TYPE_CHECKING:
    from tiny_tflite import Stand


def variant(bundle: Stand, name: str = "int8") -> tuple[Path, Variant]:
    found = next(v for v in bundle.manifest.variants if v.name == name)
    return bundle.path(found.file), found


def feed(level: int = 0) -> dict[str, Any]:
    return {"image": np.zeros((1, 32, 32, 3), np.int8), "sigma": np.full((1,), level, np.int8)}


def altered(found: Variant, index: int, **changes: Any) -> Variant:
    inputs = list(found.inputs)
    inputs[index] = dataclasses.replace(inputs[index], **changes)
    return dataclasses.replace(found, inputs=tuple(inputs))


def test_runs_and_tells_what_ran(tiny: Stand) -> None:
    engine = litert.open(*variant(tiny), threads=1)
    assert engine.library.startswith("ai-edge-litert 2")
    assert engine.kernels == "xnnpack"
    assert engine.operators["CONV_2D"] == OperatorCount(total=2, delegated=2)
    output = engine.run(feed())
    assert output.shape == (1, 32, 32, 3)
    assert output.dtype == np.int8
    # At sigma 0 this network is the identity.
    assert (engine.run(feed(-128)) == 0).all()


def test_the_output_is_a_copy(tiny: Stand) -> None:
    engine = litert.open(*variant(tiny), threads=1)
    first = engine.run(feed(100))
    kept = first.copy()
    engine.run(feed(-128))
    np.testing.assert_array_equal(first, kept)


def test_operators_that_the_fast_kernels_leave_are_counted(tiny: Stand) -> None:
    engine = litert.open(*variant(tiny, "int8-uint8io"), threads=1)
    assert engine.operators["QUANTIZE"] == OperatorCount(total=2, delegated=0)
    # int8 <-> uint8 moves bits only: still the same on every machine.
    assert engine.kernels == "xnnpack"


def node(name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"op_name": name, "inputs": inputs, "outputs": outputs}


@pytest.mark.parametrize(
    ("delegates", "kernels", "taken"),
    [
        ([], "reference", (0, 0)),
        ([node("DELEGATE", [0], [3])], "xnnpack", (2, 1)),
        ([node("DELEGATE", [0], [1])], "mixed", (1, 0)),
        ([node("DELEGATE", [0], [1]), node("DELEGATE", [2], [3])], "mixed", (2, 0)),
    ],
)
def test_census_of_partitions(delegates: list[dict[str, Any]], kernels: str, taken: tuple[int, int]) -> None:
    nodes = [node("CONV_2D", [0, 8], [1]), node("ADD", [1, 0], [2]), node("CONV_2D", [2, 9], [3]), *delegates]
    nodes = [{**entry, "index": i} for i, entry in enumerate(nodes)]
    operators, found = litert._census(SimpleNamespace(_get_ops_details=lambda: nodes))
    assert found == kernels
    assert (operators["CONV_2D"].delegated, operators["ADD"].delegated) == taken
    assert (operators["CONV_2D"].total, operators["ADD"].total) == (2, 1)


def test_census_where_the_library_does_not_tell() -> None:
    assert litert._census(SimpleNamespace()) == ({}, "unknown")


@pytest.mark.parametrize(("name", "dtype"), [("int8", "int8"), ("int8-uint8io", "int8"), ("fp32", "float32")])
def test_macs_by_hand(tiny: Stand, name: str, dtype: str) -> None:
    # 8x8 cells: a 4x4 convolution from 3 to 8 channels, and a 3x3 one from 8 to 48.
    expected = 8 * 8 * (8 * 4 * 4 * 3 + 48 * 3 * 3 * 8)
    assert litert.open(*variant(tiny, name), threads=1).macs == {dtype: expected}


@pytest.mark.parametrize(
    ("op", "source", "weights", "result", "macs"),
    [
        ("CONV_2D", [1, 8, 8, 3], [16, 3, 3, 3], [1, 4, 4, 16], 4 * 4 * 16 * 27),
        ("DEPTHWISE_CONV_2D", [1, 8, 8, 6], [1, 3, 3, 6], [1, 8, 8, 6], 8 * 8 * 6 * 9),
        ("TRANSPOSE_CONV", [1, 4, 4, 6], [2, 2, 2, 6], [1, 8, 8, 2], 4 * 4 * 2 * 2 * 2 * 6),
        ("FULLY_CONNECTED", [5, 7], [3, 7], [5, 3], 5 * 7 * 3),
        ("BATCH_MATMUL", [2, 5, 7], [2, 7, 3], [2, 5, 3], 2 * 5 * 7 * 3),
    ],
)
def test_macs_of_each_operator(op: str, source: list[int], weights: list[int], result: list[int], macs: int) -> None:
    assert litert.node_macs(op, source, weights, result) == macs


def test_portable_kernels_compute_the_same_network(tiny: Stand) -> None:
    fast, slow = (litert.open(*variant(tiny), threads=1, portable=portable) for portable in (False, True))
    assert (fast.kernels, slow.kernels) == ("xnnpack", "reference")
    inputs = {
        "image": np.random.default_rng(0).integers(-128, 128, (1, 32, 32, 3), np.int8),
        "sigma": feed(60)["sigma"],
    }
    # They round otherwise: a few LSB.
    assert np.abs(fast.run(inputs).astype(int) - slow.run(inputs)).max() <= 4


def test_inputs_are_matched_by_order_where_names_are_unknown(tiny: Stand) -> None:
    path, found = variant(tiny)
    renamed = altered(altered(found, 0, name="a"), 1, name="b")
    output = litert.open(path, renamed, threads=1).run({"a": feed()["image"], "b": feed(50)["sigma"]})
    np.testing.assert_array_equal(output, litert.open(path, found, threads=1).run(feed(50)))


def test_inputs_are_matched_by_name_in_any_order(tiny: Stand) -> None:
    path, found = variant(tiny)
    swapped = dataclasses.replace(found, inputs=found.inputs[::-1])
    np.testing.assert_array_equal(
        litert.open(path, swapped, threads=1).run(feed(50)), litert.open(path, found, threads=1).run(feed(50))
    )


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (0, {"dtype": "uint8"}, r"input 'image' of tiny.int8.tflite is int8 \[1, 32, 32, 3\].*the manifest says uint8"),
        (0, {"shape": (1, 64, 64, 3)}, r"is int8 \[1, 32, 32, 3\].* says int8 \[1, 64, 64, 3\]"),
        (0, {"shape": (32, 32, 3)}, r"says int8 \[32, 32, 3\]"),
        (0, {"zero_point": 0}, r"zero point -128, the manifest says .* zero point 0"),
        (1, {"scale": 0.5}, r"input 'sigma' .* at scale 0.000845828\d*, .* says int8 \[1\] at scale 0.5"),
        (1, {"scale": None, "zero_point": None}, r"at scale 0.000845.*says int8 \[1\]: they"),
    ],
)
def test_tensors_that_the_manifest_describes_otherwise(
    tiny: Stand, index: int, changes: dict[str, Any], message: str
) -> None:
    path, found = variant(tiny)
    with pytest.raises(EngineError, match=message):
        litert.open(path, altered(found, index, **changes), threads=1)


def test_a_size_left_open_fits_any(tiny: Stand) -> None:
    path, found = variant(tiny)
    litert.open(path, altered(found, 0, shape=(-1, -1, -1, 3)), threads=1).close()


def test_an_input_too_many(tiny: Stand) -> None:
    path, found = variant(tiny)
    with pytest.raises(EngineError, match="has 2 inputs, the manifest names 1"):
        litert.open(path, dataclasses.replace(found, inputs=found.inputs[:1]), threads=1)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped"])
def test_a_corrupt_file(tiny: Stand, tmp_path: Path, damage: str) -> None:
    path, found = variant(tiny)
    data = path.read_bytes()
    broken = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "text": b"not a model",
        "flipped": data[:16] + bytes(b ^ 0xFF for b in data[16:400]) + data[400:],
    }[damage]
    file = tmp_path / "broken.tflite"
    file.write_bytes(broken)
    with pytest.raises(EngineError, match=r"broken\.tflite cannot be opened by ai-edge-litert") as caught:
        litert.open(file, found, threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((1, 32, 32, 3), np.uint8)}, r"input 'image' .* was given uint8 .*: expected int8"),
        (
            {"image": np.zeros((2, 32, 32, 3), np.int8)},
            r"\[2, 32, 32, 3\]: expected int8 \[1, 32, 32, 3\], or another height and width",
        ),
        ({"image": np.zeros((1, 32, 32, 1), np.int8)}, r"\[1, 32, 32, 1\]: expected int8 \[1, 32, 32, 3\]"),
        ({"image": np.zeros((1, 30, 32, 3), np.int8)}, r"tiny\.int8\.tflite failed in ai-edge-litert"),
        ({"other": np.zeros(1, np.int8)}, r"the inputs \['image', 'other', 'sigma'\]: expected \['image', 'sigma'\]"),
    ],
)
def test_inputs_that_do_not_fit(tiny: Stand, change: dict[str, Any], message: str) -> None:
    engine = litert.open(*variant(tiny), threads=1)
    with pytest.raises(EngineError, match=message):
        engine.run({**feed(), **change})


@pytest.mark.parametrize("name", ["int8", "int8-uint8io", "fp32"])
def test_other_sizes_give_the_same_bits(tiny: Stand, name: str) -> None:
    path, found = variant(tiny, name)
    engine = litert.open(path, found, threads=1)
    spec = found.inputs[0]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    pixels = {"int8": images.view(np.int8), "uint8": images, "float32": np.float32(images / 255)}[spec.dtype]
    level = np.full((1,), 100, found.inputs[1].dtype)
    whole = engine.run({"image": pixels, "sigma": level})
    assert engine.any_size
    # More sizes than are kept, and each of them twice.
    for height, width in [(20, 32), (24, 16), (16, 28), (32, 24), (20, 20), (20, 32)]:
        part = engine.run({"image": pixels[:, :height, :width], "sigma": level})
        assert part.shape == (1, height, width, 3)
        np.testing.assert_array_equal(part[:, : height - 7, : width - 7], whole[:, : height - 7, : width - 7])
    assert len(engine._others) == 3
    np.testing.assert_array_equal(engine.run({"image": pixels, "sigma": level}), whole)


def test_a_file_with_a_size_of_its_own_takes_no_other(tmp_path: Path, tiny: Stand) -> None:
    from tiny_tflite import _Graph

    _, found = variant(tiny, "fp32")
    image, clean = (dataclasses.replace(s, shape=(1, 32, 32, 3)) for s in (found.inputs[0], found.outputs[0]))
    graph = _Graph()
    source, flat, result = (graph.tensor(n, (1, 32, 32, 3), "float32") for n in (image.name, "flat", clean.name))
    shape = graph.tensor("shape", (4,), "int32", data=np.array([1, 32, 32, 3], np.int32))
    graph.operator("RESHAPE", [source, shape], [flat], newShape=[1, 32, 32, 3])
    graph.operator("RESHAPE", [flat, shape], [result], newShape=[1, 32, 32, 3])
    graph.write(tmp_path / "fixed.tflite", [source], [result])
    fixed = dataclasses.replace(found, inputs=(image,), outputs=(clean,))
    engine = litert.open(tmp_path / "fixed.tflite", fixed, threads=1)
    assert not engine.any_size
    pixels = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(engine.run({image.name: pixels}), pixels)
    with pytest.raises(EngineError, match=r"\[1, 16, 32, 3\]: expected float32 \[1, 32, 32, 3\]$"):
        engine.run({image.name: pixels[:, :16]})


def test_closed(tiny: Stand) -> None:
    engine = litert.open(*variant(tiny), threads=1)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match=r"tiny\.int8\.tflite is closed: open it again"):
        engine.run(feed())


class _Libraries:
    """Stands in for importlib.import_module: some libraries are missing, some broken."""

    def __init__(self, **state: Any) -> None:
        self.state = state
        self.real = importlib.import_module

    def __call__(self, name: str) -> Any:
        for prefix, state in self.state.items():
            if name.split(".")[0] == prefix:
                if isinstance(state, Exception):
                    raise state
                return state
        return self.real(name)


MISSING = ModuleNotFoundError("No module named it")


def test_no_library(monkeypatch: pytest.MonkeyPatch, tiny: Stand) -> None:
    libraries = _Libraries(ai_edge_litert=MISSING, tflite_runtime=MISSING, tensorflow=MISSING)
    monkeypatch.setattr(litert.importlib, "import_module", libraries)
    with pytest.raises(MissingExtraError, match=r"needs ai-edge-litert, .*: pip install 'edgekit\[litert\]'"):
        litert.open(*variant(tiny), threads=1)
    assert litert.available().library is None
    assert litert.available().fix == "pip install 'edgekit[litert]'"


def test_a_broken_library_is_named(monkeypatch: pytest.MonkeyPatch, tiny: Stand) -> None:
    broken = AttributeError("_ARRAY_API not found")
    libraries = _Libraries(ai_edge_litert=MISSING, tflite_runtime=broken, tensorflow=MISSING)
    monkeypatch.setattr(litert.importlib, "import_module", libraries)
    words = r"tflite-runtime is installed but broken \(_ARRAY_API not found\)"
    with pytest.raises(MissingExtraError, match=words):
        litert.open(*variant(tiny), threads=1)
    assert "broken" in litert.available().problem


@pytest.mark.parametrize(
    ("state", "library"),
    [
        ({"tflite_runtime": SimpleNamespace(Interpreter=int)}, "tflite-runtime"),
        (
            {
                "tflite_runtime": ImportError("numpy"),
                "tensorflow": SimpleNamespace(lite=SimpleNamespace(Interpreter=int), __version__="2.16"),
            },
            "tensorflow",
        ),
    ],
)
def test_the_next_best_library_is_taken(monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], library: str) -> None:
    monkeypatch.setattr(litert.importlib, "import_module", _Libraries(ai_edge_litert=MISSING, **state))
    monkeypatch.setattr(litert.importlib.metadata, "version", lambda name: "9.9")
    assert litert.available().library == f"{library} 9.9"
