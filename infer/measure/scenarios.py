"""The four ways in which MLPerf's LoadGen asks, and what each is judged by.

    single-stream   one sample after another: the 90th percentile of latency
    multi-stream    some samples at once, one such query after another: the 99th percentile
    server          samples arrive at random (Poisson): the highest rate whose 99th percentile meets a bound
    offline         all samples at hand: throughput

Source: MLPerf inference rules, scenarios and metrics. The built-in forms follow the same definitions;
results are unofficial.
"""

from __future__ import annotations

import math
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

MIN_QUERIES = 200
"""Of a probe of the server scenario: two lie beyond the 99th percentile."""

RATE_STEP = 0.05
_OUTWARD = 1.4
_MAX_OUTWARD = 12


class ImpossibleBoundError(InferError):
    """No rate meets the latency bound."""


@dataclass(frozen=True)
class Probe:
    """One rate that was tried: samples a second, the latencies and how much of each was spent in the
    queue, in milliseconds."""

    rate: float
    latencies: Array
    queued: Array
    p99_ms: float
    met: bool


def probed(rate: float, due_s: Array, latencies: Array, bound_ms: float) -> Probe:
    """What queries that were due at `due_s` and took `latencies` say of their rate."""
    done_s = due_s + latencies / 1e3
    begun_s = np.maximum(due_s, np.concatenate([[-np.inf], done_s[:-1]]))
    p99 = float(np.percentile(latencies, 99.0, method="inverted_cdf"))
    return Probe(rate, latencies, 1e3 * (begun_s - due_s), p99, p99 <= bound_ms)


@dataclass(frozen=True)
class Served:
    """What the server scenario found: the best rate that meets the bound, the lowest that breaks it, None
    if none did, and every rate tried, in order."""

    best: Probe
    broken: Probe | None
    tried: tuple[Probe, ...]


def built_in_probe(
    query: Query, bound_ms: float, seconds: float, seed: int = 0
) -> Callable[[float], Probe]:
    """Serves one rate for `seconds`, with the same arrivals each time, scaled."""

    def probe(rate: float) -> Probe:
        count = max(MIN_QUERIES, int(seconds * rate))
        due_s = np.cumsum(np.random.default_rng(seed).exponential(size=count)) / rate
        return probed(rate, due_s, query.serve(due_s), bound_ms)

    return probe


def highest_rate(
    probe: Callable[[float], Probe],
    service_ms: Array,
    bound_ms: float,
    progress: Callable[[str], None] = lambda _: None,
) -> Served:
    """The highest rate whose 99th percentile stays within `bound_ms`, to 5 %.

    `service_ms` are latencies of lone queries: a simulated queue with these says where to begin. The rate
    grows or shrinks until the bound lies between two rates, and halved in between, on a log scale.
    Raises `ImpossibleBoundError`.
    """
    tried: list[Probe] = []

    def ask(rate: float) -> Probe:
        progress(f"serving {rate:.4g} samples a second")
        tried.append(probe(rate))
        return tried[-1]

    # at a tenth of what can be served, hardly any query waits for another
    least = 100.0 / float(service_ms.mean())
    rate = least
    if np.median(service_ms) < bound_ms:
        rate = max(least, _simulated_rate(service_ms, bound_ms))
    met: Probe | None = None
    broken: Probe | None = None
    while met is None or (broken is None and len(tried) < _MAX_OUTWARD):
        found = ask(rate)
        if found.met:
            met, rate = found, rate * _OUTWARD
        elif rate == least:
            break
        else:
            broken, rate = found, max(least, rate / _OUTWARD)
    if met is None:
        alone, best = _p99(service_ms), min(p.p99_ms for p in tried)
        raise ImpossibleBoundError(
            f"no rate has a 99th percentile within {bound_ms:g} ms; the best reachable is"
            f" {min(alone, best):.3g} ms"
            if alone > bound_ms
            else f"no rate was seen to have a 99th percentile within {bound_ms:g} ms, the best had"
            f" {best:.3g} ms; but that of lone queries was {alone:.3g} ms, so the machine may be too busy"
            f" to say: measure again, or for longer with --seconds"
        )
    while broken is not None and broken.rate / met.rate > 1 + RATE_STEP:
        found = ask(math.sqrt(met.rate * broken.rate))
        if found.met:
            met = found
        else:
            broken = found
    return Served(met, broken, tuple(tried))


def _simulated_rate(service_ms: Array, bound_ms: float) -> float:
    """The highest rate at which a queue with these service times meets the bound, by bisection; half the
    rate that it could serve if none does."""
    rng = np.random.default_rng(0)
    service = rng.choice(service_ms, 20_000) / 1e3
    gaps = rng.exponential(size=len(service))
    low, high = 0.0, 1 / float(service.mean())
    for _ in range(20):
        rate = (low + high) / 2
        if _p99(1e3 * waited(gaps / rate, service)) <= bound_ms:
            low = rate
        else:
            high = rate
    return low or 0.5e3 / float(service_ms.mean())


def waited(gaps: Array, service: Array) -> Array:
    """Time from arrival to answer in a queue with one server (Lindley's recursion), in the same unit."""
    arrivals, done = np.cumsum(gaps), 0.0
    found = np.empty(len(arrivals))
    for i, (arrival, taken) in enumerate(zip(arrivals.tolist(), service.tolist(), strict=True)):
        done = max(arrival, done) + taken
        found[i] = done - arrival
    return found


def fastest_batch(query: Callable[[int], Query], sizes: Sequence[int] = OFFLINE_BATCHES) -> int:
    """The batch size of the highest throughput, of the fastest of three runs each; `query` asks with a
    batch of that size. Larger ones that fail are left out."""
    best, best_rate = sizes[0], 0.0
    for size in sizes:
        try:
            asked = query(size)
            asked.turn(1)
            rate = size / float(asked.turn(3).min())
        except InferError:
            break
        if rate > best_rate:
            best, best_rate = size, rate
    return best


def _p99(latencies: Array) -> float:
    assert 99.0 in PERCENTILES
    return float(np.percentile(latencies, 99.0, method="inverted_cdf"))
