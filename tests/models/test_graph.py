"""A network as a list of operators: each operator computes what its name says, and the list rebuilds the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nodes import Node, conv, model, node, pool, spread
from numpy.typing import NDArray
from safetensors.torch import save_file

from edgekit.errors import CheckpointError, ShapeError, UnknownNameError
from edgekit.models import checkpoints, registry
from edgekit.models.complexity import layer_macs
from edgekit.models.graph import OPERATORS, GraphModel

Array = NDArray[np.float64]


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 3, shape)


def repeated(x: Array, rows: int, columns: int) -> Array:
    return x.repeat(rows, 2).repeat(columns, 3)


def halfway(x: Array, axis: int) -> Array:
    """Twice as long: each new pixel is three quarters of the nearest and one of the next, the edge standing still."""
    x = np.moveaxis(x, axis, -1)
    before, after = np.concatenate([x[..., :1], x[..., :-1]], -1), np.concatenate([x[..., 1:], x[..., -1:]], -1)
    both = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], -1)
    return np.moveaxis(both.reshape(*x.shape[:-1], -1), -1, axis)


def pooled(x: Array, size: int, step: int, how: Callable[[Array], Any]) -> Array:
    rows, columns = ((side - size) // step + 1 for side in x.shape[2:])
    cells = [[x[..., r * step : r * step + size, c * step : c * step + size] for c in range(columns)]
             for r in range(rows)]  # fmt: skip
    return np.stack([np.stack([how(cell) for cell in row], -1) for row in cells], -2)


def scattered(x: Array, block: int, channel_first: bool) -> Array:
    """Channels to pixels, one pixel at a time."""
    count, channels, height, width = x.shape
    out = np.zeros((count, channels // block**2, height * block, width * block))
    for c, r, k in np.ndindex(out.shape[1], block, block):
        place = c * block**2 + r * block + k if channel_first else (r * block + k) * out.shape[1] + c
        out[:, c, r::block, k::block] = x[:, place]
    return out


def around(x: Array, pad: list[int], **settings: Any) -> Array:
    left, right, top, bottom = pad
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), **settings)


# Operator -> cases of its settings, the shapes of what it is given, and the same in numpy.
SMALL = (2, 3, 4, 6)
DEEP = (2, 12, 2, 3)
LOPSIDED = [1, 0, 2, 1]
Case = tuple[dict[str, Any], list[tuple[int, ...]], Callable[..., Array]]
CASES: dict[str, list[Case]] = {
    "relu": [({}, [SMALL], lambda x: np.maximum(x, 0))],
    "leaky_relu": [({"slope": 0.2}, [SMALL], lambda x: np.where(x < 0, 0.2 * x, x))],
    "elu": [({"alpha": 0.7}, [SMALL], lambda x: np.where(x < 0, 0.7 * (np.exp(x) - 1), x))],
    "sigmoid": [({}, [SMALL], lambda x: 1 / (1 + np.exp(-x)))],
    "tanh": [({}, [SMALL], np.tanh)],
    "hardswish": [({}, [SMALL], lambda x: x * np.clip(x + 3, 0, 6) / 6)],
    "clip": [({"low": -1.0, "high": 2.0}, [SMALL], lambda x: np.minimum(np.maximum(x, -1), 2))],
    "add": [({}, [SMALL, (1, 3, 1, 1)], lambda a, b: a + b)],
    "sub": [({}, [SMALL, SMALL], lambda a, b: a - b), ({}, [(), SMALL], lambda a, b: a - b)],
    "mul": [({}, [SMALL, SMALL], lambda a, b: a * b)],
    "div": [({}, [SMALL, (1, 3, 1, 1)], lambda a, b: a / b)],
    "expand": [({}, [(2, 1, 1, 1), DEEP], lambda a, b: np.broadcast_to(a, (2, 1, 2, 3)))],
    "concat": [({}, [SMALL, (2, 1, 4, 6), SMALL], lambda *parts: np.concatenate(parts, 1))],
    "slice": [({"start": 2, "stop": 5}, [DEEP], lambda x: x[:, [2, 3, 4]])],
    "max_pool": [
        ({"kernel": [2, 2], "stride": [2, 2], "pad": [0] * 4}, [SMALL], lambda x: pooled(x, 2, 2, top)),
        (
            {"kernel": [3, 3], "stride": [1, 1], "pad": LOPSIDED},
            [SMALL],
            lambda x: pooled(around(x - 100, LOPSIDED, constant_values=-1e9), 3, 1, top) + 100,
        ),
    ],
    "avg_pool": [
        (
            {"kernel": [3, 3], "stride": [1, 1], "pad": LOPSIDED},
            [SMALL],
            lambda x: pooled(around(x, LOPSIDED), 3, 1, lambda cell: cell.mean((2, 3))),
        )
    ],
    "upsample": [
        ({"factor": [2, 3], "mode": "nearest"}, [SMALL], lambda x: repeated(x, 2, 3)),
        ({"factor": [2, 2], "mode": "bilinear"}, [SMALL], lambda x: halfway(halfway(x, 2), 3)),
        ({"factor": [2, 1], "mode": "bilinear"}, [SMALL], lambda x: halfway(x, 2)),
    ],
    "depth_to_space": [
        ({"block": 2, "order": "channel"}, [DEEP], lambda x: scattered(x, 2, True)),
        ({"block": 2, "order": "depth"}, [DEEP], lambda x: scattered(x, 2, False)),
    ],
    "space_to_depth": [
        ({"block": 2, "order": "channel"}, [SMALL], lambda x: gathered(x, 2, True)),
        ({"block": 2, "order": "depth"}, [SMALL], lambda x: gathered(x, 2, False)),
    ],
    "pad": [
        ({"pad": LOPSIDED, "mode": "constant"}, [SMALL], lambda x: around(x, LOPSIDED)),
        ({"pad": LOPSIDED, "mode": "reflect"}, [SMALL], lambda x: around(x, LOPSIDED, mode="reflect")),
        ({"pad": LOPSIDED, "mode": "replicate"}, [SMALL], lambda x: around(x, LOPSIDED, mode="edge")),
    ],
}


def top(cell: Array) -> Any:
    return cell.max((2, 3))


def gathered(x: Array, block: int, channel_first: bool) -> Array:
    """Pixels to channels, one channel at a time."""
    count, channels, height, width = x.shape
    out = np.zeros((count, channels * block**2, height // block, width // block))
    for c, r, k in np.ndindex(channels, block, block):
        place = c * block**2 + r * block + k if channel_first else (r * block + k) * channels + c
        out[:, place] = x[:, c, r::block, k::block]
    return out


def test_every_operator_has_a_case() -> None:
    assert CASES.keys() == OPERATORS.keys()


@pytest.mark.parametrize(
    ("op", "case"),
    [pytest.param(op, case, id=f"{op}-{i}") for op, some in CASES.items() for i, case in enumerate(some)],
)
def test_an_operator_computes_what_numpy_does(op: str, case: Case) -> None:
    settings, shapes, expected = case
    inputs = [values(*shape, seed=i) for i, shape in enumerate(shapes)]
    result = OPERATORS[op](node(op, "x", **settings), *(torch.tensor(x) for x in inputs))
    np.testing.assert_allclose(result.numpy(), expected(*inputs), rtol=0, atol=1e-9)


def run(nodes: list[Node], noisy: torch.Tensor, level: str = "none", sigma: Any = None) -> tuple[GraphModel, Any]:
    made = model(nodes, noisy.shape[1], level)
    with torch.no_grad():
        return made, made(noisy, torch.zeros(len(noisy)) if sigma is None else sigma)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": False, "size": 5},
        {"dilation": [2, 3], "pad": [3, 3, 2, 2]},
        {"groups": 3, "kernel": [1, 3], "pad": [1, 1, 0, 0]},
        {"kernel": [2, 4], "pad": [2, 1, 0, 1]},
    ],
)
def test_a_convolution_is_torchs_after_its_padding(settings: dict[str, Any]) -> None:
    noisy = torch.rand(2, 3, 8, 12)
    made, result = run([conv("a", "noisy", 3, 6, **settings), conv("b", "a", 6, 3, 1)], noisy)
    first, last = made.layers["a"], made.layers["b"]
    assert (first.bias is None) == (settings.get("bias") is False)
    told = made.nodes[0]
    inner = F.conv2d(F.pad(noisy, told["pad"]), first.weight, first.bias, 1, 0, tuple(told["dilation"]), told["groups"])
    torch.testing.assert_close(result, F.conv2d(inner, last.weight, last.bias))


@pytest.mark.parametrize(
    ("settings", "cut"),
    [
        ({}, [1, 1, 1, 1]),
        ({"size": 2}, [0, 0, 0, 0]),
        ({"size": 3, "pad": [1] * 4, "more": [1, 1]}, [1, 0, 1, 0]),
        ({"size": 3, "pad": [0] * 4, "trim": [0, 1, 0, 1]}, [0, 1, 0, 1]),
        ({"size": 3, "pad": [0] * 4, "trim": [1, 0, 0, 1], "groups": 2}, [1, 0, 0, 1]),
        ({"size": 3, "pad": [2] * 4, "more": [1, 1], "dilation": [2, 2]}, [2, 1, 2, 1]),
    ],
)
def test_a_transposed_convolution_is_torchs_cut_to_size(settings: dict[str, Any], cut: list[int]) -> None:
    noisy = torch.rand(2, 3, 8, 12)
    nodes = [
        conv("a", "noisy", 3, 8, 2, stride=[2, 2], pad=[0] * 4),
        spread("b", "a", 8, 4, **settings),
        conv("c", "b", 4, 3, 1),
    ]
    made, result = run(nodes, noisy)
    a, b, c = (made.layers[name] for name in "abc")
    groups, dilation = settings.get("groups", 1), settings.get("dilation", [1, 1])
    # Everything that the small image spreads to, and a border of zeros in case more is asked for.
    whole = F.conv_transpose2d(F.conv2d(noisy, a.weight, a.bias, 2), b.weight, None, 2, 0, 0, groups, tuple(dilation))
    whole = F.pad(whole, (0, 1, 0, 1))[:, :, cut[2] : cut[2] + 8, cut[0] : cut[0] + 12]
    torch.testing.assert_close(result, F.conv2d(whole + b.bias[:, None, None], c.weight, c.bias))


@pytest.mark.parametrize("slopes", [1, 3])
def test_prelu_has_one_slope_or_one_a_channel(slopes: int) -> None:
    noisy = torch.randn(2, 3, 4, 4)
    made, result = run([node("prelu", "a", "noisy", slopes=slopes)], noisy)
    weight = made.layers["a"].weight.reshape(1, slopes, 1, 1)
    torch.testing.assert_close(result, torch.where(noisy < 0, weight * noisy, noisy))


def test_inputs_come_in_their_order_and_any_earlier_value_can_be_one() -> None:
    noisy = torch.rand(1, 3, 4, 4)
    nodes = [
        node("const", "k", shape=[1, 3, 1, 1]),
        node("sub", "a", "k", "noisy"),
        node("sub", "b", "a", "k"),
        node("sub", "c", "b", "a"),
        node("add", "d", "c", "noisy"),
        node("mul", "e", "d", "b"),
    ]
    made, result = run(nodes, noisy)
    k = made.constants["k"]
    torch.testing.assert_close(result, (-k + noisy) * -noisy)


def everything(level: str = "none") -> list[Node]:
    """A network with each kind of layer, whose channels differ from place to place."""
    into = {"none": 3, "channel": 4, "map": 3, "scalar": 3}[level]
    head = conv("head", "noisy", into, 8, 2, stride=[2, 2], pad=[0] * 4)
    return [
        head,
        node("prelu", "bend", "head", slopes=8),
        conv("each", "bend", 8, 8, groups=8, pad=[2, 0, 1, 1]),
        node("const", "shift", shape=[1, 8, 1, 1]),
        node("add", "moved", "each", "shift"),
        spread("up", "moved", 8, 6, size=3, pad=[0] * 4, trim=[0, 1, 0, 1], bias=False),
        conv("tail", "up", 6, 3),
        node("sub", "out", "noisy", "tail") if level == "none" else node("relu", "out", "tail"),
    ]


def test_config_rebuilds_the_network() -> None:
    made = model(everything())
    again = registry.build(made.arch, json.loads(json.dumps(made.config())))
    again.load_state_dict(made.state_dict())
    noisy = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        assert torch.equal(again(noisy, torch.zeros(1)), made(noisy, torch.zeros(1)))
    assert again.config() == made.config()
    assert again.blind


def test_config_tells_the_widths_that_pruning_left() -> None:
    made = model(everything())
    narrow = made.layers["each"]
    narrow.in_channels = narrow.out_channels = narrow.groups = 4
    made.layers["bend"].num_parameters = 5
    made.constants["shift"] = torch.nn.Parameter(torch.zeros(1, 7, 1, 1))
    told = {n["name"]: n for n in made.config()["nodes"]}
    assert [told["each"][key] for key in ("in", "out", "groups")] == [4, 4, 4]
    assert told["bend"]["slopes"] == 5
    assert told["shift"]["shape"] == [1, 7, 1, 1]
    assert told["up"]["in"] == 8


def test_a_weight_file_comes_back_as_the_same_network(tmp_path: Path) -> None:
    made = model(everything())
    checkpoints.save(tmp_path / "own.safetensors", made)
    again = checkpoints.load(tmp_path / "own.safetensors")
    noisy = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        assert torch.equal(again(noisy, torch.zeros(1)), made(noisy, torch.zeros(1)))
    assert again.config() == made.config()
    assert isinstance(again, GraphModel)
    assert again.origin == "a test"


def test_a_header_whose_operators_make_no_network_is_refused(tmp_path: Path) -> None:
    made = model(everything())
    path = tmp_path / "own.safetensors"
    config = made.config()
    for damaged in (
        [{"op": "conv"}],
        [*config["nodes"], node("warp", "w", "out")],
        [*config["nodes"], node("relu", "w", "nowhere")],
        [*config["nodes"], node("depth_to_space", "w", "out", block=0, order="depth")],
        ["conv"],
    ):
        header = {"arch": "graph", "config": json.dumps({**config, "nodes": damaged})}
        save_file(dict(made.state_dict()), path, header)
        with pytest.raises(CheckpointError, match="its header does not describe a model"):
            checkpoints.load(path)


def test_an_operator_that_does_not_exist_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown operator 'sigmoids': expected one of add, .*conv_transpose"):
        model([node("sigmoids", "a", "noisy")])


def test_a_scalar_level_is_one_number_an_image() -> None:
    noisy, sigma = torch.rand(2, 3, 4, 4), torch.tensor([0.1, 0.2])
    made, result = run([node("mul", "a", "noisy", "sigma")], noisy, "scalar", sigma)
    torch.testing.assert_close(result, noisy * sigma[:, None, None, None])
    assert not made.blind


def test_a_scalar_level_is_written_over_a_map_of_any_size() -> None:
    noisy, sigma = torch.rand(2, 1, 4, 6), torch.tensor([0.1, 0.2])
    nodes = [
        node("space_to_depth", "small", "noisy", block=2, order="channel"),
        node("expand", "level", "sigma", "small"),
        node("concat", "both", "small", "level"),
        conv("a", "both", 5, 4, 1),
        node("depth_to_space", "out", "a", block=2, order="channel"),
    ]
    made, result = run(nodes, noisy, "scalar", sigma)
    small = F.pixel_unshuffle(noisy, 2)
    both = torch.cat((small, sigma[:, None, None, None].expand(2, 1, 2, 3)), 1)
    expected = F.pixel_shuffle(F.conv2d(both, made.layers["a"].weight, made.layers["a"].bias), 2)
    torch.testing.assert_close(result, expected)


def test_a_scalar_level_takes_no_map() -> None:
    made = model([node("mul", "a", "noisy", "sigma")], level="scalar")
    with pytest.raises(ShapeError, match=r"sigma map .*expected \[N\]"):
        made(torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4))


@pytest.mark.parametrize("told", ["map", "channel"])
def test_a_map_is_a_number_a_pixel_and_a_number_an_image_is_written_over_it(told: str) -> None:
    noisy, maps = torch.rand(2, 3, 4, 6), torch.rand(2, 1, 4, 6)
    joined = [node("concat", "both", "noisy", "sigma")] if told == "map" else []
    nodes = [*joined, conv("a", "both" if joined else "noisy", 4, 3)]
    made, result = run(nodes, noisy, told, maps)
    layer = made.layers["a"]
    torch.testing.assert_close(
        result, F.conv2d(torch.cat((noisy, maps), 1), layer.weight, layer.bias, padding=1), rtol=0, atol=1e-6
    )
    sigma = torch.tensor([0.1, 0.2])
    with torch.no_grad():
        flat = made(noisy, sigma)
        assert torch.equal(flat, made(noisy, sigma[:, None, None, None].expand(2, 1, 4, 6)))
    assert not torch.equal(flat, result)


def test_one_level_stands_for_a_whole_batch() -> None:
    noisy = torch.rand(2, 3, 4, 4)
    made = model([node("concat", "both", "noisy", "sigma"), conv("a", "both", 4, 3)], level="map")
    with torch.no_grad():
        assert torch.equal(made(noisy, torch.tensor([0.1])), made(noisy, torch.tensor([0.1, 0.1])))


def test_a_network_without_a_level_ignores_it() -> None:
    made = model(everything())
    noisy = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(made(noisy, torch.zeros(1)), made(noisy, torch.ones(1)))
    assert made.blind


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_an_image_is_gray_or_color(channels: int) -> None:
    with pytest.raises(ShapeError, match=rf"the image has {channels} channels: expected 1 \(gray\) or 3 \(RGB\)"):
        GraphModel(channels=channels, nodes=[conv("a", "noisy", channels, channels)], level="none")


def test_a_level_of_another_kind_is_named() -> None:
    with pytest.raises(ShapeError, match="level 'vector': expected one of none, scalar, map, channel"):
        GraphModel(channels=3, nodes=[conv("a", "noisy", 3, 3)], level="vector")


def test_a_size_that_does_not_fit_is_named() -> None:
    made = model(everything())
    with pytest.raises(ShapeError, match="noisy is 8x9: .* multiples of 2"):
        made(torch.rand(1, 3, 8, 9), torch.zeros(1))
    with pytest.raises(ShapeError, match=r"expects \[N, 3, H, W\]"):
        made(torch.rand(1, 1, 8, 8), torch.zeros(1))


def test_a_transposed_convolution_counts_where_it_reads() -> None:
    nodes = [conv("a", "noisy", 3, 8, 2, stride=[2, 2], pad=[0] * 4), spread("b", "a", 8, 3)]
    made = model(nodes)
    # 16x16 small pixels, each multiplied by every weight.
    assert layer_macs(made, 32) == [("layers.a", 3 * 8 * 4 * 256), ("layers.b", 8 * 3 * 16 * 256)]
    assert made.macs_per_pixel() == pytest.approx(3 * 8 + 8 * 3 * 4)


def test_a_pool_and_its_upsampling_keep_the_size() -> None:
    noisy = torch.rand(1, 1, 4, 4)
    nodes = [pool("max_pool", "a", "noisy"), node("upsample", "b", "a", factor=[2, 2], mode="nearest")]
    _, result = run(nodes, noisy)
    for r, c in np.ndindex(2, 2):
        cell = (slice(None), slice(None), slice(2 * r, 2 * r + 2), slice(2 * c, 2 * c + 2))
        assert (result[cell] == noisy[cell].max()).all()
