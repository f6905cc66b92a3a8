"""Candidates take turns: in every round each is asked for a while, in an order drawn anew.

A machine that drifts hits all of them alike, and ratios within a round stay fair. After a turn its threads
come to rest before the next begins, since a pool that spins takes cores from the next candidate. The first
query of a turn finds caches full of what others left there, and is not counted, unless all candidates take
so long that it matters little. A small fixed piece of work takes its turn, too: how far its times spread is
the noise of the machine.

A process keeps the speed it began with, so candidates that have processes of their own can be started
several times, with rounds after each start.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
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

_LONG_S = 0.25
"""Filling the caches takes some 10 ms, at most a twentieth of a query that takes so long."""

_MAX_QUERIES = 500
"""The most queries in a turn: each one's latency is kept."""

_TOLD_EVERY_S = 0.5
_STABLE = 0.03
WARM_UP_S = 3.0
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
        starts: of each round, after which start it came: 0, 0, …, 1, 1, …
        noise: the spread of the fixed work's times, 0.05 for ±5 %.
        work_ms: their median, which tells how fast the machine was meanwhile.
    """

    times: Mapping[str, Times]
    starts: tuple[int, ...]
    noise: float
    work_ms: float
    interrupted: bool


def take_turns(
    queries: Mapping[str, Query],
    seconds: float,
    progress: Progress = lambda _: None,
    turn_s: float = TURN_S,
    starts: int = 1,
    restart: Callable[[], None] = lambda: None,
    least: int = MIN_ROUNDS,
    warm_up_s: float = WARM_UP_S,
) -> Measured:
    """Ask the candidates in turn until `seconds` have passed, but in at least so many rounds; who does not
    come to rest is warmed up for `warm_up_s`.

    With more than one of `starts`, each takes its share of both, and `restart` is called in between.
    Ctrl-C ends the measurement, and the rounds finished by then count; before the third it is raised.
    """
    times = {name: Times() for name in queries}
    of_round: list[int] = []
    work: list[float] = []
    interrupted = False
    rng = np.random.default_rng(0)
    try:
        for start in range(starts):
            head = f"start {start + 1} of {starts}: " if starts > 1 else ""
            if start:
                progress(f"{head}loading again")
                restart()
            typical_s = _warmed_up(queries, times, turn_s, warm_up_s, progress, head)
            lengths = {name: _length(turn_s, each_s) for name, each_s in typical_s.items()}
            lead = int(len(queries) > 1 and min(typical_s.values()) < _LONG_S)
            for passed in _rounds(seconds / starts, math.ceil(least / starts), MAX_ROUNDS // starts):
                if passed is not None:
                    progress(head + passed)
                worked = _work_ms()
                found = {}
                for name in rng.permutation(list(queries)):
                    found[name] = queries[name].turn(lead + lengths[name])[lead:]
                    if len(queries) > 1:
                        settle()
                for name, latencies in found.items():
                    times[name].rounds.append(latencies)
                of_round.append(start)
                work.append(worked)
    except KeyboardInterrupt:
        if len(work) < 3:
            raise
        for each in times.values():
            del each.rounds[len(work) :]
        interrupted = True
    return Measured(times, tuple(of_round[: len(work)]), spread(work), float(np.median(work)), interrupted)


def _warmed_up(
    queries: Mapping[str, Query],
    times: Mapping[str, Times],
    turn_s: float,
    warm_up_s: float,
    progress: Progress,
    head: str,
) -> dict[str, float]:
    """What a query of each candidate takes."""
    found = {}
    for name, query in queries.items():
        progress(f"{head}warming up {name}")
        found[name], stable = _warm_up(query, turn_s, warm_up_s)
        times[name].stable = times[name].stable and stable
        if len(queries) > 1:
            settle()
    return found


def _length(turn_s: float, query_s: float) -> int:
    """How many queries a turn has."""
    return max(1, min(_MAX_QUERIES, math.ceil(turn_s / query_s)))


def _rounds(seconds: float, least: int, most: int) -> Iterator[str | None]:
    """Once for each round: what is to be told of the time left, or None."""
    told = -_TOLD_EVERY_S
    start = time.perf_counter()
    for done in range(most):
        passed = time.perf_counter() - start
        if passed >= seconds and done >= least:
            return
        if passed - told >= _TOLD_EVERY_S:
            told = passed
            left = max(seconds - passed, (least - done) * passed / done if done else 0.0)
            yield f"about {left:.0f} s left"
        else:
            yield None


def _warm_up(query: Query, turn_s: float, most_s: float) -> tuple[float, bool]:
    """Ask until two medians in a row are alike; the last one in seconds, and whether that was reached."""
    start = time.perf_counter()
    first_ms = float(query.turn(1)[0])
    count = _length(turn_s, first_ms / 1e3)
    before, calm = math.nan, 0  # nothing is like the first
    while True:
        median = float(np.median(query.turn(count)))
        calm = calm + 1 if abs(median - before) <= _STABLE * before else 0
        if calm == 2:
            return median / 1e3, True
        if time.perf_counter() - start > most_s:
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
