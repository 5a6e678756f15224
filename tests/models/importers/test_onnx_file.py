"""ONNX files read as a network: the same numbers as ONNX Runtime, and one clear line for what cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import models
from edgekit.errors import CheckpointError, MissingExtraError
from edgekit.models import checkpoints, importers
from edgekit.models.base import DenoiserModel
from edgekit.models.graph import OPERATORS
from edgekit.targets import onnx_graph

Array = NDArray[Any]
FREE = ("n", "h", "w")


class Net:
    """Writes an ONNX file operator by operator, with random weights.

    Args:
        channels: of the input, called "x".
        sizes: batch, height and width; a text leaves one free.
        levels: shape of a second input, "sigma".
    """

    def __init__(
        self,
        channels: int = 3,
        sizes: tuple[int | str, int | str, int | str] = FREE,
        levels: list[int | str] | None = None,
        opset: int = 20,
    ) -> None:
        self.opset = opset
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [sizes[0], channels, *sizes[1:]])]
        if levels is not None:
            self.inputs.append(helper.make_tensor_value_info("sigma", TensorProto.FLOAT, levels))
        self.nodes: list[Any] = []
        self.stored: list[Any] = []
        self.rng = np.random.default_rng(0)

    def keep(self, value: Any) -> str:
        """Store a constant."""
        self.stored.append(numpy_helper.from_array(np.asarray(value), f"stored_{len(self.stored)}"))
        return f"stored_{len(self.stored) - 1}"

    def random(self, *shape: int) -> str:
        return self.keep(self.rng.normal(0, 0.3, shape).astype(np.float32))

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Append an operator; returns its first output."""
        names = [f"{op.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], **attributes))
        return names[0]

    def conv(self, source: str, into: int, out: int, size: int = 3, **attributes: Any) -> str:
        told = {"pads": [size // 2] * 4, **attributes}
        shape = (out, into // attributes.get("group", 1), size, size)
        return self.add("Conv", source, self.random(*shape), self.random(out), **told)

    def write(self, path: Path, *outputs: str, file_kind: str = "") -> Path:
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, made, self.stored)
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9), str(path)
        )
        return path


def original(path: Path, noisy: Array, **levels: Array) -> torch.Tensor:
    """What ONNX Runtime makes of the file as it is."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": noisy, **levels})[0])


def noise(channels: int = 3, height: int = 48, width: int = 80, count: int = 2) -> Array:
    return np.random.default_rng(1).random((count, channels, height, width), np.float32)


def as_read(model: DenoiserModel, noisy: Array, sigma: Any = 0.0) -> torch.Tensor:
    """What the network read from the file makes, sigma as a number, or one an image, or a map."""
    level = torch.as_tensor(sigma, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(noisy), level.expand(len(noisy)) if level.dim() == 0 else level)


def assert_reads_the_same(path: Path, noisy: Array) -> DenoiserModel:
    model = importers.load(path)
    torch.testing.assert_close(as_read(model, noisy), original(path, noisy), rtol=1e-4, atol=1e-5)
    assert model.blind
    assert not model.training
    return model


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("dsunet-n", {"widths": [8, 16], "encoder": [[]], "middle": [16], "decoder": [[16]], "up_width": 0}),
        ("ffdnet-gray", {"widths": [8, 12, 8]}),
        ("dncnn-25", {"widths": [8] * 3}),
    ],
)
def test_a_model_written_by_edgekit_comes_back_as_itself(name: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    model = models.create(name, **overrides).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    onnx_graph.write(model, model, tmp_path / "own.onnx")
    again = importers.load(tmp_path / "own.onnx")
    noisy, sigma = noise(model.channels), torch.tensor([0.05, 0.2])
    torch.testing.assert_close(as_read(again, noisy, sigma), as_read(model, noisy, sigma), rtol=0, atol=1e-5)
    assert (again.stride, again.halo, again.channels) == (model.stride, model.halo, model.channels)
    assert again.blind == model.blind
    assert again.macs_per_pixel() == pytest.approx(model.macs_per_pixel(), rel=2e-3)


def test_what_was_read_is_a_weight_file_like_any(tmp_path: Path) -> None:
    net = Net()
    path = net.write(tmp_path / "net.onnx", net.conv(net.add("Relu", net.conv("x", 3, 8)), 8, 3))
    model = importers.load(path)
    checkpoints.save(tmp_path / "net.safetensors", model)
    again = checkpoints.load(tmp_path / "net.safetensors")
    assert torch.equal(as_read(again, noise()), as_read(model, noise()))
    assert again.config() == model.config()
    assert again.config()["origin"] == "net.onnx"


def test_a_file_of_fixed_sizes_is_a_network_of_any(tmp_path: Path) -> None:
    def shuffled(net: Net, size: int) -> str:
        """To channels and back as exporters without the operators write it: through sizes that are constants."""
        half = size // 2
        six = net.add("Reshape", "x", net.keep(np.array([1, 3, half, 2, half, 2])))
        moved = net.add("Transpose", six, perm=[0, 1, 3, 5, 2, 4])
        deep = net.conv(net.add("Reshape", moved, net.keep(np.array([1, 12, half, half]))), 12, 12)
        back = net.add("Reshape", deep, net.keep(np.array([1, 3, 2, 2, half, half])))
        moved = net.add("Transpose", back, perm=[0, 1, 4, 2, 5, 3])
        return net.conv(net.add("Reshape", moved, net.keep(np.array([1, 3, size, size]))), 3, 3)

    small, large = Net(sizes=(1, 32, 32)), Net(sizes=(1, 80, 80))
    path = small.write(tmp_path / "small.onnx", shuffled(small, 32))
    other = large.write(tmp_path / "large.onnx", shuffled(large, 80))  # the same weights: the same seed
    noisy = noise(3, 80, 80, 1)
    torch.testing.assert_close(as_read(importers.load(path), noisy), original(other, noisy), rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_is_any_batch(tmp_path: Path) -> None:
    net = Net(sizes=(4, 32, 32))
    path = net.write(tmp_path / "net.onnx", net.conv("x", 3, 3))
    file = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    onnx.save(file, str(path))
    noisy = noise(3, 32, 32, 4)
    torch.testing.assert_close(as_read(importers.load(path), noisy), original(path, noisy), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [["n"], [1], [1, 1], ["n", 1, 1, 1]])
def test_a_level_that_is_a_number_an_image(levels: list[int | str], tmp_path: Path) -> None:
    net = Net(levels=levels, sizes=(1, "h", "w"))
    four = "sigma" if len(levels) == 4 else net.add("Reshape", "sigma", net.keep(np.array([-1, 1, 1, 1])))
    scaled = net.add("Mul", net.conv("x", 3, 8), net.add("Conv", four, net.random(8, 1, 1, 1)))
    path = net.write(tmp_path / "net.onnx", net.conv(scaled, 8, 3))
    model = importers.load(path)
    noisy = noise(count=1)
    for sigma in (0.05, 0.3):
        level = np.full([1] * len(levels), sigma, np.float32)
        torch.testing.assert_close(as_read(model, noisy, sigma), original(path, noisy, sigma=level))
    assert not model.blind
    both = as_read(model, np.repeat(noisy, 2, 0), torch.tensor([0.05, 0.3]))
    torch.testing.assert_close(both[1:], as_read(model, noisy, 0.3))


def test_a_level_that_the_file_itself_writes_over_a_map(tmp_path: Path) -> None:
    net = Net(1, levels=["n"])
    small = net.add("SpaceToDepth", "x", blocksize=2)
    size = net.add("Slice", net.add("Shape", small), *(net.keep(np.array([n])) for n in (2, 4, 0)))
    shape = net.add("Concat", net.keep(np.array([1, 1])), size, axis=0)
    maps = net.add("Expand", net.add("Reshape", "sigma", net.keep(np.array([-1, 1, 1, 1]))), shape)
    both = net.add("Concat", small, maps, axis=1)
    path = net.write(tmp_path / "net.onnx", net.add("DepthToSpace", net.conv(both, 5, 4), blocksize=2))
    noisy, sigma = noise(1), np.array([0.05, 0.3], np.float32)
    model = importers.load(path)
    torch.testing.assert_close(as_read(model, noisy, sigma), original(path, noisy, sigma=sigma))
    assert (model.stride, model.channels) == (2, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_level_that_is_a_map(channels: int, tmp_path: Path) -> None:
    net = Net(channels, levels=["n", 1, "h", "w"])
    both = net.add("Concat", "x", "sigma", axis=1)
    path = net.write(tmp_path / "net.onnx", net.conv(net.add("Relu", net.conv(both, channels + 1, 8)), 8, channels))
    model = importers.load(path)
    noisy, maps = noise(channels), noise(1)[:, :, ::-1].copy()
    torch.testing.assert_close(as_read(model, noisy, maps), original(path, noisy, sigma=maps))
    assert (model.channels, model.blind) == (channels, False)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_level_that_is_the_last_channel(channels: int, tmp_path: Path) -> None:
    net = Net(channels + 1)
    path = net.write(tmp_path / "net.onnx", net.conv(net.add("Relu", net.conv("x", channels + 1, 8)), 8, channels))
    model = importers.load(path)
    noisy, maps = noise(channels), noise(1)[:, :, ::-1].copy()
    torch.testing.assert_close(as_read(model, noisy, maps), original(path, np.concatenate([noisy, maps], 1)))
    assert (model.channels, model.blind) == (channels, False)


def test_batch_norm_is_folded_into_its_convolution(tmp_path: Path) -> None:
    net = Net()
    first = net.conv("x", 3, 8)
    spread = net.keep(net.rng.random(8, np.float32) + 0.5)
    norm = net.add("BatchNormalization", first, net.random(8), net.random(8), net.random(8), spread)
    path = net.write(tmp_path / "net.onnx", net.conv(net.add("Relu", norm), 8, 3))
    model = assert_reads_the_same(path, noise())
    assert [node["op"] for node in model.config()["nodes"]] == ["conv", "relu", "conv"]


@pytest.mark.parametrize(
    ("size", "attributes"),
    [
        (3, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        (2, {"strides": [2, 2]}),
        (4, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (3, {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
        (5, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        (5, {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        (4, {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 2}),
        (3, {"strides": [2, 2], "pads": [0, 1, 1, 0], "group": 2}),
        (3, {"strides": [2, 2], "pads": [2, 2, 2, 2], "output_padding": [1, 1], "dilations": [2, 2]}),
    ],
)
def test_a_transposed_convolution(size: int, attributes: dict[str, Any], tmp_path: Path) -> None:
    net = Net()
    small = net.conv("x", 3, 8, strides=[2, 2])
    weight = net.random(8, 6 // attributes.get("group", 1), size, size)
    large = net.add("ConvTranspose", small, weight, net.random(6), **attributes)
    path = net.write(tmp_path / "net.onnx", net.conv(large, 6, 3))
    assert assert_reads_the_same(path, noise()).stride == 2


def test_a_transposed_convolution_that_keeps_the_size(tmp_path: Path) -> None:
    net = Net()
    large = net.add("ConvTranspose", net.conv("x", 3, 8), net.random(8, 3, 3, 3), pads=[1] * 4)
    path = net.write(tmp_path / "net.onnx", large)
    assert assert_reads_the_same(path, noise()).halo == 2


def doubled(net: Net, after: str) -> str:
    """What follows a value of half the size, back to the image's."""
    scales = net.keep(np.array([1, 1, 2, 2], np.float32))
    return net.add("Resize", after, "", scales, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


# Operator and its settings -> what stands between a convolution that makes 8 channels and one that reads 8.
MIDDLES: dict[str, Callable[[Net, str], str]] = {
    "LeakyRelu": lambda net, x: net.add("LeakyRelu", x, alpha=0.3),
    "LeakyRelu as it comes": lambda net, x: net.add("LeakyRelu", x),
    "Elu": lambda net, x: net.add("Elu", x, alpha=0.7),
    "PRelu of one slope": lambda net, x: net.add("PRelu", x, net.random(1)),
    "PRelu of a slope a channel": lambda net, x: net.add("PRelu", x, net.random(8, 1, 1)),
    "Sigmoid": lambda net, x: net.add("Sigmoid", x),
    "Tanh": lambda net, x: net.add("Tanh", x),
    "Clip": lambda net, x: net.add("Clip", x, net.keep(np.float32(-0.1)), net.keep(np.float32(0.2))),
    "Clip from below": lambda net, x: net.add("Clip", x, net.keep(np.float32(0.1))),
    "Clip from above": lambda net, x: net.add("Clip", x, "", net.keep(np.float32(0.1))),
    "arithmetic": lambda net, x: net.add(
        "Div",
        net.add("Sub", net.random(1, 8, 1, 1), net.add("Mul", net.add("Add", x, net.random(8, 1, 1)), net.random(1))),
        net.keep(np.float32(0.5)),
    ),
    "Concat and Slice": lambda net, x: net.add(
        "Slice",
        net.add("Concat", x, net.add("Relu", x), axis=-3),
        *(net.keep(np.array([n])) for n in (5, -3, 1)),
    ),
    "Slice of the last": lambda net, x: net.add(
        "Concat",
        *(net.add("Slice", x, *(net.keep(np.array([n])) for n in ends)) for ends in ((4, 2**62, 1), (0, 4, -3))),
        axis=1,
    ),
    "Identity, Dropout, Cast": lambda net, x: net.add(
        "Cast", net.add("Dropout", net.add("Identity", net.add("Relu", x))), to=TensorProto.FLOAT
    ),
    "MaxPool": lambda net, x: doubled(net, net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])),
    "MaxPool with padding": lambda net, x: net.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4),
    "MaxPool, same": lambda net, x: doubled(
        net, net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")
    ),
    "AveragePool": lambda net, x: doubled(net, net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])),
    "AveragePool that counts its padding": lambda net, x: net.add(
        "AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    ),
    "Conv, same": lambda net, x: doubled(
        net, net.add("Conv", x, net.random(8, 8, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER")
    ),
    "Conv of uneven padding, groups and dilation": lambda net, x: net.add(
        "Conv", x, net.random(8, 4, 3, 2), pads=[3, 1, 1, 0], group=2, dilations=[2, 1]
    ),
    "Pad of two axes": lambda net, x: net.add(
        "Conv",
        net.add("Pad", x, net.keep(np.array([2, 1, 0, 1])), "", net.keep(np.array([-1, 2]))),
        net.random(8, 8, 3, 3),
    ),
    "Resize, nearest": lambda net, x: net.add(
        "AveragePool",
        net.add("Resize", x, "", net.keep(np.array([1, 1, 3, 2], np.float32))),
        kernel_shape=[3, 2],
        strides=[3, 2],
    ),
    "Resize, linear": lambda net, x: net.add(
        "Resize",
        net.add("MaxPool", x, kernel_shape=[2, 4], strides=[2, 4]),
        "",
        net.keep(np.array([1, 1, 2, 4], np.float32)),
        mode="linear",
    ),
    "DepthToSpace, depth first": lambda net, x: net.add(
        "SpaceToDepth", net.add("DepthToSpace", x, blocksize=2, mode="DCR"), blocksize=2
    ),
    "DepthToSpace, channel first": lambda net, x: net.add(
        "SpaceToDepth", net.add("DepthToSpace", x, blocksize=2, mode="CRD"), blocksize=2
    ),
    **{
        f"Pad, {mode}": lambda net, x, mode=mode: net.add(  # type: ignore[misc]
            "Conv", net.add("Pad", x, net.keep(np.array([0, 0, 2, 0, 0, 0, 1, 3])), mode=mode), net.random(8, 8, 4, 4)
        )
        for mode in ("constant", "reflect", "edge")
    },
}


@pytest.mark.parametrize("name", MIDDLES)
def test_an_operator_between_two_convolutions(name: str, tmp_path: Path) -> None:
    net = Net()
    path = net.write(tmp_path / "net.onnx", net.conv(MIDDLES[name](net, net.conv("x", 3, 8)), 8, 3))
    assert_reads_the_same(path, noise())


def test_hard_swish_stays_one_operator_though_the_runtime_takes_it_apart(tmp_path: Path) -> None:
    net = Net()
    gate = net.add("HardSigmoid", net.conv("x", 3, 8), alpha=1 / 6)
    swish = net.add("Mul", gate, "conv_0_0")
    path = net.write(tmp_path / "net.onnx", net.conv(net.add("HardSwish", swish), 8, 3))
    nodes = assert_reads_the_same(path, noise()).config()["nodes"]
    assert [node["op"] for node in nodes] == ["conv", "hardswish", "hardswish", "conv"]


def test_old_files_keep_settings_beside_the_operator(tmp_path: Path) -> None:
    net = Net(opset=9)
    x = net.add("Clip", net.conv("x", 3, 8), min=-0.1, max=0.2)
    x = net.add("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect")
    x = net.add("MaxPool", net.conv(x, 8, 8, pads=[0] * 4), kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Upsample", x, net.keep(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    x = net.add("Slice", x, starts=[2], ends=[8], axes=[1])
    path = net.write(tmp_path / "net.onnx", net.conv(x, 6, 3))
    assert_reads_the_same(path, noise())


def test_names_are_the_files_as_far_as_they_can_be(tmp_path: Path) -> None:
    net = Net()
    net.conv("x", 3, 4), net.conv("conv_0_0", 4, 4), net.conv("conv_1_0", 4, 4), net.conv("conv_2_0", 4, 4)
    last = net.conv("conv_3_0", 4, 3)
    # What a module may not be called: with dots, with a digit first, like another, like a method of modules.
    for made, name in zip(net.nodes, ("/enc.0/Conv", "0/conv", "enc/0/Conv", "values", "sigma"), strict=True):
        made.name = name
    model = importers.load(net.write(tmp_path / "net.onnx", last))
    names = [node["name"] for node in model.config()["nodes"]]
    assert names == ["enc_0_Conv", "n0_conv", "enc_0_Conv_2", "values_2", "sigma_2"]


def test_which_files_are_taken(tmp_path: Path) -> None:
    assert importers.accepts("net.onnx")
    for other in (tmp_path, tmp_path / "none", "net.safetensors"):
        assert not importers.accepts(other)
        with pytest.raises(
            CheckpointError,
            match="expected an .onnx, .keras, .h5 or .pt2 file, a SavedModel folder, or FILE.py:FACTORY",
        ):
            importers.load(other)


def test_a_network_that_computes_something_else_is_not_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    path = net.write(tmp_path / "net.onnx", net.conv(net.add("Elu", net.conv("x", 3, 8)), 8, 3))
    for slip in (lambda node, x: 0.99 * x, lambda node, x: x * float("nan")):
        monkeypatch.setitem(OPERATORS, "elu", slip)
        with pytest.raises(CheckpointError, match=r"as read it differs from the original by .* \(allowed 0.0001\)"):
            importers.load(path)


# What is wrong -> how to write it, and what the error says.
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {}


def refused(told: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def note(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
        REFUSED[write.__name__] = (write, told)
        return write

    return note


@refused(r"operator Softplus: it cannot be taken over. What can be read: add, avg_pool, clip, .*conv_transpose")
def an_operator_without_an_equal(path: Path) -> None:
    net = Net()
    net.write(path, net.conv(net.add("Softplus", net.conv("x", 3, 8)), 8, 3))


@refused(r"GlobalAveragePool: it sees the whole image at once")
def attention(path: Path) -> None:
    net = Net()
    x = net.conv("x", 3, 8)
    net.write(path, net.conv(net.add("Mul", x, net.conv(net.add("GlobalAveragePool", x), 8, 8, 1)), 8, 3))


@refused(r"operator (Flatten|Reshape|Gemm)")
def a_classifier(path: Path) -> None:
    net = Net(sizes=(1, 8, 8))
    flat = net.add("Gemm", net.add("Flatten", "x"), net.random(192, 192), net.random(192))
    net.write(path, net.add("Reshape", flat, net.keep(np.array([1, 3, 8, 8]))))


@refused(r"has 2 outputs: expected one, the clean image")
def two_outputs(path: Path) -> None:
    net = Net()
    net.write(path, net.conv("x", 3, 3), net.conv("x", 3, 3))


@refused(r"input x has 5 channels: expected \[N, C, H, W\] with C 1 or 3, or 2 or 4")
def five_channels(path: Path) -> None:
    net = Net(5)
    net.write(path, net.conv("x", 5, 5))


@refused(
    r"has the inputs x \['n', 3, 'h', 'w'\], sigma \['n', 2, 2\]: expected the noise level as \[N\] or \[N, 1, H, W\]"
)
def a_level_of_another_rank(path: Path) -> None:
    net = Net(levels=["n", 2, 2])
    net.write(path, net.add("Mul", net.conv("x", 3, 3), net.add("ReduceMean", "sigma")))


@refused(r"expected an image \[N, C, H, W\] and at most a noise level")
def a_flat_input(path: Path) -> None:
    net = Net()
    net.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])]
    net.write(path, net.add("Relu", "x"))


@refused(r"an image 64x64x3 comes out as 60x60x3: a denoiser keeps the size; pad its convolutions")
def no_padding(path: Path) -> None:
    net = Net()
    net.write(path, net.conv(net.conv("x", 3, 8, pads=[0] * 4), 8, 3, pads=[0] * 4))


@refused(r"1/2 times the image: a denoiser gives an image of the size")
def half_the_size(path: Path) -> None:
    net = Net()
    net.write(path, net.conv("x", 3, 3, strides=[2, 2]))


@refused(r"comes out as 64x64x8: ")
def more_channels(path: Path) -> None:
    net = Net()
    net.write(path, net.conv("x", 3, 8))


@refused(r"takes images of 28x28, which is no multiple of its strides' 8")
def a_fixed_size_that_its_strides_do_not_divide(path: Path) -> None:
    net = Net(sizes=(1, 28, 28))
    x = "x"
    for _ in range(3):
        x = net.conv(x, 3, 3, strides=[2, 2])  # 14, 7, 4
    x = net.conv(doubled(net, doubled(net, x)), 3, 3, pads=[0] * 4)  # 16, and 14
    net.write(path, net.conv(doubled(net, x), 3, 3))


@refused(r"operator Resize: .* whole factors, nearest or linear are read")
def a_resize_by_a_part(path: Path) -> None:
    net = Net()
    x = net.add("Resize", "x", "", net.keep(np.array([1, 1, 1.5, 1.5], np.float32)))
    net.write(path, net.conv(x, 3, 3))


@refused(r"operator AveragePool: padding that does not count")
def a_mean_without_its_padding(path: Path) -> None:
    net = Net()
    net.write(path, net.conv(net.add("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4), 3, 3))


@refused(r"operator Pad: .* zeros, reflection or the edge around height and width are read")
def a_frame_of_ones(path: Path) -> None:
    net = Net()
    x = net.add("Pad", "x", net.keep(np.array([0, 0, 1, 1, 0, 0, 1, 1])), net.keep(np.float32(1)))
    net.write(path, net.conv(x, 3, 3, pads=[0] * 4))


@refused(r"operator PRelu: .* one number a channel")
def a_slope_a_pixel(path: Path) -> None:
    net = Net(sizes=(1, 8, 8))
    net.write(path, net.conv(net.add("PRelu", "x", net.random(3, 8, 8)), 3, 3))


@refused(r"operator arithmetic: constant \w+ has shape \[3, 8, 8\]: one number a channel is allowed")
def a_number_a_pixel(path: Path) -> None:
    net = Net(sizes=(1, 8, 8))
    net.write(path, net.conv(net.add("Add", net.add("Relu", "x"), net.random(3, 8, 8)), 3, 3))


@refused(r"operator Slice: a run of channels is read")
def a_crop(path: Path) -> None:
    net = Net()
    x = net.add(
        "Slice", net.conv("x", 3, 3, pads=[2] * 4), *(net.keep(np.array(n)) for n in ([1, 1], [-1, -1], [2, 3]))
    )
    net.write(path, net.conv(x, 3, 3))


@refused(r"operator Transpose: only those that move pixels")
def height_for_width(path: Path) -> None:
    net = Net(sizes=(1, 16, 16))
    net.write(path, net.conv(net.add("Transpose", "x", perm=[0, 1, 3, 2]), 3, 3))


@refused(r"operator Conv: its setting \w+ is computed while it runs")
def weights_that_are_computed(path: Path) -> None:
    net = Net(1, levels=["n"])
    net.write(path, net.add("Conv", "x", net.add("Reshape", "sigma", net.keep(np.array([1, 1, 1, 1])))))


@refused(r"layers\.conv_0_0\.weight hold NaN or infinity: export the network again")
def a_weight_that_is_nan(path: Path) -> None:
    net = Net()
    weight = np.zeros((3, 3, 3, 3), np.float32)
    weight[0, 0, 0, 0] = np.nan
    net.write(path, net.add("Conv", "x", net.keep(weight), pads=[1] * 4))


@refused(r"strides \[2, 1\]: the same along height and width")
def a_transposed_convolution_of_two_strides(path: Path) -> None:
    net = Net()
    x = net.conv("x", 3, 8, strides=[2, 1])
    net.write(path, net.add("ConvTranspose", x, net.random(8, 3, 2, 1), strides=[2, 1]))


@refused(r"conv_transpose: of n pixels it makes 2n-1: exactly 2n is read")
def a_transposed_convolution_that_loses_a_pixel(path: Path) -> None:
    net = Net()
    x = net.add(
        "ConvTranspose", net.conv("x", 3, 8, strides=[2, 2]), net.random(8, 8, 3, 3), strides=[2, 2], pads=[1] * 4
    )
    net.write(path, net.conv(net.add("Pad", x, net.keep(np.array([0, 0, 0, 0, 0, 0, 1, 1]))), 8, 3))


@refused(r"input x is not float32")
def half_precision(path: Path) -> None:
    net = Net()
    net.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 3, "h", "w"])]
    net.write(path, net.conv(net.add("Cast", "x", to=TensorProto.FLOAT), 3, 3))


@refused(r"that makes hardsigmoid_\w+: it is no image-like tensor|operator HardSigmoid")
def half_of_a_hard_swish(path: Path) -> None:
    net = Net()
    net.write(path, net.conv(net.add("HardSigmoid", "x", alpha=1 / 6), 3, 3))


@refused(r"is no whole ONNX file")
def a_text(path: Path) -> None:
    path.write_text("not a network")


@refused(r"is no whole ONNX file")
def nothing(path: Path) -> None:
    path.write_bytes(b"")


@refused(r"is no whole ONNX file|ONNX Runtime cannot open it")
def half_a_file(path: Path) -> None:
    net = Net()
    net.write(path, net.conv("x", 3, 3))
    path.write_bytes(path.read_bytes()[:200])


@refused(r"no such file")
def no_file(path: Path) -> None:
    pass


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_said(what: str, tmp_path: Path) -> None:
    write, told = REFUSED[what]
    path = tmp_path / "net.onnx"
    write(path)
    with pytest.raises(CheckpointError, match=told) as raised:
        importers.load(path)
    assert str(path) in str(raised.value)


def test_without_onnx_the_error_names_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"needs onnxruntime, .*: pip install 'edgekit\[onnx,onnxruntime\]'"):
        importers.load(tmp_path / "net.onnx")
