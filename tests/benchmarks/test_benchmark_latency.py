from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from benchmarks import latency
from benchmarks.latency import Timed, in_turns, ratios, row
from edgekit.errors import RecipeError, UnknownNameError


def test_contestants_run_in_turns_and_the_first_run_does_not_count() -> None:
    order: list[str] = []
    ticks = count()
    timed = [Timed({}, lambda name=name: order.append(name)) for name in "ab"]  # type: ignore[misc]
    times = in_turns(timed, 3, clock=lambda: next(ticks) / 1000)
    assert order == ["a", "b"] * 4
    assert times == [pytest.approx([1, 1, 1])] * 2


def test_the_fastest_run_counts_and_only_useful_pixels() -> None:
    # A tile of 512 with a halo of 33 on a grid of 4 has 444 x 444 useful pixels.
    entry = Timed({"useful_pixels": 444**2, "model": "m"}, lambda: None)
    found = row(entry, [30.0, 20.0, 25.0])
    assert (found["ms"], found["ms_median"], found["model"]) == (20.0, 25.0, "m")
    assert found["ms_per_megapixel"] == pytest.approx(20 / 0.197136, abs=0.01)


def _row(model: str, figure: str, threads: int, time: float, through: str = "engine") -> dict[str, Any]:
    return {"model": model, "figure": figure, "threads": threads, "through": through, "ms_per_megapixel": time}


def test_ratios_are_against_the_compressed_student_of_the_same_threads() -> None:
    rows = [_row("dsunet-s", "int8", 1, 50), _row("dsunet-s", "int8", 2, 30), _row("ffdnet-color", "original", 1, 4000)]
    rows += [_row("ffdnet-color", "original", 2, 2100), _row("dsunet-s", "int8", 1, 55, "denoiser")]
    found = {(r["model"], r["figure"], r["through"], r["threads"]): r["times"] for r in ratios(rows)}
    assert found[("ffdnet-color", "original", "engine", 1)] == 80
    assert found[("ffdnet-color", "original", "engine", 2)] == 70
    assert found[("dsunet-s", "int8", "denoiser", 1)] == 1.1
    assert found[("dsunet-s", "int8", "engine", 1)] == 1
    assert ratios(rows[2:4]) == []


def test_bad_flags_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--rounds 0"):
        latency.main(["--rounds", "0"])
    with pytest.raises(UnknownNameError, match="unknown model 'x'"):
        latency.main(["--models", "x"])
