"""A machine whose cores others use is told of, once, after ten seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekit.cli import crowd


class Machine:
    """Two cores, and a clock: `others` cores are busy with other programs, `own` with this one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int = 2) -> None:
        self.stat = folder / "stat"
        self.seconds, self.busy, self.own = 0.0, 0.0, 0.0
        monkeypatch.setattr(crowd, "_cores", lambda: {0, 2})
        monkeypatch.setattr(crowd.time, "perf_counter", lambda: self.seconds)
        monkeypatch.setattr(crowd.time, "process_time", lambda: self.own)
        monkeypatch.setattr(crowd.os, "sysconf", lambda name: 100, raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        self.work(0, own=0, others=0)

    def work(self, seconds: float, *, own: float, others: float) -> None:
        self.seconds += seconds
        self.own += own * seconds
        self.busy += (own + others) * seconds
        # Half of it niced; a core that this process may not use, and idle and waiting time, which are no work.
        half = round(50 * self.busy)
        lines = [
            "cpu 9 9 9 9",
            f"cpu0 {half} 0 0 777 88 0 0 0 0 0",
            "cpu1 9999999 0 0 0 0 0 0 0 0 0",
            f"cpu2 0 {half} 0 777 88 0 0 0 0 0",
            "intr 5",
        ]
        self.stat.write_text("\n".join(lines))


def test_a_crowded_machine_is_told_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch)
    watch = crowd.Crowd(machine.stat)
    assert watch.note() is None
    machine.work(6, own=1, others=1)
    assert watch.note() is None
    machine.work(6, own=1, others=1)
    told = watch.note()
    assert told is not None
    assert "other programs use 1.0 of 2 cores, and 2 threads" in told
    assert "OMP_NUM_THREADS=1" in told
    machine.work(30, own=1, others=1)
    assert watch.note() is None


@pytest.mark.parametrize(("threads", "own", "others"), [(2, 1.9, 0.1), (1, 1.0, 1.0), (2, 1.6, 0.4)])
def test_a_machine_with_room_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, own: float, others: float
) -> None:
    machine = Machine(tmp_path, monkeypatch, threads)
    watch = crowd.Crowd(machine.stat)
    assert watch.note() is None
    machine.work(12, own=own, others=others)
    assert watch.note() is None


@pytest.mark.parametrize("why", ["several processes", "GPU", "no such file"])
def test_nor_where_it_does_not_matter_or_cannot_be_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    machine = Machine(tmp_path, monkeypatch)
    if why == "several processes":
        monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: why == "GPU")
    watch = crowd.Crowd(tmp_path / "none" if why == "no such file" else machine.stat)
    assert watch.note() is None
    machine.work(12, own=1, others=1)
    assert watch.note() is None
