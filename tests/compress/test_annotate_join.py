"""What is set side by side has one scale, so that an integer runtime copies bytes; an image keeps its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import WIDTH, SmoothBatches, conv, node, random_model, smooth_tiles

from edgekit.compress.fake_quant import LearnedRange
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.quantize import quantize
from edgekit.compress.scheme import Scheme
from edgekit.models.graph import GraphModel
from edgekit.recipe import QuantizeSettings
from edgekit.targets import registry, tflite_file


def joined(program: QuantizedProgram) -> list[LearnedRange]:
    """The quantizers of what the program's only concatenation reads, and of what it gives."""
    modules = dict(program.module.named_modules(remove_duplicate=False))
    (node,) = (n for n in program.module.graph.nodes if n.target is torch.ops.aten.cat.default)
    return [modules[str(n.target)] for n in (*node.args[0], *node.users)]


def test_skip_and_risen_channels_share_a_scale() -> None:
    program = QuantizedProgram(random_model("dsunet-n"), Scheme("t"), (0.0, 55 / 255))
    found = joined(program)
    assert len(found) == 3
    assert found[0] is found[1] is found[2]
    assert isinstance(found[0], LearnedRange)
    # Both are seen: the range holds the wider of the two.
    with program.in_float(), torch.no_grad():
        program(torch.rand(1, 3, 32, 32), torch.tensor([0.1]))
    head = [name for name, bounds in program.tensors() if bounds is found[0]]
    assert head == ["head"]
    assert "up.0" not in [name for name, _ in program.tensors()]


def with_image() -> GraphModel:
    nodes = [
        {**conv("noisy", 3), "name": "a"},
        {**node("concat", "noisy", "a"), "name": "c"},
        {**conv("c", 3 + WIDTH, 3), "name": "b"},
        {**node("sub", "noisy", "b"), "name": "o"},
    ]
    return GraphModel(channels=3, nodes=nodes, level="none").eval()


def test_an_image_in_a_join_keeps_its_own_scale() -> None:
    program = QuantizedProgram(with_image(), Scheme("t"), (0.0, 55 / 255))
    found = joined(program)
    assert found[0] is not found[1]
    assert (float(found[0].lower), float(found[0].upper)) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["dsunet-n", "image"])
def test_the_file_joins_integers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    model = with_image() if name == "image" else random_model(name)
    target = registry.get("tflite")
    program, _ = quantize(
        model, target.scheme(), QuantizeSettings(steps=0, calibration_batches=1), SmoothBatches(), smooth_tiles(1),
        sigma_range=(0.0, 55 / 255), sigmas=(25.0,), progress=lambda *_: None,
    )  # fmt: skip
    lowered = target.lower(model, program, tmp_path, name="net", tile=64, precision="int8")
    assert {layer.dtype for layer in lowered.layers} == {"int8"}
    operators = tflite_file.operator_names(tflite_file.read(tmp_path / "net.int8.tflite"))
    assert "CONCATENATION" in operators
    # One scale: nothing is rounded anew on the way in.
    assert ("QUANTIZE" in operators) == (name == "image")
    assert "DEQUANTIZE" not in operators
