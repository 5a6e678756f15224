"""The budget: which tensors are left unrounded, and that they then are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from edgekit.bundle.manifest import Sensitivity
from edgekit.compress.budget import choose
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.models import create, importers

RANGE = (0.0, 55 / 255)
MACS = {f"model.{k}": 100.0 for k in range(0, 10, 2)}


def program(wide: frozenset[str] = frozenset()) -> QuantizedProgram:
    torch.manual_seed(0)
    # model.0, .2, .4, .6 and .8 are convolutions, with ReLUs between.
    model = create("dncnn-25", widths=[8] * 4, channels=1).eval()
    found = QuantizedProgram(model, Scheme("t", wide=wide), RANGE)
    with found.in_float(), torch.no_grad():
        found(torch.rand(1, 1, 32, 32), torch.tensor([0.1]))
    for bounds in found.ranges:
        bounds.learn()
    return found


def cost(name: str, db: float, kind: str = "activations") -> Sensitivity:
    return Sensitivity(name, kind, {"5": db, "25": db})


COSTS = [cost("model.2", 0.1), cost("model.6", 0.5), cost("model.4", 0.3), cost("model.6", 2.0, "weights")]


def test_tensors_between_convolutions_are_known() -> None:
    between = program().between()
    assert between == {f"model.{k}": frozenset({f"model.{k}", f"model.{k + 2}"}) for k in range(0, 8, 2)}


def test_the_costliest_go_first_and_no_more_than_it_takes() -> None:
    found = choose(program(), COSTS, MACS, excess=0.4, least=0.0)
    assert [item.layers for item in found] == [{"model.6", "model.8"}]
    found = choose(program(), COSTS, MACS, excess=0.6, least=0.0)
    assert [item.tensor.name for item in found] == ["model.6", "model.4"]
    assert found[0].told() == "model.6, model.8 in float (the integers between them alone cost 0.50 dB)"


def test_the_share_of_integers_is_kept() -> None:
    # Two of five layers are float: 60% is left. The next tensor would take a third.
    assert len(choose(program(), COSTS, MACS, excess=0.9, least=0.6)) == 1
    assert choose(program(), COSTS, MACS, excess=0.9, least=0.7) == []
    assert len(choose(program(), COSTS, MACS, excess=0.9, least=0.0)) == 3


def test_what_is_float_already_is_not_chosen_again() -> None:
    wide = program(frozenset({"model.6", "model.8"}))
    assert [item.tensor.name for item in choose(wide, COSTS, MACS, excess=0.1, least=0.0)] == ["model.4"]


def test_a_tensor_between_wide_layers_is_not_rounded() -> None:
    wide = program(frozenset({"model.6", "model.8"}))
    assert "model.6" not in dict(wide.tensors())
    assert {"model.0", "model.2", "model.4"} <= set(dict(wide.tensors()))
    assert [layer.name for layer in wide.layers() if layer.weight is None] == ["model.6", "model.8"]


def test_layers_stay_integers_where_float_would_not_help() -> None:
    # 0.9 dB can be won back at most, by what each costs alone.
    assert len(choose(program(), COSTS, MACS, excess=1.8, least=0.0)) == 3
    assert choose(program(), COSTS, MACS, excess=1.9, least=0.0) == []


def test_nothing_that_costs_nothing_is_chosen() -> None:
    for cost in (-0.1, 0.009):
        free = [dataclasses.replace(item, lost={"5": cost}) for item in COSTS]
        assert choose(program(), free, MACS, excess=0.001, least=0.0) == []


def test_the_last_convolution_stays_in_integers_and_names_are_unique(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.c = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 4), (4, 4), (4, 3)))\n"
        "    def forward(self, x):\n"
        "        x = self.a(x)\n        return self.c(self.b(torch.relu(x)) + x)\n"
    )
    found = QuantizedProgram(importers.load(f"{file}:Net"), Scheme("t"), RANGE)
    names = [name for name, _ in found.tensors()]
    # One convolution, read by a ReLU and by a sum.
    assert len(names) == len(set(names))
    assert len(names) == 4
    # What the ReLU gives lies between two convolutions; nothing that the last one reads may stay float.
    last = found.layers()[-1].name
    assert len(found.between()) == 1
    assert not any(last in layers for layers in found.between().values())
