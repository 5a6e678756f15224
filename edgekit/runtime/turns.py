"""Timing several things in turns, so that whatever else the machine does hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

# However short the time given: a percentile of fewer runs is none.
MIN_RUNS = 3


def in_turns(
    functions: Sequence[Callable[[], object]], runs: int, seconds: float, warm_up: int
) -> list[NDArray[np.float64]]:
    """Seconds of each run, one array a function, all of one length: after warming up, each once a round.

    Args:
        runs: at most so many rounds.
        seconds: no round begins after so long, but for the first `MIN_RUNS`.
        warm_up: runs of each function that do not count: the first one packs weights and fills caches.
    """
    for function in functions:
        for _ in range(warm_up):
            function()
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(times[0]) < MIN_RUNS or (len(times[0]) < runs and time.perf_counter() < end):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [np.array(taken) for taken in times]
