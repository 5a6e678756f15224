from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import results, survey, tables
from edgekit.errors import ExportError
from edgekit.models import create, names
from edgekit.targets import registry

pytest.importorskip("onnxruntime")


def test_one_preset_stands_for_each_architecture() -> None:
    found = survey.smallest()
    assert found["dsunet"] == "dsunet-n"
    assert set(found) == {create(name).arch for name in names()}


def test_the_recorded_sizes_are_those_of_the_presets() -> None:
    found = {model["name"]: model for model in results.load(results.FOLDER / "exports.json")["models"]}
    assert found == {name: survey.facts(name) for name in names()}, "run python -m benchmarks.exports"


def test_a_cut_network_is_small_and_computes_something() -> None:
    model = survey.cut("edsr-baseline")
    assert model.config()["width"] == 8
    assert model.config()["blocks"] == [8] * 16
    assert all(p.abs().max() > 0 for p in model.parameters())


def tile() -> Any:
    return np.random.default_rng(0).integers(60, 200, (32, 32, 3), dtype=np.uint8)


def test_an_export_is_held_against_torch() -> None:
    row = survey._export(survey.cut("edsr-s"), registry.get("tensorrt"), "int8", tile())
    assert row["exports"]
    assert row["int8_share"] == 1
    row = survey._export(survey.cut("edsr-s"), registry.get("tensorrt"), "fp32", tile())
    # Rounded to a level, and float32 sums in another order.
    assert row["largest_error"] <= 0.51


def test_what_a_library_says_is_the_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    target = registry.get("tensorrt")

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise ExportError("no such operator\nand a long trace")

    monkeypatch.setattr(target, "lower", refuse, raising=False)
    row = survey._export(survey.cut("edsr-s"), target, "fp32", tile())
    assert row == {"exports": False, "blocks": "no such operator"}
    assert tables.export_verdict(row) == "no"


@pytest.mark.parametrize(
    ("share", "words"), [(None, "yes"), (1, "yes"), (0.95, "95% of MACs"), (0.0, "0% of MACs"), (0.9999, "yes")]
)
def test_verdicts(share: float | None, words: str) -> None:
    assert tables.export_verdict({"exports": True, "int8_share": share}) == words


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of an invented survey."""
    model = {"arch": "a", "source": "P et al.", "stride": 4, "channels": 3, "blind": True, "weights": False}
    models = [
        {"name": "a-s", **model, "parameters": 28_123, "macs_per_pixel": 3810.0, "halo": 19, "pools_globally": True},
        {
            "name": "b",
            **model,
            "arch": "b",
            "parameters": 5e6,
            "macs_per_pixel": 1e5,
            "halo": 9,
            "pools_globally": False,
        },
    ]
    rows = [
        {"arch": "a", "target": "tflite", "precision": "fp32", "exports": True, "blocks": "", "largest_error": 0.5},
        {
            "arch": "a",
            "target": "tflite",
            "precision": "int8",
            "exports": True,
            "blocks": "float: 1 X",
            "int8_share": 0.9,
        },
        {"arch": "b", "target": "tflite", "precision": "int8", "exports": False, "blocks": "no"},
        {"arch": "b", "target": "gpu delegate", "precision": "fp16", "exports": True, "blocks": ""},
    ]
    about = {"settings": {"cut": 8}, "versions": {"edgekit": "9.9"}}
    results.save(tmp_path / "exports.json", {**about, "models": models, "rows": rows})
    return tmp_path


def test_the_table_of_models(folder: Path) -> None:
    lines = tables.zoo(folder).splitlines()
    assert lines[1] == "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"
    assert lines[2] == "| a-s | P et al. | RGB, blind | 28 | 3.8 | 19 and all | 4 | tflite int8 |"
    assert lines[3] == "| b | P et al. | RGB, blind | 5,000 | 100.0 | 9 | 4 | gpu delegate fp16 |"


def test_the_table_of_exports(folder: Path) -> None:
    text = tables.exported(folder)
    assert "| a | tflite | int8 | 90% of MACs | float: 1 X |" in text
    assert "| b | tflite | int8 | no | no |" in text
    assert "| a | tflite | fp32 |" not in text, "there is nothing to say of it"
    assert "within 0.50 levels" in text


def test_the_recorded_survey_has_every_model() -> None:
    found = results.load(results.FOLDER / "exports.json")
    assert {model["name"] for model in found["models"]} == set(names())
    targets = {*registry.names(), "gpu delegate"}
    assert {(row["arch"], row["target"]) for row in found["rows"]} == {
        (arch, target) for arch in survey.smallest() for target in targets
    }
