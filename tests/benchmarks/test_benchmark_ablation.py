from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from smooth_folder import write_smooth

from benchmarks import ablation, results, tables
from edgekit.recipe import DistillSettings, PruneSettings, QuantizeSettings


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_smooth(tmp_path / "images", 6)


def test_rows_are_kept_and_each_is_measured_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, int]] = []

    def row(name: str) -> ablation.Row:
        def run(lab: ablation.Laboratory) -> Any:
            runs.append((name, lab.seed))
            assert lab.crops.shape == (2, 160, 160, 3)
            return lambda noisy, sigma: noisy

        return ablation.Row("group", name, run)

    monkeypatch.setattr(ablation, "ROWS", (row("a"), row("b")))
    monkeypatch.setattr(ablation, "_CROPS", 2)
    out = tmp_path / "ablation.json"
    words = ["--data", str(data), "--out", str(out), "--seeds"]
    assert ablation.main([*words, "0"]) == 0
    assert ablation.main([*words, "0", "1"]) == 0
    assert runs == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    columns, lines = ablation.table(results.load(out)["rows"])
    assert columns[-1] == "seeds"
    assert [line[-1] for line in lines] == ["2", "2"]
    # Noise of 25 of 255, clipped at black and white here and there.
    assert 20 < float(lines[0][4]) < 21.5
    assert "| group | a |" in tables.means(tmp_path)


def test_every_row_names_settings_that_exist() -> None:
    names = [(row.group, row.name) for row in ablation.ROWS]
    assert len(set(names)) == len(names)
    times = ablation._LARGE["times"]
    DistillSettings(**ablation._FEATURES, **{k: v for k, v in ablation._LARGE.items() if k != "times"}, steps=times)
    DistillSettings(**ablation._OWN_FEATURES)
    DistillSettings(**ablation._ALONE)
    QuantizeSettings(**ablation._EXTREMES)
    # What the table calls the default is the default, but for the ranges: its rows are of one fit, see _SQUARES.
    assert PruneSettings().criterion == "taylor"
    assert QuantizeSettings().range_fit == "auto"
    assert QuantizeSettings().bias_correction
    assert QuantizeSettings().rounding == "together"
