"""What the paired weights of OpenVINO's files rest on: which products oneDNN adds in 16 bits where there is no VNNI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("openvino")
pytest.importorskip("onnx")

import onnx

from edgekit.compress.fake_quant import ChannelWeights, Pairs

SIDE = 24
_RUN = """
import sys, numpy, openvino
model = openvino.Core().compile_model(sys.argv[1], "CPU")
kinds = [n.get_rt_info() for n in model.get_runtime_model().get_ordered_ops()]
assert any("I8" in k["primitiveType"].astype(str) for k in kinds if "onvolution" in k["layerType"].astype(str))
noisy = numpy.load(sys.argv[2])
numpy.save(sys.argv[2], list(model({"x": noisy}).values())[0])
"""


def convolution(weights: NDArray[np.int8], groups: int, path: Path) -> float:
    """Write a quantized convolution, a scale of 1 for weights and 1/255 for uint8 images; the output's scale."""
    from onnx import helper, numpy_helper

    outputs, fan, kernel, _ = weights.shape
    scale = float(kernel * kernel * fan)
    stored = {
        "s": np.float32(1 / 255), "z": np.uint8(0), "w": weights, "sw": np.ones(outputs, np.float32),
        "so": np.float32(scale), "zo": np.uint8(128), "b": np.zeros(outputs, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "sw"], ["dw"], axis=0),
        helper.make_node("Conv", ["d", "dw", "b"], ["y"], group=groups, kernel_shape=[kernel] * 2),
        helper.make_node("QuantizeLinear", ["y", "so", "zo"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "so", "zo"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, fan * groups, SIDE, SIDE])],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return scale


def wrong_by(weights: NDArray[np.int8], groups: int, isa: str, folder: Path) -> float:
    """Largest error in steps of the output for the brightest image there is, run as a processor of that kind would."""
    scale = convolution(weights, groups, folder / "c.onnx")
    white = np.ones((1, weights.shape[1] * groups, SIDE, SIDE), np.float32)
    np.save(folder / "image.npy", white)
    environment = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}
    command = [sys.executable, "-c", _RUN, str(folder / "c.onnx"), str(folder / "image.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    exact = weights.astype(np.int64).sum((1, 2, 3))[None, :, None, None] / scale
    steps = np.load(folder / "image.npy") / scale
    return float(np.abs(steps - np.clip(exact, -128, 127)).max())


def pairs(kind: str, first: int, second: int) -> NDArray[np.int8]:
    """Weights [32, 32, 3, 3] of two values, neighbours alike in sign: "even" inputs the first, odd ones the second."""
    weights = np.empty((32, 32, 3, 3), np.int8)
    weights[:, 0::2], weights[:, 1::2] = first, second
    return -weights if kind == "negative" else weights


@pytest.mark.parametrize("isa", ["", "AVX512_CORE", "AVX2", "SSE41"])
def test_pairs_that_add_up_to_128_are_exact_everywhere(isa: str, tmp_path: Path) -> None:
    for kind in ("positive", "negative"):
        for first, second in ((64, 64), (127, 1), (1, 127), (100, 28)):
            assert wrong_by(pairs(kind, first, second), 1, isa, tmp_path) <= 0.51
    # Between outputs of one pair and the next nothing is added in 16 bits: four of them may be large.
    quads = pairs("positive", 127, 1)
    quads[:, 2::4], quads[:, 3::4] = 1, 127
    assert wrong_by(quads, 1, isa, tmp_path) <= 0.51


@pytest.mark.parametrize("isa", ["", "AVX512_CORE", "AVX2", "SSE41"])
@pytest.mark.parametrize("channels", [32, 40])
def test_depthwise_products_are_added_one_by_one(isa: str, channels: int, tmp_path: Path) -> None:
    for value in (127, -127):
        assert wrong_by(np.full((channels, 1, 3, 3), value, np.int8), channels, isa, tmp_path) <= 0.51


def test_without_the_limit_they_saturate(tmp_path: Path) -> None:
    # Else nothing above means anything: the variable did not do what it is believed to.
    assert wrong_by(pairs("positive", 127, 127), 1, "AVX2", tmp_path) > 10


MIXED = (5, 0, 1, 9, 2, 3, 11, 4, 6, 8, 7, 10)


@pytest.mark.parametrize("pairs", ["any", (tuple(range(12)),), (tuple(range(12)), MIXED)])
def test_quantized_weights_keep_the_limit(pairs: Pairs) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 12, 3, 3, generator=generator) ** 3
    weight[0] = 1  # all alike: the worst there is
    quantizer = ChannelWeights(pairs=pairs)
    quantizer(weight)
    integers = (weight / quantizer.scale.view(-1, 1, 1, 1)).round().int()
    assert integers.abs().max() > 100
    two = (
        torch.combinations(torch.arange(12)).tolist()
        if pairs == "any"
        else [order[2 * k : 2 * k + 2] for order in pairs for k in range(6)]
    )
    for sign in (1, -1):
        kept = (sign * integers).clamp(min=0)
        assert max(int((kept[:, a] + kept[:, b]).max()) for a, b in two) <= 128
    plain = ChannelWeights()
    plain(weight)
    assert ((plain.scale <= quantizer.scale) & (quantizer.scale < 2.01 * plain.scale)).all()
