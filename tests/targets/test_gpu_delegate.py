"""What a phone's GPU delegate refuses, named before training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit.models import create
from edgekit.models.base import DenoiserModel
from edgekit.targets.gpu_delegate import PUBLISHED, refusals, refused
from edgekit.targets.tflite import TARGET

pytest.importorskip("litert_torch")


def test_the_student_for_gpus_is_taken_whole() -> None:
    assert refusals(create("dsunet-gpu-s")) == ()


def test_a_dsunet_is_refused_by_operator_module_and_fix() -> None:
    found = refusals(create("dsunet-s"))
    assert [item.operator for item in found] == ["SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "DEPTH_TO_SPACE"]
    assert found[0].module == "head"
    assert found[2].module == "DSUNet (behind tail)"
    assert all(item.why == "is not on its list" for item in found)
    assert all("a transposed one in place of a pixel-shuffle, as in dsunet-gpu-s" in item.fix for item in found)


class Made(DenoiserModel):
    """A network around one module, to see what becomes of it."""

    arch, source, blind = "made", "a test", True
    channels, stride, halo = 3, 1, 0

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.inner = inner
        self.last = nn.Conv2d(4, 3, 1)

    def config(self) -> dict[str, object]:
        return {}

    def _run(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        clean: Tensor = self.last(self.inner(self.first(noisy)))
        return clean


class Averages(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("inner", "operator", "why"),
    [
        (Averages(), "MEAN", "is not on its list"),
        (nn.Upsample(scale_factor=1.0, mode="nearest"), "RESIZE_NEAREST_NEIGHBOR", "is not on its list"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), "CONV_2D", "is of version 6: the list has it up to 1"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), None, ""),
        (nn.Sequential(nn.AvgPool2d(2), nn.ConvTranspose2d(4, 4, 2, stride=2)), None, ""),
        (nn.PReLU(), None, ""),
    ],
)
def test_single_operators(inner: nn.Module, operator: str | None, why: str) -> None:
    found = refusals(Made(inner), 16)
    assert {item.operator for item in found} == ({operator} if operator else set())
    assert all(item.why == why for item in found)
    assert all(item.module.startswith("inner") for item in found)


def test_weights_do_not_matter() -> None:
    model = create("nafnet-width8", encoder=[1], decoder=[1], middle=1)
    # Its blocks begin with zeros, with which the converter would leave them out; and they stay what they were.
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert {"MEAN", "RSQRT"} <= {item.operator for item in refusals(model)}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_can_be_asked_too(tmp_path: Path) -> None:
    model = create("dsunet-gpu-s")
    lowered = TARGET.lower(model, None, tmp_path, name="student", tile=32, precision="fp16")
    # Float16 weights are widened by DEQUANTIZE, which the delegate folds into what reads them.
    assert refused(tmp_path / "student.fp32.tflite", model) == ()
    assert {item.operator for item in refused(tmp_path / lowered.variants[0].file, model)} <= {"DEQUANTIZE"}


def test_the_list_is_as_published() -> None:
    assert len(PUBLISHED) == 24
    assert not PUBLISHED.keys() & {"TRANSPOSE", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "BROADCAST_TO", "GATHER"}
