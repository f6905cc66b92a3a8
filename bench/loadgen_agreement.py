"""The built-in scenarios against LoadGen: do both report the same of the same work?

    python -m bench.loadgen_agreement [ARTIFACT] [--seconds N] [--rounds N]

Without an artifact, the work keeps a core busy for seeded times between 2 and 5 ms. In each round LoadGen
asks first; then the built-in scenario asks as many queries for the same work, in the server scenario at the
same arrivals, a third of what can be served. Both are also held against an oracle that needs no harness,
but only how long each of their calls really took: the percentile of these times, Lindley's recursion for a
queue, samples over time. So a machine that is slow for a while, which shifts the ratio of the two, does not
shift what either adds. The table shows medians over rounds, and of the ratios within each. The last line
says what each reports of a call that does nothing: that is its own overhead per query.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import infer
from infer.feeds import batch_dim, example_feeds, resized
from infer.measure.loadgen import LoadGenResult, harness, run_test
from infer.measure.queries import Call
from infer.measure.statistics import percentiles
from infer.signature import Array

SCENARIOS = {"single-stream": "p90", "multi-stream": "p99", "server": "p99", "offline": "samples/s"}
"""Scenario → what is compared; percentiles are in milliseconds."""

SAMPLES = 8
_BOUND_MS = 100.0
_CHUNK = bytes(2**15)

Answer = Callable[[int, int], object]
"""Answers the query of this number, of so many samples."""


class Work:
    """What the harnesses ask, from the query `first` on; `took_s` keeps how long each call really was."""

    def __init__(self, answer: Answer, first: int = 0) -> None:
        self._answer = answer
        self._first = first
        self.took_s: list[float] = []

    def __call__(self, samples: int) -> None:
        start = time.perf_counter()
        self._answer(self._first + len(self.took_s), samples)
        self.took_s.append(time.perf_counter() - start)


def busy(number: int, _samples: int) -> None:
    """Keep a core busy for the time of this query, without Python's lock, as a backend does."""
    end = time.perf_counter() + _TIMES_S[number % len(_TIMES_S)]
    while time.perf_counter() < end:
        zlib.crc32(_CHUNK)


_TIMES_S: list[float] = np.random.default_rng(0).uniform(0.002, 0.005, 997).tolist()


@dataclass(frozen=True)
class Round:
    """The metric of one scenario: from each harness, and from the oracle for that harness's own calls."""

    loadgen: float
    built_in: float
    loadgen_oracle: float
    built_in_oracle: float


@dataclass(frozen=True)
class Agreement:
    """Rounds of one scenario, and medians of ratios within each."""

    scenario: str
    rounds: tuple[Round, ...]

    @property
    def ratio(self) -> float:
        """Built-in to LoadGen."""
        return statistics.median(r.built_in / r.loadgen for r in self.rounds)

    @property
    def loadgen_to_oracle(self) -> float:
        return statistics.median(r.loadgen / r.loadgen_oracle for r in self.rounds)

    @property
    def built_in_to_oracle(self) -> float:
        return statistics.median(r.built_in / r.built_in_oracle for r in self.rounds)


def agree(scenario: str, answer: Answer, seconds: float, rounds: int) -> Agreement:
    """Ask in turns, `rounds` times, each harness for about `seconds`."""
    return Agreement(scenario, tuple(_round(scenario, answer, seconds) for _ in range(rounds)))


def _round(scenario: str, answer: Answer, seconds: float) -> Round:
    samples = SAMPLES if scenario in ("multi-stream", "offline") else 1
    work = Work(answer)
    for _ in range(20):
        work(samples)
    rate = 1 / 3 / statistics.mean(work.took_s)
    found = run_test(scenario, work, seconds, samples=samples, rate=rate, bound_ms=_BOUND_MS)
    count = len(found.latencies) // (samples if scenario == "offline" else 1)
    again = Work(answer, first=len(work.took_s) - count)  # those before were of the warm-up
    query = Call(lambda: again(samples))
    latencies = query.serve(found.arrivals_s) if scenario == "server" else query.turn(count)
    if scenario == "offline":
        built_in = 1e3 * samples / float(latencies.mean())
    else:
        built_in = percentiles([latencies])[SCENARIOS[scenario]].value
    return Round(
        _metric(found),
        built_in,
        oracle(scenario, work.took_s[-count:], found.arrivals_s, samples),
        oracle(scenario, again.took_s, found.arrivals_s, samples),
    )


def overhead(seconds: float) -> tuple[float, float]:
    """Mean latency in µs of a query that does nothing: by LoadGen, and by the built-in scenario."""
    found = run_test("single-stream", lambda _samples: None, seconds).latencies
    return 1e3 * float(np.mean(found)), 1e3 * float(np.mean(Call(lambda: None).turn(len(found))))


def _metric(found: LoadGenResult) -> float:
    return found.throughput if found.percentile_ms is None else found.percentile_ms


def oracle(scenario: str, took_s: Sequence[float], arrivals_s: Array, samples: int) -> float:
    """What a harness would report that takes no time itself, of calls that took so long."""
    if scenario == "offline":
        return len(took_s) * samples / sum(took_s)
    latencies = lindley(arrivals_s, took_s) if scenario == "server" else took_s
    share = float(SCENARIOS[scenario].removeprefix("p")) / 100
    return 1e3 * sorted(latencies)[int(len(took_s) * share)]


def lindley(arrivals_s: Array, service_s: Sequence[float]) -> Iterator[float]:
    """Seconds from each arrival to its answer, with one server: the next one waits max(0, w + s - gap)."""
    waited = 0.0
    for gap, service in zip([*np.diff(arrivals_s), np.inf], service_s, strict=True):
        yield waited + service
        waited = max(0.0, waited + service - gap)


def main() -> None:
    """Print one line a scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("artifact", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.artifact is None:
        _compare("seeded times", busy, arguments.seconds, arguments.rounds)
        return
    feeds = example_feeds(infer.Artifact.open(arguments.artifact))
    with infer.load(arguments.artifact) as session:
        batch = batch_dim(session.signature)
        if batch is None:
            raise SystemExit("the artifact's batch is fixed; give one whose batch may vary")
        sized = {size: resized(session.signature, feeds, {batch: size}) for size in (1, SAMPLES)}
        _compare(
            arguments.artifact.name,
            lambda _, samples: session.run(sized[samples]),
            arguments.seconds,
            arguments.rounds,
        )


def _compare(name: str, answer: Answer, seconds: float, rounds: int) -> None:
    print(
        f"{name}: built-in scenarios against {harness()}, {rounds} rounds of {seconds:g} s,"
        f" load average {os.getloadavg()[0]:.1f} at the start"
    )
    print(f"{'':<26}{'LoadGen':>9}{'built-in':>10}{'ratio':>8}   to the oracle: LoadGen, built-in")
    for scenario, metric in SCENARIOS.items():
        found = agree(scenario, answer, seconds, rounds)
        print(
            f"{scenario:<16}{metric:<10}"
            f"{statistics.median(r.loadgen for r in found.rounds):9.2f}"
            f"{statistics.median(r.built_in for r in found.rounds):10.2f}  ×{found.ratio:.3f}"
            f"{'':<18}×{found.loadgen_to_oracle:.3f}    ×{found.built_in_to_oracle:.3f}",
            flush=True,
        )
    loadgen, built_in = overhead(seconds)
    print(f"{'a call of nothing, µs':<26}{loadgen:9.2f}{built_in:10.2f}")


if __name__ == "__main__":
    main()
