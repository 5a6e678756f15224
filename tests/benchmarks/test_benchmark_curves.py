from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import curves
from edgekit.errors import DataError


def log(folder: Path, name: str, records: list[dict[str, float]]) -> None:
    lines = [json.dumps({"loss": 0.1, **record}) for record in records]
    (folder / f"{name}.log.jsonl").write_text("\n".join(lines) + "\n")


def test_parts_follow_each_other_and_the_best_comes_first(tmp_path: Path) -> None:
    log(tmp_path, "low", [{"step": 10, "psnr_25": 30}, {"step": 15}, {"step": 20, "psnr_25": 31}])
    log(tmp_path, "high", [
        {"part": 1, "step": 10, "psnr_25": 31.5}, {"part": 1, "step": 12}, {"part": 2, "step": 5, "psnr_25": 32},
    ])  # fmt: skip
    log(tmp_path, "camera", [{"step": 10, "psnr": 35}, {"step": 20, "psnr": 36}])
    found = curves.read(tmp_path)
    assert found == {"high": [(10, 31.5), (17, 32.0)], "low": [(10, 30.0), (20, 31.0)]}
    assert list(found) == ["high", "low"]


def test_the_chart_holds_every_curve(tmp_path: Path) -> None:
    log(tmp_path, "one", [{"step": 100, "psnr_25": 30}, {"step": 1000, "psnr_25": 31}])
    log(tmp_path, "two", [{"step": 100, "psnr_25": 29.9}, {"step": 500, "psnr_25": 31}])
    assert curves.main(["--logs", str(tmp_path), "--out", str(tmp_path / "docs" / "out.svg")]) == 0
    chart = ElementTree.parse(tmp_path / "docs" / "out.svg").getroot()
    lines = [line.get("points", "").split() for line in chart.iter("{http://www.w3.org/2000/svg}polyline")]
    places = [[tuple(map(float, point.split(","))) for point in line] for line in lines]
    assert [len(line) for line in places] == [2, 2]
    # To the right are later steps, further up is more.
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in places)
    texts = [text.text for text in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert {"one", "two", "100", "1,000", "30.0"} <= set(texts)


def test_the_committed_chart_is_that_of_the_logs() -> None:
    assert curves.OUT.read_text() == curves.draw(curves.read(curves.LOGS)), "run python -m benchmarks.curves"


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no .*log.jsonl"):
        curves.read(tmp_path)
