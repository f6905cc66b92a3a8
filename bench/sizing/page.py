"""The page `bench/results/sizing.md`: tables of simulations with service times that were measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.sizing.arrivals import Bursts, bursty, poisson
from bench.sizing.service import Measured, Way
from bench.sizing.simulation import ROUTING, Fleet, Floats, Outcome, simulate
from infer.options import BatchOptions

MAX_WAITING = BatchOptions().max_waiting
SLOWER = 10
"""The p99 that is allowed, over the time of one row alone."""
MOST_REFUSED = 0.001
NODES = 1000

Row = Sequence[object]

_INTRODUCTION = """\
# How many cores, workers and nodes

Made by `python -m bench.sizing`, from service times measured by `python -m bench.sizing measure`
([sizing.json](sizing.json)):

{conditions}

A simulation, not a measurement of a fleet. `tests/test_sizing.py` holds it against queueing theory
(M/M/1, M/M/c, M/M/1/K, M/D/1). Read ratios, not requests a second, which are of this model and machine:
measure yours.

## What is assumed

- A node is the machine above. A worker is a process with a session and a queue of its own, first come
  first served; one run goes on at a time, of all that waits together, up to as many rows as pay,
  as infer's batcher judges. A run takes the measured median of its rows times a ratio that a
  measured run had.
- A request is one row of one size. Where {waiting} are at its worker already it is refused, and does
  not come again.
- Callers are many and do not wait for each other (open loop): Poisson arrivals or, where it says so,
  bursts, a Poisson process whose rate jumps for all nodes at once.
- The router chooses among all workers, takes no time, and knows at once how many requests each has.
  Real ones know it late or in part, which makes "least outstanding" worse than here, "two choices" less
  so, "random" not.
- Network, HTTP, and a task's own work before and after the graph take nothing. No node fails, starts or
  stops, and nodes differ in nothing: no neighbour takes their memory bandwidth.
- A load can be answered if the p99 is at most {slower} times the time of one row alone, {bound:.1f} ms,
  and at most {refused:.1%} are refused.
