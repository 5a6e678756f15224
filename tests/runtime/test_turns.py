from __future__ import annotations

import pytest

from edgekit.runtime import turns


def test_runs_are_in_turns_after_warming_up() -> None:
    order: list[str] = []
    times = turns.in_turns([lambda: order.append("a"), lambda: order.append("b")], runs=4, seconds=60, warm_up=2)
    assert order == ["a"] * 2 + ["b"] * 2 + ["a", "b"] * 4
    assert [len(taken) for taken in times] == [4, 4]


def test_time_bounds_the_runs_and_never_below_three(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(turns.time, "perf_counter", lambda: float(next(now)))
    # The clock is read three times a round: once to look whether there is time, twice to measure.
    assert len(turns.in_turns([lambda: None], runs=100, seconds=20, warm_up=0)[0]) < 10
    assert len(turns.in_turns([lambda: None], runs=100, seconds=0.001, warm_up=0)[0]) == 3
