"""Chains of transposes in a converted file: what becomes one operator, what stays, and that no number changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

pytest.importorskip("litert_torch")

from edgekit.compress.program import QuantizedProgram
from edgekit.models import create
from edgekit.targets import registry, tflite, tflite_file, tflite_layout

SIDE = 32


class Shuffles(nn.Module):
    """Blind; `after_add` puts an addition between the convolution and the shuffle, where none can be reordered."""

    def __init__(self, after_add: bool) -> None:
        super().__init__()
        self.after_add = after_add
        self.head, self.tail = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        cells = F.pixel_unshuffle(noisy, 2)
        x = self.tail(F.relu(self.head(cells)))
        return noisy - F.pixel_shuffle(x + cells if self.after_add else x, 2)


def raw(path: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Path:
    """A file as the converter leaves it."""
    monkeypatch.setattr(tflite_layout, "simplify", lambda path: None)
    tflite._convert(module, (1, SIDE, SIDE, 3), path, **settings)
    monkeypatch.undo()
    return path


def operators(path: Path) -> list[str]:
    return tflite_file.operator_names(tflite_file.read(path))


def run(path: Path) -> NDArray[Any]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=1).get_signature_runner()
    rng = np.random.default_rng(0)
    fed = {}
    for name, details in sorted(runner.get_input_details().items()):
        integer = details["dtype"] == np.int8
        values = rng.integers(-128, 128, details["shape"]) if integer else rng.random(details["shape"])
        fed[name] = values.astype(details["dtype"])
    clean: NDArray[Any] = runner(**fed)["clean"]
    return clean


def simplified(path: Path) -> Path:
    copy = path.with_suffix(".simple.tflite")
    shutil.copy(path, copy)
    tflite_layout.simplify(copy)
    return copy


def quantized() -> QuantizedProgram:
    torch.manual_seed(0)
    model = create("dsunet-n", widths=[8, 16], encoder=[[]], middle=[16], decoder=[[16]], up_width=0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.15)
    program = QuantizedProgram(model, registry.get("tflite").scheme(), (0.0, 55 / 255))
    with program.in_float(), torch.no_grad():
        program(torch.rand(1, 3, SIDE, SIDE), torch.tensor([25 / 255]))
    for bounds in program.ranges:
        bounds.learn()
    return program


def test_an_integer_file_moves_pixels_by_one_operator_and_keeps_every_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = raw(tmp_path / "x.tflite", quantized().converted(), monkeypatch, blind=False, quantized=True)
    assert operators(path).count("TRANSPOSE") > 10
    simple = simplified(path)
    found = operators(simple)
    assert "TRANSPOSE" not in found
    assert [op for op in found if "DEPTH" in op and "WISE" not in op] == [
        "SPACE_TO_DEPTH",
        "DEPTH_TO_SPACE",
        "DEPTH_TO_SPACE",
    ]
    np.testing.assert_array_equal(run(simple), run(path))


def test_xnnpack_takes_what_came_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ai_edge_litert.interpreter import Interpreter

    path = raw(tmp_path / "x.tflite", quantized().converted(), monkeypatch, blind=False, quantized=True)
    interpreter = Interpreter(str(simplified(path)), num_threads=1)
    interpreter.allocate_tensors()
    assert [d["op_name"] for d in interpreter._get_ops_details()].count("DELEGATE") == 1


def test_the_plain_kernels_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What proves a bundle on a device without XNNPACK (docs/bundle.md).
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    path = raw(tmp_path / "x.tflite", quantized().converted(), monkeypatch, blind=False, quantized=True)
    plain = OpResolverType.BUILTIN_REF
    interpreter = Interpreter(str(simplified(path)), num_threads=1, experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    interpreter.invoke()


def test_a_float_file_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    path = raw(tmp_path / "x.tflite", Shuffles(after_add=False), monkeypatch, blind=True, quantized=False)
    simple = simplified(path)
    assert "TRANSPOSE" not in operators(simple)
    # The sums of the first convolution run over its channels in another order.
    np.testing.assert_allclose(run(simple), run(path), atol=2e-6)


def test_a_shuffle_that_no_convolution_can_absorb_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    path = raw(tmp_path / "x.tflite", Shuffles(after_add=True), monkeypatch, blind=True, quantized=False)
    simple = simplified(path)
    assert "DEPTH_TO_SPACE" not in operators(simple)
    np.testing.assert_allclose(run(simple), run(path), atol=2e-6)


def test_simplifying_twice_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    simple = simplified(raw(tmp_path / "x.tflite", Shuffles(after_add=False), monkeypatch, blind=True, quantized=False))
    before = simple.read_bytes()
    tflite_layout.simplify(simple)
    assert simple.read_bytes() == before


def test_an_operator_of_another_version_is_given_the_one_that_plain_kernels_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    simple = simplified(raw(tmp_path / "x.tflite", Shuffles(after_add=False), monkeypatch, blind=True, quantized=False))
    model = tflite_file.read(simple)
    for code in model.operatorCodes:
        code.version = 2
    tflite_file.write(model, simple)
    tflite_layout.simplify(simple)
    found = tflite_file.read(simple)
    versions = dict(
        zip(
            operators(simple),
            [found.operatorCodes[o.opcodeIndex].version for o in found.subgraphs[0].operators],
            strict=True,
        )
    )
    assert (versions["SPACE_TO_DEPTH"], versions["DEPTH_TO_SPACE"], versions["CONV_2D"]) == (1, 1, 2)


class Grouped(nn.Module):
    """A grouped convolution in front of a shuffle: its channels cannot change groups."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(12, 12, 3, padding=1, groups=3)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        return noisy - F.pixel_shuffle(self.head(F.pixel_unshuffle(noisy, 2)), 2)


class Shared(nn.Module):
    """What lies between the convolution and the shuffle is read by others, too."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 1)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        x = self.head(F.pixel_unshuffle(noisy, 2))
        return noisy - F.pixel_shuffle(x, 2) - F.pixel_shuffle(self.tail(F.relu(x)), 2)


@pytest.mark.parametrize("network", [Grouped, Shared])
def test_channels_that_cannot_be_renumbered_keep_their_order(
    network: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    path = raw(tmp_path / "x.tflite", network(), monkeypatch, blind=True, quantized=False)
    np.testing.assert_allclose(run(simplified(path)), run(path), atol=2e-6)
