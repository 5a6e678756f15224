"""The QDQ graph for TensorRT: its structure by TensorRT's rules, its numbers by ONNX Runtime, and tensorrt-rtx."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnx
from onnx import numpy_helper
from tiny import SIDE, Tiny, quantized

from edgekit.errors import ExportError
from edgekit.runtime.engines.registry import open_engine
from edgekit.targets import onnx_graph, registry
from edgekit.targets.base import Lowered


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return quantized(registry.get("tensorrt").scheme())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensorrt")


@pytest.fixture(scope="module")
def lowered(tiny: Tiny, folder: Path) -> Lowered:
    return registry.get("tensorrt").lower(tiny.model, tiny.program, folder, name="tiny", tile=SIDE, precision="int8")


class Graph:
    """An ONNX graph, by the names of its tensors."""

    def __init__(self, path: Path) -> None:
        self.nodes = list(onnx.load(str(path)).graph.node)
        graph = onnx.load(str(path)).graph
        self.made = {name: node for node in graph.node for name in node.output}
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.inputs = graph.input

    def of(self, *kinds: str) -> list[Any]:
        return [node for node in self.nodes if node.op_type in kinds]

    def users(self, name: str) -> list[Any]:
        return [node for node in self.nodes if name in node.input]


@pytest.fixture(scope="module")
def graph(lowered: Lowered, folder: Path) -> Graph:
    return Graph(folder / "tiny.int8.onnx")


def test_each_file_is_there_for_both_engines(lowered: Lowered) -> None:
    told = [(v.name, v.file, v.engine, v.made_for) for v in lowered.variants]
    assert told == [
        ("int8", "tiny.int8.onnx", "onnxruntime", "TensorRT"),
        ("fp32", "tiny.fp32.onnx", "onnxruntime", "TensorRT"),
        ("fp16", "tiny.fp16.onnx", "onnxruntime", "TensorRT"),
        ("int8-tensorrt", "tiny.int8.onnx", "tensorrt", ""),
        ("fp32-tensorrt", "tiny.fp32.onnx", "tensorrt", ""),
        ("fp16-tensorrt", "tiny.fp16.onnx", "tensorrt", ""),
    ]


def test_every_convolution_reads_integers(graph: Graph, lowered: Lowered) -> None:
    convolutions = graph.of("Conv")
    assert len(convolutions) == len(lowered.layers)
    assert {layer.dtype for layer in lowered.layers} == {"int8"}
    for node in convolutions:
        image, weight = (graph.made[name] for name in node.input[:2])
        assert image.op_type == weight.op_type == "DequantizeLinear"
        assert graph.made[image.input[0]].op_type == "QuantizeLinear"
        # Stored as integers, a scale for each output channel.
        integers, scales = graph.values[weight.input[0]], graph.values[weight.input[1]]
        assert integers.dtype == np.int8
        assert scales.shape == (integers.shape[0],)
        if len(node.input) > 2:
            assert graph.values[node.input[2]].dtype == np.float32


def test_zero_points_are_zero_and_scales_positive(graph: Graph) -> None:
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale = graph.values[node.input[1]]
        assert np.isfinite(scale).all()
        assert (scale > 0).all()
        # Older parsers take no node of two inputs.
        assert len(node.input) == 3
        zero = graph.values[node.input[2]]
        assert (zero.dtype, zero.shape) == (np.int8, scale.shape)
        assert not zero.any()


def test_naming_the_zero_points_of_weights_changes_no_bit(folder: Path, tiny: Tiny, lowered: Lowered) -> None:
    default, bare = lowered.variants[0], folder / "bare.onnx"
    onnx_graph.write(tiny.program.converted(fold=True), tiny.model, bare)
    assert {len(node.input) for node in Graph(bare).of("DequantizeLinear")} == {2, 3}
    fed = {"noisy": tiny.noisy.numpy(), "sigma": tiny.sigma.numpy()}
    named, unnamed = (open_engine(default, path, 1).run(fed) for path in (folder / default.file, bare))
    np.testing.assert_array_equal(named, unnamed)


def test_nothing_stands_between_a_convolution_and_its_relu(graph: Graph) -> None:
    for node in graph.of("Relu"):
        assert graph.made[node.input[0]].op_type == "Conv"


def test_residual_additions_take_integers_from_the_skip_alone(graph: Graph) -> None:
    kinds = []
    for node in graph.of("Add"):
        makers = [graph.made[name].op_type if name in graph.made else "" for name in node.input]
        kinds.append(tuple(sorted(makers)))
    # In each block: the convolution as it is, the skip through Q/DQ, so that TensorRT fuses the addition.
    assert ("Conv", "DequantizeLinear") in kinds
    assert ("DequantizeLinear", "DequantizeLinear") not in kinds


def test_images_stay_float_at_the_border(graph: Graph) -> None:
    assert [i.name for i in graph.inputs] == ["noisy", "sigma"]
    subtraction = graph.of("Sub")[0]
    assert subtraction.input[0] == "noisy"  # not a quantized copy: 127 levels would not do


def test_the_graph_computes_what_the_program_computes(lowered: Lowered, tiny: Tiny, folder: Path) -> None:
    default = lowered.variants[0]
    opened = open_engine(default, folder / default.file, 1)
    output = opened.run({"noisy": tiny.noisy.numpy(), "sigma": tiny.sigma.numpy()})
    with torch.no_grad():
        program = tiny.program(tiny.noisy, tiny.sigma).numpy()
        floats = tiny.model(tiny.noisy, tiny.sigma).numpy()
    error, loss = np.abs(output - program).mean(), np.abs(program - floats).mean()
    # Roundings may fall the other way, on few values: far less than what quantization itself changes.
    assert error < 0.3 * loss
    assert 0 < loss < 0.1


def test_any_size_and_batch(lowered: Lowered, folder: Path) -> None:
    default = lowered.variants[0]
    opened = open_engine(default, folder / default.file, 1)
    noisy = np.random.default_rng(0).random((2, 3, 24, 40), dtype=np.float32)
    levels = np.array([0.1, 0.2], np.float32)
    together = opened.run({"noisy": noisy, "sigma": levels})
    for k in range(2):
        alone = opened.run({"noisy": noisy[k : k + 1], "sigma": levels[k : k + 1]})
        np.testing.assert_allclose(together[k], alone[0], atol=1e-5)


def test_the_fp16_file_computes_in_fp16(lowered: Lowered, tiny: Tiny, folder: Path) -> None:
    graph = Graph(folder / "tiny.fp16.onnx")
    for node in graph.of("Conv"):
        assert {graph.values[name].dtype for name in node.input[1:]} == {np.dtype(np.float16)}
    fed = {"noisy": tiny.noisy.numpy(), "sigma": tiny.sigma.numpy()}
    half, full = (open_engine(v, folder / v.file, 1).run(fed) for v in lowered.variants if v.name in ("fp16", "fp32"))
    assert half.dtype == np.float32
    # The step of float16 near 1, where these values are; and not the FP32 file under another name.
    assert 0 < np.abs(half - full).mean() < 1e-3


def test_fp16_alone(tiny: Tiny, tmp_path: Path) -> None:
    lowered = registry.get("tensorrt").lower(tiny.model, None, tmp_path, name="tiny", tile=SIDE, precision="fp16")
    assert lowered.variants[0].name == "fp16"
    assert {layer.dtype for layer in lowered.layers} == {"float16"}


def test_what_it_refuses(tiny: Tiny, tmp_path: Path) -> None:
    target = registry.get("tensorrt")
    with pytest.raises(ExportError, match="precision 'int4': tensorrt exports int8, fp16, fp32"):
        target.lower(tiny.model, None, tmp_path, name="tiny", tile=SIDE, precision="int4")
    with pytest.raises(ExportError, match="needs a quantized program"):
        target.lower(tiny.model, None, tmp_path, name="tiny", tile=SIDE, precision="int8")


@functools.cache
def _logger(trt: Any) -> Any:
    """One for the process: freed, it brings down whatever still writes to it."""
    return trt.Logger(trt.Logger.ERROR)


@pytest.mark.parametrize(("precision", "compute"), [("int8", (8, 6)), ("int8", (8, 9)), ("fp16", (8, 6))])
def test_tensorrt_rtx_parses_and_builds_it_ahead_of_time(
    lowered: Lowered, folder: Path, precision: str, compute: tuple[int, int]
) -> None:
    """A sibling of TensorRT that builds without a GPU: structure alone; no numbers, no speed, no Orin."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx: pip install tensorrt-rtx==1.7.1.116")
    builder = trt.Builder(_logger(trt))
    data = (folder / f"tiny.{precision}.onnx").read_bytes()
    # A parser holds its network by a bare pointer: the name keeps it alive.
    scratch = builder.create_network(0)
    asked = trt.OnnxParser(scratch, _logger(trt))
    assert asked.supports_model_v2(data), [asked.get_error(i).desc() for i in range(asked.num_errors)]
    # A question fills the network that it was asked about.
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, _logger(trt))
    assert parser.parse(data), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shapes = [(1, 3, SIDE, SIDE)] * 3
    profile.set_shape("noisy", *shapes)
    profile.set_shape("sigma", (1,), (1,), (1,))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{compute[0]}{compute[1]}"), 0)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 1000
