"""Whether other programs keep the cores busy that torch's threads count on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

# Seconds that are looked at: a program that starts and ends beside this one is no reason to complain.
_WATCHED = 10.0
# Cores that others may use before threads wait for one another.
_SPARE = 0.5


class Crowd:
    """Watches the cores for ten seconds from its first question on, once; nothing on other systems than Linux."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._began: tuple[float, float, float] | None = None
        self._done = False

    def note(self) -> str | None:
        """What to tell the user, when the ten seconds are over and there is something to tell; None else.

        Every parallel part of a step ends with all threads waiting for the last one. One that has to wait for a core
        holds up all others, hundreds of times a step.
        """
        torch = sys.modules.get("torch")
        if self._done or torch is None:
            return None
        if self._began is not None and time.perf_counter() - self._began[0] < _WATCHED:
            return None
        now = (time.perf_counter(), _busy(self._stat), time.process_time())
        if self._began is None:
            self._began = now
            return None
        self._done = True
        seconds, busy, own = (after - before for after, before in zip(now, self._began, strict=True))
        others, cores, threads = (busy - own) / seconds, len(_cores()), torch.get_num_threads()
        # Several processes of one training are one another's others; a GPU does not wait for threads here.
        alone = "WORLD_SIZE" not in os.environ and not torch.cuda.is_available()
        if not alone or threads == 1 or others <= cores - threads + _SPARE:
            return None
        return (
            f"other programs use {others:.1f} of {cores} cores, and {threads} threads that wait for one another can "
            "take several times as long as one: if that is to last, stop this and start it again with "
            "OMP_NUM_THREADS=1 before the command, and --resume"
        )


def _cores() -> set[int]:
    """The cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _busy(stat: Path) -> float:
    """Seconds that these cores have worked since the machine started, for whomever; 0 where the kernel does not say."""
    try:
        lines = stat.read_text().splitlines()
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return 0.0
    names = {f"cpu{core}" for core in _cores()}
    # user, nice, system, idle, iowait, irq, softirq, steal: all but idle and iowait.
    counts = [[int(n) for n in line.split()[1:9]] for line in lines if line.split()[:1] and line.split()[0] in names]
    return sum(sum(count) - sum(count[3:5]) for count in counts) / ticks
