"""A query: one candidate with one set of feeds, ready to be asked and timed.

Whoever runs it keeps the time, so that a candidate in another process is not charged for the way there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from infer.signature import Array

_SPIN_S = 0.002
"""Sleeping is this inexact, so the end of a wait is spent looking at the clock."""


class Query(Protocol):
    """What scenarios need of whatever they ask."""

    def turn(self, count: int) -> Array:
        """Ask `count` times, one after another; the latencies in milliseconds, shape = (count,)."""
        ...

    def serve(self, due_s: Array) -> Array:
        """Ask at each of the ascending times `due_s`, in seconds from now; the latencies in milliseconds.

        Arrivals do not wait for answers: a latency begins when the query was due, and includes its time in
        the queue (no coordinated omission).
        """
        ...


def repeated(call: Callable[[], object], count: int) -> Callable[[], object]:
    """`call`, `count` times in a row."""
    if count == 1:
        return call

    def several() -> None:
        for _ in range(count):
            call()

    return several


class Call:
    """A function of this process as a query."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def turn(self, count: int) -> Array:
        call, clock = self._call, time.perf_counter_ns
        found = []
        for _ in range(count):
            start = clock()
            call()
            found.append(clock() - start)
        return np.array(found, np.float64) / 1e6

    def serve(self, due_s: Array) -> Array:
        # one query is answered at a time, in the order of arrival, so that waiting for the next arrival
        # and working through the queue is one loop
        call, clock = self._call, time.perf_counter
        ends = np.empty(len(due_s))
        start = clock() + 0.001
        for i, at in enumerate(start + due_s):
            wait = at - clock()
            if wait > _SPIN_S:
                time.sleep(wait - _SPIN_S)
            while clock() < at:
                pass
            call()
            ends[i] = clock()
        latencies: Array = (ends - start - due_s) * 1e3
        return latencies
