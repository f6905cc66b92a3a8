"""Candidates take turns: in every round each is asked for a while, in an order drawn anew.

A machine that drifts hits all of them alike, and ratios within a round stay fair. After a turn its threads
come to rest before the next begins, since a pool that spins takes cores from the next candidate. A small
fixed piece of work takes its turn, too: how far its times spread is the noise of the machine.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from infer.measure.queries import Query
from infer.measure.rest import settle
from infer.measure.statistics import spread
from infer.signature import Array

Progress = Callable[[str], None]

MIN_ROUNDS, MAX_ROUNDS = 15, 400

TURN_S = 0.02
"""A turn lasts at least this long, or one query: shorter ones measure the change of turns."""

_MAX_QUERIES = 500
"""The most queries in a turn: each one's latency is kept."""

_TOLD_EVERY_S = 0.5
_STABLE = 0.03
_WARM_UP_S = 3.0
_WORK = bytes(2**18)


@dataclass
class Times:
    """Latencies in milliseconds, an array for each round. `stable`: whether warming up came to rest."""

    rounds: list[Array] = field(default_factory=list)
    stable: bool = True

    @property
    def medians(self) -> list[float]:
        return [float(np.median(latencies)) for latencies in self.rounds]

    @property
    def queries(self) -> int:
        return sum(len(latencies) for latencies in self.rounds)


@dataclass(frozen=True)
class Measured:
    """Times of each candidate.

    Attributes:
        noise: the spread of the fixed work's times, 0.05 for ±5 %.
        work_ms: their median, which tells how fast the machine was meanwhile.
    """

    times: Mapping[str, Times]
    noise: float
    work_ms: float
    interrupted: bool


def take_turns(
    queries: Mapping[str, Query],
    seconds: float,
    progress: Progress = lambda _: None,
    turn_s: float = TURN_S,
) -> Measured:
    """Ask the candidates in turn until `seconds` have passed, but in at least `MIN_ROUNDS` rounds.

    Ctrl-C ends the measurement, and the rounds finished by then count; before the third it is raised.
    """
    times = {name: Times() for name in queries}
    lengths: dict[str, int] = {}
    for name, query in queries.items():
        progress(f"warming up {name}")
        typical_s, times[name].stable = _warm_up(query, turn_s)
        lengths[name] = max(1, min(_MAX_QUERIES, math.ceil(turn_s / typical_s)))
        if len(queries) > 1:
            settle()
    rng = np.random.default_rng(0)
    work: list[float] = []
    interrupted = False
    told = -_TOLD_EVERY_S
    start = time.perf_counter()
    try:
        while len(work) < MAX_ROUNDS:
            passed = time.perf_counter() - start
            if passed >= seconds and len(work) >= MIN_ROUNDS:
                break
            if passed - told >= _TOLD_EVERY_S:
                told = passed
                progress(_left(passed, seconds, len(work)))
            worked = _work_ms()
            found = {}
            for name in rng.permutation(list(queries)):
                found[name] = queries[name].turn(lengths[name])
                if len(queries) > 1:
                    settle()
            for name, latencies in found.items():
                times[name].rounds.append(latencies)
            work.append(worked)
    except KeyboardInterrupt:
        if len(work) < 3:
            raise
        for each in times.values():
            del each.rounds[len(work) :]
        interrupted = True
    return Measured(times, spread(work), float(np.median(work)), interrupted)


def _left(passed: float, seconds: float, rounds: int) -> str:
    left = max(seconds - passed, (MIN_ROUNDS - rounds) * passed / rounds if rounds else 0.0)
    return f"about {left:.0f} s left"


def _warm_up(query: Query, turn_s: float) -> tuple[float, bool]:
    """Ask until two medians in a row are alike; the last one in seconds, and whether that was reached."""
    start = time.perf_counter()
    first_ms = float(query.turn(1)[0])
    count = max(1, min(_MAX_QUERIES, math.ceil(1e3 * turn_s / first_ms)))
    before, calm = math.nan, 0  # nothing is like the first
    while True:
        median = float(np.median(query.turn(count)))
        calm = calm + 1 if abs(median - before) <= _STABLE * before else 0
        if calm == 2:
            return median / 1e3, True
        if time.perf_counter() - start > _WARM_UP_S:
            return median / 1e3, False
        before = median


def _work_ms() -> float:
    """About a tenth of a millisecond of the same work on one core, three times; the fastest."""
    found = []
    for _ in range(3):
        start = time.perf_counter_ns()
        zlib.crc32(_WORK)
        found.append(time.perf_counter_ns() - start)
    return min(found) / 1e6
