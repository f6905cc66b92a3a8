"""A fleet that answers requests, as discrete events: arrivals, and ends of runs.

Each node has one queue, first come first served, and workers that take from it whenever they are free: all
that waits, up to `max_batch` requests at once, as infer's batcher does. A request that finds `max_waiting`
at its node is refused, and does not come again. The router knows at once how many requests each node has.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Service = Callable[[int], float]
"""Seconds that a run of so many requests takes; may draw them."""

Choose = Callable[[npt.NDArray[np.int64]], int]
"""The node for the next request, by how many requests each has."""


@dataclass(frozen=True)
class Fleet:
    """`workers`, `max_batch` and `max_waiting` are of each node; None: any number may wait."""

    nodes: int
    workers: int = 1
    max_batch: int = 1
    max_waiting: int | None = None
    routing: str = "random"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the requests that came after the warm-up.

    Attributes:
        latencies_s: of those that were answered, in the order they came.
        waits_s: how long each of these waited for its run.
        span_s: from the end of the warm-up to the last arrival.
        busy_s: what all workers worked in that time.
        runs, rows: that began in that time.
    """

    fleet: Fleet
    arrived: int
    refused: int
    latencies_s: Floats
    waits_s: Floats
    span_s: float
    busy_s: float
    runs: int
    rows: int

    @property
    def answered(self) -> int:
        return len(self.latencies_s)

    @property
    def throughput(self) -> float:
        """Answered requests for each second in which they came."""
        return self.answered / self.span_s

    @property
    def refused_share(self) -> float:
        return self.refused / self.arrived

    @property
    def utilisation(self) -> float:
        """The part of their time that workers worked."""
        return self.busy_s / (self.span_s * self.fleet.nodes * self.fleet.workers)

    @property
    def rows_a_run(self) -> float:
        return self.rows / max(1, self.runs)

    def percentile_s(self, percent: float) -> float:
        """Of latencies; infinite if nothing was answered."""
        return float(np.percentile(self.latencies_s, percent)) if self.answered else float("inf")


def simulate(
    arrivals_s: Floats, service: Service, fleet: Fleet, rng: np.random.Generator, warm_up: float = 0.1
) -> Outcome:
    """Answer requests that come at `arrivals_s`, ascending. The first part, `warm_up` of them, fills the
    queues and is not counted. `rng` is for routing alone, and all that has come is answered in the end."""
    times = arrivals_s.tolist()
    nodes = _Nodes(fleet, service, times, first=int(len(times) * warm_up))
    choose = ROUTING[fleet.routing](fleet.nodes, rng)
    ends = nodes.ends
    for request, now in enumerate(times):
        while ends and ends[0][0] <= now:
            nodes.finish()
        nodes.take(request, now, choose(nodes.present))
    while ends:
        nodes.finish()
    return nodes.outcome()


class _Nodes:
    """What the nodes are doing, and what has become of requests."""

    def __init__(self, fleet: Fleet, service: Service, times: list[float], first: int) -> None:
        self._fleet, self._service, self._times, self._first = fleet, service, times, first
        self._most = fleet.max_waiting or len(times) + 1
        self.present = np.zeros(fleet.nodes, np.int64)
        self.ends: list[tuple[float, int, int, list[int]]] = []  # end, number of the run, node, requests
        self._queues: list[deque[int]] = [deque() for _ in range(fleet.nodes)]
        self._free = [fleet.workers] * fleet.nodes
        self._ended_s = np.full(len(times), np.nan)
        self._waited_s = np.full(len(times), np.nan)
        self._begin_s, self._last_s = times[first], times[-1]
        self._busy_s = 0.0
        self._number = self._runs = self._rows = 0

    def take(self, request: int, now: float, node: int) -> None:
        """A request comes to a node: it runs, waits, or is refused."""
        if self.present[node] >= self._most:
            return
        self.present[node] += 1
        if self._free[node]:
            self._free[node] -= 1
            self._start(node, now, [request])
        else:
            self._queues[node].append(request)

    def finish(self) -> None:
        """The run that ends next ends, and its worker takes what waits."""
        now, _, node, requests = heapq.heappop(self.ends)
        self.present[node] -= len(requests)
        for request in requests:
            self._ended_s[request] = now
        queue = self._queues[node]
        if queue:
            count = min(len(queue), self._fleet.max_batch)
            self._start(node, now, [queue.popleft() for _ in range(count)])
        else:
            self._free[node] += 1

    def _start(self, node: int, now: float, requests: list[int]) -> None:
        end = now + self._service(len(requests))
        for request in requests:
            self._waited_s[request] = now - self._times[request]
        self._number += 1
        heapq.heappush(self.ends, (end, self._number, node, requests))
        self._busy_s += max(0.0, min(end, self._last_s) - max(now, self._begin_s))
        if self._begin_s <= now <= self._last_s:
            self._runs, self._rows = self._runs + 1, self._rows + len(requests)

    def outcome(self) -> Outcome:
        latencies = (self._ended_s - np.array(self._times))[self._first :]
        answered = ~np.isnan(latencies)
        return Outcome(
            fleet=self._fleet,
            arrived=len(latencies),
            refused=int((~answered).sum()),
            latencies_s=latencies[answered],
            waits_s=self._waited_s[self._first :][answered],
            span_s=self._last_s - self._begin_s,
            busy_s=self._busy_s,
            runs=self._runs,
            rows=self._rows,
        )


def _random(nodes: int, rng: np.random.Generator) -> Choose:
    draws = _Draws(nodes, rng)
    return lambda present: draws.next()


def _round_robin(nodes: int, rng: np.random.Generator) -> Choose:
    last = -1

    def choose(present: npt.NDArray[np.int64]) -> int:
        nonlocal last
        last = (last + 1) % nodes
        return last

    return choose


def _least(nodes: int, rng: np.random.Generator) -> Choose:
    return lambda present: int(present.argmin())


def _two_choices(nodes: int, rng: np.random.Generator) -> Choose:
    draws = _Draws(nodes, rng)

    def choose(present: npt.NDArray[np.int64]) -> int:
        one, other = draws.next(), draws.next()
        return one if present[one] <= present[other] else other

    return choose


class _Draws:
    """Random nodes, drawn many at a time because one at a time is slow."""

    def __init__(self, nodes: int, rng: np.random.Generator) -> None:
        self._nodes, self._rng = nodes, rng
        self._drawn: list[int] = []

    def next(self) -> int:
        if not self._drawn:
            self._drawn = self._rng.integers(self._nodes, size=8192).tolist()
        return self._drawn.pop()


ROUTING: dict[str, Callable[[int, np.random.Generator], Choose]] = {
    "random": _random,
    "round robin": _round_robin,
    "two choices": _two_choices,
    "least outstanding": _least,
}
"""How the router chooses. "two choices": the one of two random nodes that has fewer requests (Mitzenmacher
2001); "least outstanding": the one of all that has the fewest."""
