"""Every operator that a user's network may hold: what stands around it is integers all the same, on each target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import WIDTH, Node, SmoothBatches, conv, node, smooth_tiles

from edgekit.compress.quantize import quantize
from edgekit.models.graph import GraphModel
from edgekit.recipe import QuantizeSettings
from edgekit.targets import registry, tflite_file

POOL: Node = {"kernel": [2, 2], "stride": [2, 2], "pad": [0] * 4}


def chain(*operators: list[Node]) -> list[Node]:
    """Each block reads "last", what stands before it, and a convolution follows it; names are given here."""
    nodes = [{**conv("noisy", 3), "name": "head"}]
    for number, block in enumerate(operators):
        last = nodes[-1]["name"]
        for place, told in enumerate(block):
            inputs = [last if source == "last" else f"x{number}_{source}" if source.isdigit() else source
                      for source in told["inputs"]]  # fmt: skip
            nodes.append({**told, "inputs": inputs, "name": f"x{number}_{place}"})
        width = {"concat": 2 * WIDTH, "mul": WIDTH // 2}.get(block[-1]["op"], WIDTH)
        nodes.append({**conv(nodes[-1]["name"], width), "name": f"conv{number}"})
    nodes.append({**conv(nodes[-1]["name"], out=3), "name": "tail"})
    return [*nodes, {**node("sub", "noisy", "tail"), "name": "out"}]


# Several operators to a graph, because what takes time is one conversion each.
GRAPHS: dict[str, list[Node]] = {
    "curves": chain(
        [node("relu", "last")],
        [node("leaky_relu", "last", slope=0.1)],
        [node("prelu", "last", slopes=WIDTH)],
        [node("clip", "last", low=0.0, high=6.0)],
        [node("clip", "last", low=-0.5, high=0.5)],
        [node("sigmoid", "last")],
        [node("tanh", "last")],
        [node("hardswish", "last")],
        # One behind another: no convolution says what is integers between them.
        [
            node("leaky_relu", "last", slope=0.1),
            node("hardswish", "0"),
            node("max_pool", "1", **POOL),
            node("relu", "2"),
            node("upsample", "3", factor=[2, 2], mode="nearest"),
            node("clip", "4", low=0.1, high=0.9),
            node("tanh", "5"),
            node("sigmoid", "6"),
        ],
    ),
    "places": chain(
        [
            node("max_pool", "last", **POOL),
            node("clip", "0", low=-1.0, high=1.0),
            node("upsample", "1", factor=[2, 2], mode="nearest"),
        ],
        [node("avg_pool", "last", **POOL), node("upsample", "0", factor=[2, 2], mode="bilinear")],
        [
            node("pad", "last", pad=[1, 1, 1, 1], mode="constant"),
            node("max_pool", "0", **{**POOL, "kernel": [3, 3], "stride": [1, 1]}),
        ],
        # Padding of its own: none of it may be seen by a range, -inf least of all.
        [node("max_pool", "last", kernel=[3, 3], stride=[1, 1], pad=[1, 1, 1, 1])],
        [node("max_pool", "last", kernel=[2, 2], stride=[1, 1], pad=[0, 1, 0, 1])],
        [node("relu", "last"), node("concat", "last", "0")],
        [node("slice", "last", start=0, stop=4), node("slice", "last", start=4, stop=8), node("mul", "0", "1")],
        [
            node("depth_to_space", "last", block=2, order="depth"),
            node("space_to_depth", "0", block=2, order="depth"),
        ],
        [node("const", shape=[1, WIDTH, 1, 1]), node("add", "last", "0")],
    ),
}
# The converter writes PReLU as arithmetic of floats; nothing else leaves the integers on the way.
FLOAT = {"curves": 1, "places": 0}


def network(nodes: list[Node]) -> GraphModel:
    model = GraphModel(channels=3, nodes=nodes, level="none").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5)
    return model


@pytest.mark.parametrize("target", ["tflite", "openvino"])
@pytest.mark.parametrize("name", GRAPHS)
def test_every_convolution_is_integers_whatever_stands_around_it(name: str, target: str, tmp_path: Path) -> None:
    pytest.importorskip({"tflite": "litert_torch", "openvino": "openvino"}[target])
    model, chosen = network(GRAPHS[name]), registry.get(target)
    settings = QuantizeSettings(steps=0, calibration_batches=1)
    program, record = quantize(
        model, chosen.scheme(), settings, SmoothBatches(), smooth_tiles(1), sigma_range=(0.0, 55 / 255), sigmas=(25.0,),
        progress=lambda *_: None,
    )  # fmt: skip
    # A wrong scale costs far more than the rounding of ten layers.
    assert record.db_after[25.0] > record.db_before[25.0] - 1
    lowered = chosen.lower(model, program, tmp_path, name="net", tile=32, precision="int8")
    convolutions = [n["name"] for n in GRAPHS[name] if n["op"] == "conv"]
    assert {layer.name.rpartition(".")[2]: layer.dtype for layer in lowered.layers} == dict.fromkeys(
        convolutions, "int8"
    )
    if target == "tflite":
        operators = tflite_file.operator_names(tflite_file.read(tmp_path / "net.int8.tflite"))
        assert operators.count("DEQUANTIZE") == FLOAT[name], operators
