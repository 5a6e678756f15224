"""Which terms of a sum a target rounds, and what is rounded behind it."""

from __future__ import annotations

import pytest
from toys import Node, conv, node

from edgekit.compress.program import QuantizedProgram
from edgekit.models.graph import GraphModel
from edgekit.targets import registry

# What stands between the head, which "a" and "b" read, and the tail, which reads "end".
A = {**conv("head"), "name": "a"}
B = {**conv("head"), "name": "b"}
GRAPHS: dict[str, list[Node]] = {
    "residual": [A, {**node("add", "head", "a"), "name": "end"}],
    "turned round": [A, {**node("add", "a", "head"), "name": "end"}],
    "difference": [A, {**node("sub", "a", "head"), "name": "end"}],
    "two convolutions": [A, B, {**node("add", "a", "b"), "name": "end"}],
    "read once more": [
        A,
        {**node("add", "head", "a"), "name": "s"},
        {**conv("a"), "name": "b"},
        {**node("add", "s", "b"), "name": "end"},
    ],
    "twice itself": [A, {**node("add", "a", "a"), "name": "end"}],
    "moved": [
        A,
        {**node("upsample", "a", factor=[2, 2], mode="nearest"), "name": "m"},
        {**node("upsample", "head", factor=[2, 2], mode="nearest"), "name": "h"},
        {**node("add", "h", "m"), "name": "s"},
        {**node("max_pool", "s", kernel=[2, 2], stride=[2, 2], pad=[0] * 4), "name": "end"},
    ],
    "behind a ReLU": [A, {**node("add", "head", "a"), "name": "s"}, {**node("relu", "s"), "name": "end"}],
    "a level's bias": [A, {**conv("sigma", 1), "name": "b"}, {**node("add", "b", "a"), "name": "end"}],
    "a factor": [A, {**node("const", shape=[8, 1, 1]), "name": "k"}, {**node("mul", "a", "k"), "name": "end"}],
    "a constant": [A, {**node("const", shape=[8, 1, 1]), "name": "k"}, {**node("add", "a", "k"), "name": "end"}],
}


def rounded(target: str, graph: list[Node]) -> list[str]:
    """The convolutions, constants and sums that are rounded where they are written, each as often as it is."""
    ends = [
        {**conv("noisy", 3), "name": "head"},
        {**conv("end", out=3), "name": "tail"},
        {**node("sub", "noisy", "tail"), "name": "out"},
    ]
    model = GraphModel(channels=3, nodes=[ends[0], *graph, *ends[1:]], level="scalar").eval()
    program = QuantizedProgram(model, registry.get(target).scheme(), (0.0, 55 / 255))
    names = [name.split()[0].removeprefix("layers.") for name, _ in program.tensors()]
    return sorted(name for name in names if name not in ("noisy", "sigma"))


@pytest.mark.parametrize(
    ("graph", "tflite", "openvino", "tensorrt"),
    [
        ("residual", "head a sum tail", "head sum", "head sum"),
        ("turned round", "head a sum tail", "head sum", "head sum"),
        # TensorRT rounds what convolutions read, and what is added to one's output.
        ("difference", "head a difference tail", "head difference", "head difference"),
        ("two convolutions", "head a b sum tail", "head b sum", "head b sum"),
        ("read once more", "head a sum b sum tail", "head a sum sum", "head a sum sum"),
        ("twice itself", "head a sum tail", "head a sum", "head sum"),
        ("moved", "head a sum tail", "head sum", "head head sum"),
        ("behind a ReLU", "head a sum tail", "head sum", "head sum"),
        ("a level's bias", "head a b sum tail", "head b sum", "head sum"),
        ("a factor", "head constants_k a mul tail", "head constants_k a mul", "head mul"),
        ("a constant", "head constants_k a sum tail", "head sum", "head sum"),
    ],
)
def test_terms(graph: str, tflite: str, openvino: str, tensorrt: str) -> None:
    wanted = {"tflite": tflite, "openvino": openvino, "tensorrt": tensorrt}
    assert {target: rounded(target, GRAPHS[graph]) for target in wanted} == {
        target: sorted(names.split()) for target, names in wanted.items()
    }
