"""Interleaved timing: candidates take turns, so that a drifting machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of each candidate, and of the ratio to the first, round by round."""

    median_ms: dict[str, float]
    ratio: dict[str, float]


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int = 31, calls: int = 1
) -> Timing:
    """Time `calls` calls of each candidate in turn, `rounds` times, after a warm-up."""
    for _ in range(_WARM_UP_ROUNDS):
        for call in candidates.values():
            for _ in range(calls):
                call()
    took: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter_ns()
            for _ in range(calls):
                call()
            took[name].append((time.perf_counter_ns() - start) / calls / 1e6)
    first = took[next(iter(candidates))]
    return Timing(
        {name: statistics.median(times) for name, times in took.items()},
        {
            name: statistics.median(t / base for t, base in zip(times, first, strict=True))
            for name, times in took.items()
        },
    )
