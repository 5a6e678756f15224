"""Weight files: round trips, and one clear line for each way that a file can be wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgekit import models
from edgekit.errors import CheckpointError, RecipeError, UnknownNameError
from edgekit.models import checkpoints
from edgekit.models.base import DenoiserModel


@pytest.fixture
def small() -> DenoiserModel:
    return models.create("dsunet-n", widths=[8, 8], middle=[16])


def test_round_trip(small: DenoiserModel, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    models.save(path, small, {"licence": "CC0"})
    again = models.load(path)
    assert again.config() == small.config()
    assert not again.training
    for key, value in small.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert all(p.requires_grad and p.dtype == torch.float32 for p in again.parameters())
    assert checkpoints.metadata(path)["licence"] == "CC0"
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


def test_the_same_weights_are_the_same_bytes(small: DenoiserModel, tmp_path: Path) -> None:
    extra = dict.fromkeys(["edgekit", "licence", "data", "steps", "seconds", "recipe"], "x")
    for i in range(4):
        models.save(tmp_path / f"{i}.safetensors", small, extra)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(4)}) == 1


def test_half_storage_comes_back_as_float32(small: DenoiserModel, tmp_path: Path) -> None:
    models.save(tmp_path / "full.safetensors", small)
    models.save(tmp_path / "half.safetensors", small, half=True)
    again = models.load(tmp_path / "half.safetensors")
    for key, value in small.state_dict().items():
        assert again.state_dict()[key].dtype == torch.float32
        assert torch.equal(again.state_dict()[key], value.half().float()), key
    weights = 2 * sum(p.numel() for p in small.parameters())
    full, half = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("full", "half"))
    assert full - half == pytest.approx(weights, abs=16)


def test_state_dict_into_a_named_model(small: DenoiserModel, tmp_path: Path) -> None:
    plain, wrapped = tmp_path / "a.pth", tmp_path / "b.pt"
    torch.save(small.state_dict(), plain)
    torch.save({"params": {f"module.{k}": v for k, v in small.state_dict().items()}, "step": 3}, wrapped)
    for path in (plain, wrapped):
        again = models.load(path, "dsunet-n", widths=[8, 8], middle=[16])
        assert torch.equal(again.state_dict()["head.weight"], small.head.weight)


def test_into_a_module_in_place(small: DenoiserModel, tmp_path: Path) -> None:
    models.save(tmp_path / "w.safetensors", small)
    other = models.create("dsunet-n", widths=[8, 8], middle=[16])
    other.head.weight.requires_grad_(False)
    assert models.load(tmp_path / "w.safetensors", other) is other
    assert torch.equal(other.head.weight, small.head.weight)
    assert not other.head.weight.requires_grad


def test_a_bare_state_dict_needs_a_name(small: DenoiserModel, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"does not say which architecture .* model='ffdnet-color'"):
        models.load(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {"net": state},
        lambda state: {"ema": {"decay": 0.999, "shadow": state}, "step": 1},
        # A mapping that holds no weights does not hide those beside it.
        lambda state: {"ema": {"decay": 0.999}, "state_dict": state},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
    ],
)
def test_as_training_codes_write_them(small: DenoiserModel, tmp_path: Path, wrap: Callable[..., object]) -> None:
    torch.save(wrap(small.state_dict()), tmp_path / "w.pth")
    loaded = models.load(tmp_path / "w.pth", models.create("dsunet-n", widths=[8, 8], middle=[16]))
    for key, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_arguments_without_a_name_would_change_nothing() -> None:
    with pytest.raises(RecipeError, match=r"channels=1 is for a model given by name: .*'dsunet-n', 'dsunet-s', channe"):
        models.load("dsunet-n", channels=1)


def test_missing_and_unexpected_keys(small: DenoiserModel, tmp_path: Path) -> None:
    state = dict(small.state_dict())
    state["extra.bias"] = torch.zeros(1)
    del state["tail.bias"], state["head.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"missing head.bias, tail.bias; unexpected extra.bias"):
        models.load(tmp_path / "w.safetensors", small)


def test_shapes_that_differ(small: DenoiserModel, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "w.pth")
    expected = r"head.weight is \[8, 12, 3, 3\] where the model has \[16, 12, 3, 3\].*more"
    with pytest.raises(CheckpointError, match=expected):
        models.load(tmp_path / "w.pth", "dsunet-n", widths=[16, 8], middle=[16])


def test_settings_that_no_shape_shows(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tiny = {"width": 4, "groups": [[[4]]], "branch": 4}
    models.save(path, models.create("mrdn", **tiny, dilations=[2, 4]))
    other = models.create("mrdn", **tiny, dilations=[1, 2])
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"every shape does, but dilations is \[2, 4\] where the model has \[1, 2\]"
    ):
        models.load(path, other)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items()), "the module was filled in"
    same = models.load(path, models.create("mrdn", **tiny, dilations=[2, 4]))
    assert all(torch.equal(value, models.load(path).state_dict()[key]) for key, value in same.state_dict().items())


def test_a_file_of_another_model_says_whose_it_is(small: DenoiserModel, tmp_path: Path) -> None:
    models.save(tmp_path / "gray.safetensors", models.create("dsunet-s", channels=1))
    with pytest.raises(
        CheckpointError, match=r": these are weights of dsunet-s for gray images; use them with that model, dsunet-s; "
    ):
        models.load(tmp_path / "gray.safetensors", "dsunet-n")
    # Of widths that have no name.
    models.save(tmp_path / "mine.safetensors", small)
    with pytest.raises(
        CheckpointError, match=r"dsunet-n for colour images: its header says dsunet of widths \[8, 8\], middle"
    ):
        models.load(tmp_path / "mine.safetensors", "dsunet-n")


def test_weights_that_do_not_say_whose_they_are_are_known_by_their_shapes(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({f"module.{k}": v for k, v in models.create("dncnn-25").state_dict().items()}, path)
    with pytest.raises(
        CheckpointError, match=r"\bdncnn-25 for gray images.*; use them with that model, dncnn-"
    ) as known:
        models.load(path, "dsunet-s")
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(
        CheckpointError, match=r"dsunet-s for colour images: name the model .*\(--model NAME, "
    ) as other:
        models.load(path, "dsunet-s")
    assert not any("{" in str(error.value) for error in (known, other))
    torch.save(models.create("dsunet-n", channels=1).state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"dsunet-n for colour .*: these are weights of dsunet-n for gray images; "
    ):
        models.load(path, "dsunet-n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(small: DenoiserModel, tmp_path: Path, value: float) -> None:
    with torch.no_grad():
        small.tail.bias[3] = value
    with pytest.raises(CheckpointError, match=r"1 of the 12 values of tail.bias are NaN or infinite"):
        models.save(tmp_path / "w.safetensors", small)
    assert list(tmp_path.iterdir()) == []
    torch.save(small.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"1 of the 12 values of tail.bias are NaN or infinite"):
        models.load(tmp_path / "w.pth", "dsunet-n", widths=[8, 8], middle=[16])


def test_half_that_overflows(small: DenoiserModel, tmp_path: Path) -> None:
    with torch.no_grad():
        small.head.bias[0] = 1e5  # float16 ends at 65504
    with pytest.raises(CheckpointError, match=r"head.bias"):
        models.save(tmp_path / "w.safetensors", small, half=True)


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path(_Trap.target),))  # type: ignore[return-value]

    target = ""


def test_never_unpickles(tmp_path: Path) -> None:
    _Trap.target = str(tmp_path / "sprung")
    torch.save({"head.weight": _Trap()}, tmp_path / "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(_Trap()))
    for name in ("zip.pth", "raw.pth"):
        with pytest.raises(CheckpointError, match="never unpickles"):
            models.load(tmp_path / name, "dsunet-n")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("keep", [0, 5, 100, -10])
def test_truncated_files(small: DenoiserModel, tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(small.state_dict(), path)
    else:
        models.save(path, small)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"w\.(safetensors|pth) "):
        models.load(path, "dsunet-n")


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": torch.zeros(2), "b": 3}, torch.zeros(3)])
def test_files_that_hold_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"no state dict but .* torch.save\(model.state_dict"):
        models.load(tmp_path / "w.pth", "dsunet-n")


@pytest.mark.parametrize(
    ("arch", "config"),
    [
        ("dsunet", "{"),
        ("dsunet", "[]"),
        ("dsunet", json.dumps({"widths": [8, 8]})),
        ("dsunet", json.dumps({"widths": [-1], "encoder": [], "middle": [], "decoder": []})),
        ("resnet", "{}"),
    ],
)
def test_headers_that_describe_no_model(small: DenoiserModel, tmp_path: Path, arch: str, config: str) -> None:
    save_file(dict(small.state_dict()), tmp_path / "w.safetensors", {"arch": arch, "config": config})
    with pytest.raises(CheckpointError, match="its header does not describe a model"):
        models.load(tmp_path / "w.safetensors")


def test_a_header_cannot_exhaust_memory(small: DenoiserModel, tmp_path: Path) -> None:
    config = {**small.config(), "widths": [2**20, 2**20]}  # 150 TB of weights
    save_file(dict(small.state_dict()), tmp_path / "w.safetensors", {"arch": "dsunet", "config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=r"where the model has \[1048576,"):
        models.load(tmp_path / "w.safetensors")


def test_unknown_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown weights 'dsunet-q': expected one of .*\.safetensors"):
        models.load("dsunet-q")
    with pytest.raises(CheckpointError, match="no such file"):
        models.load(tmp_path / "none.safetensors")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(CheckpointError, match="no such file"):
        models.load(tmp_path / "folder.pth")


def test_shipped_files_load_by_name() -> None:
    for name, path in models.shipped().items():
        header = checkpoints.metadata(name)
        model = models.load(name)
        assert model.arch == header["arch"]
        assert path.stem == name


def test_full_disk_leaves_what_stood_there(
    small: DenoiserModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    models.save(path, small)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left on device; free some space"):
        models.save(path, models.create("dsunet-n"))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
