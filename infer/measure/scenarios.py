"""The four ways in which MLPerf's LoadGen asks, and what each is judged by.

    single-stream   one sample after another: the 90th percentile of latency
    multi-stream    some samples at once, one such query after another: the 99th percentile
    server          samples arrive at random (Poisson): the highest rate whose 99th percentile meets a bound
    offline         all samples at hand: throughput

Source: MLPerf inference rules, scenarios and metrics. The built-in forms follow the same definitions;
results are unofficial.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from infer.errors import InferError
from infer.measure.queries import Query
from infer.measure.statistics import PERCENTILES
from infer.signature import Array

SCENARIOS = {"single-stream": "p90", "multi-stream": "p99", "server": "p99", "offline": "throughput"}
"""Name → the metric it is judged by."""

MULTI_STREAM_SAMPLES = 8
OFFLINE_BATCHES = (1, 2, 4, 8, 16, 32)

_MIN_QUERIES = 200
_RATE_STEP = 0.05


class ImpossibleBoundError(InferError):
    """No rate meets the latency bound."""


@dataclass(frozen=True)
class Probe:
    """One rate that was tried: samples a second, and the latencies in milliseconds."""

    rate: float
    latencies: Array
    p99_ms: float
    met: bool


def highest_rate(
    query: Query,
    service_ms: Array,
    bound_ms: float,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
    seed: int = 0,
) -> tuple[Probe, list[Probe]]:
    """The highest rate whose 99th percentile stays within `bound_ms`, and all rates tried.

    `service_ms` are latencies of lone queries. A simulated queue with these says where to begin; the
    rate is then raised until the bound is broken, or lowered until it is met, in steps of 5 %, each of
    which is run for at least `seconds` with the same arrivals, scaled. Raises `ImpossibleBoundError`.
    """
    alone = _p99(service_ms)
    if alone > bound_ms:
        raise ImpossibleBoundError(
            f"no rate has a 99th percentile within {bound_ms:g} ms: that of a lone query is {alone:.3g} ms;"
            f" the best bound that can be met is a little above it"
        )
    rng = np.random.default_rng(seed)
    tried: list[Probe] = []

    def probe(rate: float) -> Probe:
        progress(f"{rate:.4g} samples a second")
        count = max(_MIN_QUERIES, int(seconds * rate))
        gaps = np.random.default_rng(seed).exponential(size=count)
        latencies = query.serve(np.cumsum(gaps) / rate)
        p99 = _p99(latencies)
        tried.append(Probe(rate, latencies, p99, p99 <= bound_ms))
        return tried[-1]

    rate = _simulated_rate(service_ms, bound_ms, rng)
    best = probe(rate)
    step = 1 + _RATE_STEP if best.met else 1 / (1 + _RATE_STEP)
    while len(tried) < 40:
        rate *= step
        found = probe(rate)
        if found.met != best.met:
            return (found if found.met else best), tried
        best = found
    if best.met:
        return best, tried
    raise ImpossibleBoundError(
        f"no rate down to {rate:.3g} samples a second has a 99th percentile within {bound_ms:g} ms; the"
        f" best seen is {min(p.p99_ms for p in tried):.3g} ms"
    )


def _simulated_rate(service_ms: Array, bound_ms: float, rng: np.random.Generator) -> float:
    """The highest rate at which a queue with these service times meets the bound, by bisection."""
    service = rng.choice(service_ms, 20_000) / 1e3
    gaps = rng.exponential(size=len(service))
    low, high = 0.0, 1 / float(service.mean())
    for _ in range(20):
        rate = (low + high) / 2
        if _p99(1e3 * waited(gaps / rate, service)) <= bound_ms:
            low = rate
        else:
            high = rate
    return low or high / 2


def waited(gaps: Array, service: Array) -> Array:
    """Time from arrival to answer in a queue with one server (Lindley's recursion), in the same unit."""
    arrivals, done = np.cumsum(gaps), 0.0
    found = np.empty(len(arrivals))
    for i, (arrival, taken) in enumerate(zip(arrivals.tolist(), service.tolist(), strict=True)):
        done = max(arrival, done) + taken
        found[i] = done - arrival
    return found


def fastest_batch(run: Callable[[int], object], sizes: Sequence[int] = OFFLINE_BATCHES) -> int:
    """The batch size of the highest throughput, of three runs each. Larger ones that fail are left out."""
    best, best_rate = sizes[0], 0.0
    for size in sizes:
        try:
            run(size)
            taken = []
            for _ in range(3):
                start = time.perf_counter()
                run(size)
                taken.append(time.perf_counter() - start)
        except InferError:
            break
        if size / min(taken) > best_rate:
            best, best_rate = size, size / min(taken)
    return best


def _p99(latencies: Array) -> float:
    assert 99.0 in PERCENTILES
    return float(np.percentile(latencies, 99.0, method="inverted_cdf"))
