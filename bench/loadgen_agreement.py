"""The built-in scenarios against LoadGen: do both report the same of the same work?

    python -m bench.loadgen_agreement [--seconds N] [--rounds N]

The work is a callable whose service times are known. In each round LoadGen asks it first; then the
built-in scenario asks for as many queries with the service times that LoadGen's really had, in the server
scenario at the same arrivals. Both are also held against an oracle that needs no harness: the percentile of
the service times themselves, Lindley's recursion for a queue, samples over time. The table shows the
medians of the rounds, and of the ratios within each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infer.measure.loadgen import LoadGenResult, harness, run_test
from infer.measure.queries import Call
from infer.measure.statistics import percentiles
from infer.signature import Array

SAMPLES = 8
RATE = 100.0
"""Of the server scenario, in samples a second: a third of what the work can serve."""

BOUND_MS = 50.0


class Work:
    """Answers after seeded times between 2 and 5 ms, or the given ones in turn; `asked_s` keeps these, and
    `took_s` how long each call really was."""

    def __init__(self, times_s: Sequence[float] | None = None) -> None:
        drawn = np.random.default_rng(0).uniform(0.002, 0.005, 997)
        self._times_s = drawn.tolist() if times_s is None else list(times_s)
        self.asked_s: list[float] = []
        self.took_s: list[float] = []

    def __call__(self, samples: int = 1) -> None:
        asked = self._times_s[len(self.took_s) % len(self._times_s)]
        start = time.perf_counter()
        time.sleep(asked)  # leaves the cores to the harness
        self.took_s.append(time.perf_counter() - start)
        self.asked_s.append(asked)


@dataclass(frozen=True)
class Round:
    """The metric of one scenario: from each harness, and from the oracle for that harness's own calls."""

    loadgen: float
    built_in: float
    loadgen_oracle: float
    built_in_oracle: float


@dataclass(frozen=True)
class Agreement:
    """Ratios of one scenario, medians of the rounds: built-in to LoadGen, and each to its oracle."""

    scenario: str
    metric: str
    rounds: tuple[Round, ...]

    @property
    def built_in(self) -> float:
        return statistics.median(r.built_in / r.loadgen for r in self.rounds)

    @property
    def loadgen_to_oracle(self) -> float:
        return statistics.median(r.loadgen / r.loadgen_oracle for r in self.rounds)

    @property
    def built_in_to_oracle(self) -> float:
        return statistics.median(r.built_in / r.built_in_oracle for r in self.rounds)


SCENARIOS = {
    "single-stream": "p90 ms",
    "multi-stream": "p99 ms",
    "server": "p99 ms",
    "offline": "samples/s",
}


def agree(scenario: str, seconds: float, rounds: int) -> Agreement:
    """Ask in turns, `rounds` times, each harness for about `seconds`."""
    return Agreement(scenario, SCENARIOS[scenario], tuple(_round(scenario, seconds) for _ in range(rounds)))


def _round(scenario: str, seconds: float) -> Round:
    samples = SAMPLES if scenario in ("multi-stream", "offline") else 1
    work = Work()
    found = run_test(
        scenario, work, seconds, samples=samples, rate=RATE, bound_ms=BOUND_MS, min_queries=100
    )
    count = len(found.latencies) // samples if scenario == "offline" else len(found.latencies)
    again = Work(work.asked_s[-count:])  # those before are of the warm-up
    query = Call(again)
    latencies = query.serve(found.arrivals_s) if scenario == "server" else query.turn(count)
    if scenario == "offline":
        built_in = 1e3 * samples / float(latencies.mean())
    else:
        built_in = percentiles([latencies])[_percentile(scenario)].value
    return Round(
        _metric(found),
        built_in,
        oracle(scenario, work.took_s[-count:], found.arrivals_s, samples),
        oracle(scenario, again.took_s, found.arrivals_s, samples),
    )


def _percentile(scenario: str) -> str:
    return SCENARIOS[scenario].split()[0]


def _metric(found: LoadGenResult) -> float:
    return found.throughput if found.percentile_ms is None else found.percentile_ms


def oracle(scenario: str, took_s: Sequence[float], arrivals_s: Array, samples: int) -> float:
    """What an exact harness would report of calls that took so long."""
    if scenario == "offline":
        return len(took_s) * samples / sum(took_s)
    latencies = list(lindley(arrivals_s, took_s)) if scenario == "server" else list(took_s)
    share = float(_percentile(scenario)[1:]) / 100
    return 1e3 * sorted(latencies)[int(len(latencies) * share)]


def lindley(arrivals_s: Array, service_s: Sequence[float]) -> Iterator[float]:
    """Seconds from each arrival to its answer, with one server: the next one waits max(0, w + s - gap)."""
    waited = 0.0
    for gap, service in zip([*np.diff(arrivals_s), np.inf], service_s, strict=True):
        yield waited + service
        waited = max(0.0, waited + service - gap)


def main() -> None:
    """Print one line a scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(
        f"built-in against {harness()}, {arguments.rounds} rounds of {arguments.seconds:g} s,"
        f" load average {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':<28}{'LoadGen':>9} {'built-in':>9} {'ratio':>7}   to the oracle: LoadGen, built-in")
    for scenario in SCENARIOS:
        found = agree(scenario, arguments.seconds, arguments.rounds)
        print(
            f"{scenario:<16}{found.metric:<12}"
            f"{statistics.median(r.loadgen for r in found.rounds):9.2f} "
            f"{statistics.median(r.built_in for r in found.rounds):9.2f}  ×{found.built_in:.3f}"
            f"{'':<16}×{found.loadgen_to_oracle:.3f}  ×{found.built_in_to_oracle:.3f}"
        )


if __name__ == "__main__":
    main()
