"""PyTorch modules and exported programs read as a network: the same numbers, and one line for what cannot be read."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from edgekit.errors import CheckpointError
from edgekit.models import importers

# A user's file, with a class of each kind of signature.
CODE = """
import torch
from torch import nn
from beside import WIDTH

class Blind(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.a = nn.Conv2d(channels, WIDTH, 3, padding=1)
        self.n = nn.BatchNorm2d(WIDTH)
        self.b = nn.Conv2d(WIDTH, channels, 3, padding=1)
    def forward(self, x):
        return x - self.b(torch.relu(self.n(self.a(x))))

class Level(Blind):
    def __init__(self):
        super().__init__()
        self.s = nn.Linear(1, WIDTH, bias=False) if False else nn.Conv2d(1, WIDTH, 1, bias=False)
    def forward(self, x, sigma):
        return x - self.b(torch.relu(self.a(x) + self.s(sigma.view(-1, 1, 1, 1))))

class Map(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 3, 3, padding=1)
    def forward(self, x, sigma):
        return x - self.b(torch.relu(self.a(torch.cat([x, sigma], 1))))

class Joined(Map):
    def forward(self, x):
        return x[:, :3] - self.b(torch.relu(self.a(x)))

class Optional(Level):
    def forward(self, x, sigma=None):
        y = self.a(x)
        return x - self.b(torch.relu(y if sigma is None else y + self.s(sigma)))

class Number(Blind):
    def forward(self, x, sigma=0.1):
        return x - self.b(torch.relu(self.a(x))) * sigma

class Filled(Map):
    def forward(self, x, sigma=0.1):
        level = x.new_full((x.shape[0], 1, *x.shape[2:]), sigma)
        return x - self.b(torch.relu(self.a(torch.cat([x, level], 1))))

class Expanded(Map):
    def forward(self, x, sigma=0.1):
        sigma = sigma if torch.is_tensor(sigma) else x.new_full((1, 1, 1, 1), sigma)
        return x - self.b(torch.relu(self.a(torch.cat([x, sigma.expand(-1, 1, *x.shape[2:])], 1))))

class Flag(Blind):
    def forward(self, x, features=False):
        y = torch.relu(self.a(x))
        return (x - self.b(y), y) if features else x - self.b(y)

class Unused(Blind):
    def forward(self, x, sigma=None):
        return super().forward(x)

class Gain(Blind):
    def forward(self, x, gain=1.0):
        return x - gain * self.b(torch.relu(self.a(x)))

def gray():
    return Blind(1)

def broken():
    raise RuntimeError("no such setting\\nmore")

def text():
    return "a network"

class Shrinks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3)
    def forward(self, x):
        return self.a(x)

number = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 8\n")
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(CODE))
    torch.manual_seed(0)
    return file