"""


@dataclass(frozen=True)
class Sizing:
    """Simulations with the ways of `measured`; `scale` below 1 makes them shorter and less exact."""

    measured: Measured
    scale: float = 1.0

    @property
    def best(self) -> Way:
        """The way that answers the most rows a second."""
        return max(self.measured.ways, key=lambda way: way.peak)

    @property
    def bound_s(self) -> float:
        return SLOWER * min(way.median_s(1) for way in self.measured.ways)

    def run(self, way: Way, nodes: int, routing: str, arrivals_s: Floats) -> Outcome:
        rng = np.random.default_rng(1)
        fleet = Fleet(nodes * way.workers, 1, way.most_rows, MAX_WAITING, routing)
        return simulate(arrivals_s, way.service(rng), fleet, rng)

    def at(self, way: Way, nodes: int, routing: str, rate: float) -> Outcome:
        """Poisson arrivals, so many that a p99 can be told."""
        requests = self.scale * max(30_000, 150 * nodes)
        return self.run(way, nodes, routing, poisson(rate, requests / rate, np.random.default_rng(2)))

    def fits(self, outcome: Outcome) -> bool:
        return outcome.percentile_s(99) <= self.bound_s and outcome.refused_share <= MOST_REFUSED

    def most(self, way: Way, nodes: int, routing: str) -> float:
        """Requests a second that `nodes` can answer, to 1 % of their peak."""
        low, high = 0.0, 1.0
        while high - low > 0.01:
            load = (low + high) / 2
            fits = self.fits(self.at(way, nodes, routing, load * nodes * way.peak))
            low, high = (load, high) if fits else (low, load)
        return low * nodes * way.peak

    def nodes_for(self, rate: float, bursts: Bursts) -> int:
        """The fewest nodes of the best way that can answer these bursts."""
        arrivals = bursty(rate, bursts, 2.0 * max(1, round(self.scale * 5)), np.random.default_rng(3))
        low, high = 0, int(np.ceil(2 * bursts.peak * rate / self.best.peak)) + 1
        while high - low > 1:
            nodes = (low + high) // 2
            fits = self.fits(self.run(self.best, nodes, "two choices", arrivals))
            low, high = (low, nodes) if fits else (nodes, high)
        return high

    # tables

    def ways(self) -> Iterator[Row]:
        first = self.measured.ways[0]
        for way in self.measured.ways:
            yield (
                way,
                _ms(way.median_s(1)),
                _ms(way.median_s(8)),
                way.most_rows,
                f"{way.peak:.0f}",
                f"{way.peak / first.peak:.2f}×",
            )

    def one_node(self) -> Iterator[Row]:
        first = None
        for way in self.measured.ways:
            most = self.most(way, 1, "least outstanding")
            first = first or most
            half = self.at(way, 1, "least outstanding", 0.5 * way.peak)
            yield (
                way,
                f"{most:.0f}",
                f"{most / first:.2f}×" if first else "–",
                _ms(half.percentile_s(50)),
                _ms(half.percentile_s(99)),
                f"{half.rows_a_run:.1f}",
            )

    def replicas(self) -> Iterator[Row]:
        for nodes in (1, 10, 100, NODES):
            peak = nodes * self.best.peak
            most = [self.most(self.best, nodes, routing) / peak for routing in ROUTING]
            yield (nodes, *(f"{load:.0%}" for load in most))

    def bursts(self) -> Iterator[Row]:
        rate, duration_s = 0.5 * NODES * self.best.peak, 2.0 * max(1, round(self.scale * 5))
        for peak in (1.0, 1.6, 2.4):
            bursts = Bursts(peak, 0.2, 2.0, regular=True)
            arrivals = bursty(rate, bursts, duration_s, np.random.default_rng(4))
            for routing in ROUTING:
                start = time.perf_counter()
                found = self.run(self.best, NODES, routing, arrivals)
                taken = time.perf_counter() - start
                yield (
                    f"{peak:g}×",
                    routing,
                    f"{len(arrivals):,}",
                    _ms(found.percentile_s(50)),
                    _ms(found.percentile_s(99)),
                    f"{found.refused_share:.2%}",
                    f"{found.utilisation:.0%}",
                    f"{found.rows_a_run:.1f}",
                    f"{taken:.0f} s",
                )

    def needed(self) -> Iterator[Row]:
        rate = 100 * self.best.peak
        for peak in (1.0, 1.5, 2.0, 3.0, 4.0):
            nodes = self.nodes_for(rate, Bursts(peak, 0.2, 2.0, regular=True))
            yield (f"{peak:g}×", nodes, f"{rate / (nodes * self.best.peak):.0%}")

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Routing → load of 1,000 nodes, over their peak, and p99 in ms."""
        loads = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
        peak = NODES * self.best.peak
        return {
            routing: [
                (load, 1e3 * self.at(self.best, NODES, routing, load * peak).percentile_s(99))
                for load in loads
            ]
            for routing in ROUTING
        }

    def page(self) -> str:
        """The page, as Markdown."""
        conditions = "\n".join(f"- {what}: {said}" for what, said in self.measured.conditions.items())
        best = f"{self.best}, at most {self.best.most_rows} rows a run"
        parts = [
            _INTRODUCTION.format(
                conditions=conditions,
                waiting=MAX_WAITING,
                slower=SLOWER,
                refused=MOST_REFUSED,
                bound=1e3 * self.bound_s,
            ),
            "## Cores and workers of a node, as measured\n",
            _table(
                ("", "1 row, ms", "8 rows, ms", "rows that pay", "rows/s then", "over the first"),
                self.ways(),
            ),
            "## What one node can answer\n",
            "Latencies are those at half of the rows a second of full runs.\n",
            _table(("", "requests/s", "over the first", "p50 ms", "p99 ms", "rows a run"), self.one_node()),
            f"## Nodes\n\nThe load that nodes can answer, over rows a second of full runs. Each: {best}.\n",
            _table(("nodes", *ROUTING), self.replicas()),
            "![p99 against load, by routing](sizing.svg)\n",
            f"## {NODES:,} nodes under bursts\n",
            "The mean load is half of the rows a second of full runs. In bursts of 0.4 s, one every 2 s, it"
            " is so many times the mean. The last column is what simulating took.\n",
            _table(
                ("bursts", "routing", "requests", "p50 ms", "p99 ms", "refused", "busy", "rows a run", ""),
                self.bursts(),
            ),
            "## Nodes for a bursty load\n",
            "The fewest nodes, with two choices, for a mean load that would keep 100 nodes busy all the"
            " time, and how busy these are then in the mean.\n",
            _table(("bursts", "nodes", "mean load"), self.needed()),
        ]
        return "\n".join(parts)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


def _table(head: Row, rows: Iterator[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)
