"""The structure of a Q/DQ file by TensorRT-RTX, TensorRT's sibling, whose parser and builder need no GPU.

A structural check of a sibling product: no numbers, no times, and none of a Jetson's GPUs (SM87 is not among its
targets). That TensorRT itself builds the file is likely, and not shown.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tensorrt_bundle
from tensorrt_bundle import TILE

from edgekit.bundle import build_engine
from edgekit.bundle.build_engine import Gpu, Machine, TensorRTError

rtx: Any = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx: pip install tensorrt-rtx==1.7.1.116")


# Not one a test: freed, it brings down whatever still writes to it.
LOGGER = rtx.Logger(rtx.Logger.INTERNAL_ERROR)


def parsed(model: bytes) -> tuple[Any, Any, Any]:
    """Builder, network and parser of a model; each needs those before it alive."""
    builder = rtx.Builder(LOGGER)
    network = builder.create_network(0)
    parser = rtx.OnnxParser(network, LOGGER)
    assert parser.parse(model), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    return builder, network, parser


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
def test_every_file_parses_and_is_supported(precision: str) -> None:
    model = tensorrt_bundle.onnx_bytes(precision)
    builder, network, parser = parsed(model)
    assert [network.get_input(i).name for i in range(network.num_inputs)] == ["noisy", "sigma"]
    assert network.get_output(0).name == "clean"
    assert parser.num_errors == 0
    fresh = builder.create_network(0)
    assert rtx.OnnxParser(fresh, LOGGER).supports_model_v2(model)


def test_a_file_with_an_unknown_operator_is_not_supported() -> None:
    """What the check is worth: it does refuse."""
    model = tensorrt_bundle.onnx_bytes("fp32").replace(b"Conv", b"Cnov")
    builder = rtx.Builder(LOGGER)
    network = builder.create_network(0)
    assert not rtx.OnnxParser(network, LOGGER).supports_model_v2(model)


@pytest.mark.parametrize("target", ["SM86", "SM89"])
def test_the_int8_file_builds_ahead_of_time(target: str) -> None:
    builder, network, _ = parsed(tensorrt_bundle.onnx_bytes("int8"))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(rtx.ComputeCapability, target), 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = (1, 3, TILE, TILE)[: len(tensor.shape)]
        profile.set_shape(tensor.name, shape, shape, shape)
    assert config.add_optimization_profile(profile) == 0
    serialized = builder.build_serialized_network(network, config)
    assert serialized is not None
    assert serialized.nbytes > 1000
    kinds = [network.get_layer(i).type.name for i in range(network.num_layers)]
    # Two convolutions, each with its input and its weights dequantized, the input quantized.
    assert (kinds.count("QUANTIZE"), kinds.count("DEQUANTIZE"), kinds.count("CONVOLUTION")) == (2, 4, 2)


class AheadOfTime:
    """TensorRT-RTX's builder, told the GPU to build for, in the place of the one that is not here."""

    def __init__(self, logger: Any) -> None:
        self._builder = rtx.Builder(logger)

    def create_builder_config(self) -> Any:
        config = self._builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
        return config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)


@pytest.fixture
def here() -> Machine:
    """TensorRT-RTX as if it were TensorRT 11, which it resembles: strongly typed networks only."""
    library = ModuleType("tensorrt")
    library.__dict__.update({**vars(rtx), "Builder": AheadOfTime})
    return Machine(library, "11.0.0", None, Gpu("Ampere", "8.6", 84))


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
def test_build_engines_own_calls_build_an_engine(here: Machine, tmp_path: Path, precision: str) -> None:
    """The real bindings take every call that `build` makes; the fake was written by hand."""
    model, cache = tmp_path / "model.onnx", tmp_path / "cache.timing"
    model.write_bytes(tensorrt_bundle.onnx_bytes(precision))
    one = [1, 3, TILE, TILE]
    shapes = {"min": one, "opt": one, "max": [2, 3, TILE, TILE]}
    assert not here.flags
    serialized = build_engine.build(here, model, precision, shapes, cache, 64)
    assert len(serialized) > 1000
    assert cache.is_file()
    # Once more, with the cache that the first wrote.
    assert build_engine.build(here, model, precision, shapes, cache, None)


def test_a_file_that_does_not_parse_is_told_by_the_real_parser(here: Machine, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"no ONNX")
    with pytest.raises(TensorRTError, match=r"model.onnx does not parse: \S"):
        build_engine.build(here, model, "int8", {}, tmp_path / "cache", None)