@pytest.mark.parametrize(
    ("factory", "channels", "blind"),
    [("Blind", 3, True), ("gray", 1, True), ("Level", 3, False), ("Map", 3, False), ("Joined", 3, False)],
)
def test_a_factory_is_read_whatever_its_signature(code: Path, factory: str, channels: int, blind: bool) -> None:
    model = importers.load(f"{code}:{factory}")
    # What it computes was held against the module's own output while it was read.
    assert (model.channels, model.blind) == (channels, blind)
    assert model.halo == 2
    assert model(torch.rand(2, channels, 24, 40), torch.tensor([0.1, 0.2])).shape == (2, channels, 24, 40)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """edgekit's own: torch's exporter logs, too."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("edgekit")]


@pytest.mark.parametrize("factory", ["Optional", "Number", "Expanded"])
def test_a_noise_level_that_has_a_default_is_no_lost_control(
    code: Path, factory: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = importers.load(f"{code}:{factory}")
    assert not model.blind
    image = torch.rand(1, 3, 16, 16)
    assert not torch.equal(model(image, torch.tensor([0.1])), model(image, torch.tensor([0.2])))
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("factory", "blind", "told"),
    [
        ("Flag", True, "its second argument, features, was left at its default, .*: the model is read as blind"),
        ("Unused", True, "its second argument, sigma, was left at its default, .*: the model is read as blind"),
        ("Gain", False, "its second argument, gain, is taken for the noise level"),
    ],
)
def test_a_second_argument_in_doubt_is_told(
    code: Path, factory: str, blind: bool, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert importers.load(f"{code}:{factory}").blind is blind
    (message,) = warnings(caplog)
    assert re.search(told, message)


def test_a_level_that_is_used_as_a_number_is_told_what_to_do(code: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"new_full.*; its second argument, sigma, was left at .* sigma\.expand\("
    ):
        importers.load(f"{code}:Filled")


def test_weights_come_from_a_file_of_their_own(code: Path, tmp_path: Path) -> None:
    module = torch.nn.Module()
    stored = {
        "a.weight": torch.zeros(8, 3, 3, 3), "a.bias": torch.full((8,), 0.5), "b.weight": torch.zeros(3, 8, 3, 3),
        "b.bias": torch.tensor([0.1, 0.2, 0.3]), "n.weight": torch.ones(8), "n.bias": torch.zeros(8),
        "n.running_mean": torch.zeros(8), "n.running_var": torch.ones(8), "n.num_batches_tracked": torch.tensor(3),
    }  # fmt: skip
    assert not list(module.parameters())
    path = tmp_path / "x.pth"
    torch.save({"state_dict": stored}, path)
    model = importers.load(f"{code}:Blind", path)
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            image - model(image, torch.tensor([0.1])),
            torch.tensor([0.1, 0.2, 0.3])[None, :, None, None].expand(1, 3, 16, 16),
        )
    torch.save({**stored, "more": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"x\.pth does not fit mine\.py:Blind: unexpected more"):
        importers.load(f"{code}:Blind", path)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("none", r"mine\.py has no none: it defines Blind, Level, Map, Joined, Optional"),
        ("number", r"mine\.py has no number"),
        ("broken", r"mine\.py:broken raised RuntimeError: no such setting$"),
        ("text", r"mine\.py:text returned str: expected a torch\.nn\.Module"),
        ("Shrinks", r"mine\.py:Shrinks is no denoiser: .* \[1, 3, 64, 64\] gives \[1, 3, 62, 62\]"),
    ],
)
def test_what_is_no_factory_of_a_denoiser(code: Path, factory: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        importers.load(f"{code}:{factory}")
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("gone.py:make", "gone.pt2"):
        with pytest.raises(CheckpointError, match=r"gone\.pt?[y2]+: no such file"):
            importers.load(tmp_path / name)


class Exported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.level = nn.Conv2d(1, 3, 1)

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = noisy - self.conv(noisy) * self.level(sigma)
        return result


def test_an_exported_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Exported().eval()
    noisy, sigma = torch.rand(1, 3, 32, 48), torch.full((1, 1, 1, 1), 0.1)
    path = tmp_path / "mine.pt2"
    torch.export.save(torch.export.export(module, (noisy, sigma)), path)
    model = importers.load(path)
    with torch.no_grad():
        torch.testing.assert_close(model(noisy, torch.tensor([0.1])), module(noisy, sigma), atol=1e-5, rtol=1e-5)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"mine\.pt2 is no program of torch\.export"):
        importers.load(path)


def test_a_program_that_was_exported_otherwise(tmp_path: Path) -> None:
    module, sigma = Exported().eval(), torch.full((1, 1, 1, 1), 0.1)
    path = tmp_path / "mine.pt2"
    torch.export.save(torch.export.export(module, (torch.rand(1, 3, 32, 32),), {"sigma": sigma}), path)
    with pytest.raises(CheckpointError, match=r"not exported with one or two tensors in their order: export it again"):
        importers.load(path)
    torch.export.save(torch.export.export(module, (torch.rand(2, 3, 32, 32), sigma)), path)
    with pytest.raises(CheckpointError, match=r"exported with an image \[2, 3, 32, 32\]: export it again"):
        importers.load(path)


def test_two_files_of_one_name_have_neighbours_of_their_own(tmp_path: Path) -> None:
    text = "from torch import nn\nfrom blocks import C\ndef make():\n    return nn.Conv2d(C, C, 3, padding=1)\n"
    for folder, channels in (("a", 3), ("b", 1)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(text)
        (tmp_path / folder / "blocks.py").write_text(f"C = {channels}\n")
    assert importers.load(tmp_path / "a" / "net.py:make").channels == 3
    assert importers.load(tmp_path / "b" / "net.py:make").channels == 1


def test_which_of_them_take_weights() -> None:
    assert importers.takes_weights("a/b.py:make")
    assert not importers.takes_weights("a/b.pt2")
    assert not importers.takes_weights("a/b.onnx")
    assert importers.accepts("a/b.py:make")
    assert not importers.accepts("a/b.py")
