"""The server scenario's queue and search, against queueing theory."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from infer.errors import BackendError
from infer.measure.queries import Call
from infer.measure.scenarios import (
    MIN_QUERIES,
    ImpossibleBoundError,
    Probe,
    built_in_probe,
    fastest_batch,
    highest_rate,
    probed,
    waited,
)
from tests.simulated import SimulatedQuery


def test_a_simulated_queue_follows_the_pollaczek_khinchine_formula() -> None:
    """Mean time in an M/D/1 queue of load r with service time 1 is 1 + r / (2 (1 - r))."""
    rng = np.random.default_rng(0)
    for load in (0.3, 0.6, 0.8):
        times = waited(rng.exponential(1 / load, 400_000), np.ones(400_000))
        assert times.mean() == pytest.approx(1 + load / (2 * (1 - load)), rel=0.03)


def test_latencies_of_served_queries_include_the_queue() -> None:
    """Ten queries that are due at once are answered one after another: the last waits for nine."""
    latencies = Call(lambda: time.sleep(0.01)).serve(np.zeros(10))
    assert (np.diff(latencies) >= 9.9).all()
    assert latencies[-1] >= 100


def test_the_search_finds_the_rate_that_theory_gives() -> None:
    """In an M/M/1 queue time in the system is exponential with rate mu - lambda, so the 99th percentile is
    ln(100) / (mu - lambda): with mu = 1000/s and a bound of 20 ms, lambda is 1000 - ln(100) / 0.02."""
    rng = np.random.default_rng(0)

    def probe(rate: float) -> Probe:
        gaps = rng.exponential(1 / rate, 100_000)
        latencies = 1e3 * waited(gaps, rng.exponential(1e-3, 100_000))
        return probed(rate, np.cumsum(gaps), latencies, 20.0)

    service_ms = rng.exponential(1.0, 2000)
    served = highest_rate(probe, service_ms, 20.0)
    truth = 1000 - math.log(100) / 0.02
    assert served.broken is not None
    assert served.best.rate < served.broken.rate <= 1.05 * served.best.rate
    assert served.best.rate == pytest.approx(truth, rel=0.07)
    assert all(p.met == (p.p99_ms <= 20) for p in served.tried)


def test_time_in_the_queue_is_what_service_does_not_explain() -> None:
    """Queries due at 0, 1 and 10 s that take 3, 2 and 1 s: the second waits for two."""
    due_s = np.array([0.0, 1.0, 10.0])
    latencies = 1e3 * waited(np.diff(due_s, prepend=0.0), np.array([3.0, 2.0, 1.0]))
    np.testing.assert_allclose(latencies, [3000, 4000, 1000])
    np.testing.assert_allclose(probed(1.0, due_s, latencies, 5000.0).queued, [0, 2000, 0], atol=1e-9)


def test_an_impossible_bound_says_the_best_reachable() -> None:
    """A lone query takes 5 ms, so no rate meets 1 ms, and that is found in few probes."""
    query = SimulatedQuery(5.0, 0)
    asked = []

    def probe(rate: float) -> Probe:
        asked.append(rate)
        return built_in_probe(query, 1.0, 0.5)(rate)

    with pytest.raises(ImpossibleBoundError, match=r"within 1 ms; the best reachable is 5\.\d"):
        highest_rate(probe, query.turn(500), 1.0)
    assert len(asked) < 6


def test_outliers_among_lone_queries_do_not_end_the_search_before_it_begins() -> None:
    """Two of a hundred lone queries took longer than the bound; served queries do not."""
    service_ms = np.concatenate([np.full(98, 0.02), np.full(2, 30.0)])
    served = highest_rate(built_in_probe(SimulatedQuery(0.02, 0), 5.0, 0.1), service_ms, 5.0)
    assert served.best.met


def test_a_probe_asks_at_least_so_often_that_two_queries_lie_beyond_the_percentile() -> None:
    """Few queries a second are served for longer, and arrivals are Poisson: gaps with a spread of 1."""
    due: list[np.ndarray] = []

    class Recorded(SimulatedQuery):
        def serve(self, due_s: np.ndarray) -> np.ndarray:
            due.append(due_s)
            return super().serve(due_s)

    probe = built_in_probe(Recorded(1.0, 0), 10.0, 1.0)
    probe(10.0)
    probe(3000.0)
    assert [len(each) for each in due] == [MIN_QUERIES, 3000]
    gaps = np.diff(due[1])
    assert gaps.mean() == pytest.approx(1 / 3000, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)


def test_the_fastest_batch_is_that_of_the_highest_throughput() -> None:
    """Time grows faster than the batch beyond 4; larger batches that fail are not looked at."""
    cost = {1: 4.0, 2: 4.0, 4: 4.0, 8: 20.0}

    def query(size: int) -> SimulatedQuery:
        if size > 8:
            raise BackendError("too large")
        return SimulatedQuery(cost[size], 0)

    assert fastest_batch(query, (1, 2, 4, 8, 16)) == 4
