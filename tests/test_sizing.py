"""The fleet's simulation, against queueing theory and laws that hold for every run of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.sizing.arrivals import Bursts, bursty, poisson
from bench.sizing.page import Sizing
from bench.sizing.service import Measured, Way, measure
from bench.sizing.simulation import ROUTING, Fleet, Outcome, Service, simulate
from tests.tiny import make_artifact

COUNT = 200_000


def exponential(seed: int) -> Service:
    """Times with mean 1, however many rows."""
    draws = iter(np.random.default_rng(seed).exponential(1.0, 2 * COUNT).tolist())
    return lambda rows: next(draws)


def fixed(rows: int) -> float:
    return 1.0


def run(rate: float, service: Service, fleet: Fleet, seed: int = 0) -> Outcome:
    rng = np.random.default_rng(seed)
    return simulate(poisson(rate, COUNT / rate, rng), service, fleet, rng)


def erlang_c(servers: int, load: float) -> float:
    """The part of requests that wait in M/M/c; `load` is the arrival rate over one server's (Erlang)."""
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.5), (1, 0.8), (4, 0.8), (16, 0.9)])
def test_m_m_c_follows_erlang_c(servers: int, utilisation: float) -> None:
    """The part that waits, the mean wait, and how busy servers are."""
    load = servers * utilisation
    found = run(load, exponential(1), Fleet(1, servers))
    waits = erlang_c(servers, load)
    assert (found.waits_s > 0).mean() == pytest.approx(waits, rel=0.04)
    assert found.waits_s.mean() == pytest.approx(waits / (servers - load), rel=0.08)
    assert found.utilisation == pytest.approx(utilisation, rel=0.02)


def test_the_tail_of_m_m_1_is_exponential() -> None:
    """Times in the system have rate 1 - load: their p99 is ln(100) / (1 - load)."""
    found = run(0.6, exponential(2), Fleet(1))
    for percent in (50, 90, 99):
        assert found.percentile_s(percent) == pytest.approx(-math.log(1 - percent / 100) / 0.4, rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_m_d_1_follows_pollaczek_and_khinchine(load: float) -> None:
    """The mean wait with fixed times is load / (2 (1 - load))."""
    found = run(load, fixed, Fleet(1))
    assert found.waits_s.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.05)


@pytest.mark.parametrize(("load", "most"), [(0.8, 3), (1.0, 5), (2.0, 4)])
def test_m_m_1_k_refuses_what_theory_says(load: float, most: int) -> None:
    """With room for K, the refused part is (1 - r) r^K / (1 - r^(K + 1)), and 1 / (K + 1) at r = 1."""
    found = run(load, exponential(3), Fleet(1, max_waiting=most))
    share = 1 / (most + 1) if load == 1 else (1 - load) * load**most / (1 - load ** (most + 1))
    assert found.refused_share == pytest.approx(share, rel=0.03)


def test_random_routing_makes_queues_of_their_own() -> None:
    """A Poisson process split at random is Poisson processes: each of 10 nodes is an M/M/1."""
    found = run(7.0, exponential(4), Fleet(10, routing="random"))
    assert found.waits_s.mean() == pytest.approx(0.7 / 0.3, rel=0.05)


def test_two_choices_follow_mitzenmacher() -> None:
    """In a large fleet the mean time in the system is the sum of load^(2^i - 2) over i = 1, 2, …"""
    load = 0.9
    found = run(500 * load, exponential(5), Fleet(500, routing="two choices"))
    mean = sum(load ** (2**i - 2) for i in range(1, 12))
    assert found.latencies_s.mean() == pytest.approx(mean, rel=0.05)


def test_policies_that_know_more_wait_less() -> None:
    """Random, two choices, least outstanding, on the same arrivals; round robin between the first and the
    last."""
    arrivals = poisson(90, 500, np.random.default_rng(6))
    waits = {
        routing: simulate(arrivals, exponential(6), Fleet(100, routing=routing), np.random.default_rng(6))
        .waits_s.mean()
        for routing in ROUTING
    }  # fmt: skip
    assert waits["least outstanding"] < waits["two choices"] < waits["random"]
    assert waits["least outstanding"] < waits["round robin"] < waits["random"]


def test_a_full_queue_is_answered_at_the_rate_of_full_batches() -> None:
    """Runs of 8 rows that take 2 s each answer 4 rows a second, whatever comes."""
    found = run(40.0, lambda rows: 1 + rows / 8, Fleet(1, max_batch=8, max_waiting=64))
    assert found.throughput == pytest.approx(4.0, rel=0.01)
    assert found.rows_a_run == pytest.approx(8, rel=0.01)
    assert found.utilisation == pytest.approx(1.0, rel=0.01)


TIMES = st.lists(st.floats(0, 20, allow_nan=False), min_size=2, max_size=60).map(
    lambda times: np.array(sorted(times))
)
DRAWS = st.lists(st.floats(0.001, 5), min_size=1, max_size=8)


def repeating(draws: list[float]) -> Service:
    """`draws` in turn."""
    count = 0

    def seconds(rows: int) -> float:
        nonlocal count
        count += 1
        return draws[count % len(draws)]

    return seconds


@settings(max_examples=50, deadline=None)
@given(
    times=TIMES,
    draws=DRAWS,
    fleet=st.builds(
        Fleet,
        nodes=st.integers(1, 4),
        workers=st.integers(1, 3),
        max_batch=st.integers(1, 5),
        max_waiting=st.none() | st.integers(1, 8),
        routing=st.sampled_from(list(ROUTING)),
    ),
)
def test_every_request_is_answered_or_refused_once(
    times: np.ndarray[tuple[int], np.dtype[np.float64]], draws: list[float], fleet: Fleet
) -> None:
    """None is lost, refused without a bound, or answered before its run could have taken place."""
    found = simulate(times, repeating(draws), fleet, np.random.default_rng(0), warm_up=0.0)
    assert found.arrived == len(times) == found.answered + found.refused
    assert found.refused == 0 or fleet.max_waiting is not None
    assert (found.waits_s >= 0).all()
    assert (found.latencies_s - found.waits_s >= min(draws) - 1e-9).all()
    assert found.busy_s <= found.span_s * fleet.nodes * fleet.workers + 1e-9
    assert 1 <= found.rows_a_run <= fleet.max_batch


@settings(max_examples=50, deadline=None)
@given(times=TIMES, draws=DRAWS, workers=st.integers(1, 4))
def test_another_worker_makes_no_one_wait_longer(
    times: np.ndarray[tuple[int], np.dtype[np.float64]], draws: list[float], workers: int
) -> None:
    """First come, first served, one at a time, with the same times: true of each request by itself."""
    rng = np.random.default_rng(0)
    fewer, more = (
        simulate(times, repeating(draws), Fleet(1, count), rng, warm_up=0.0).waits_s
        for count in (workers, workers + 1)
    )
    assert (more <= fewer + 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(times=TIMES, draws=DRAWS, slower=st.floats(1, 3))
def test_slower_runs_make_no_one_wait_less(
    times: np.ndarray[tuple[int], np.dtype[np.float64]], draws: list[float], slower: float
) -> None:
    """The same, with all runs longer by a factor."""
    rng = np.random.default_rng(0)
    quick, slow = (
        simulate(times, repeating([draw * factor for draw in draws]), Fleet(1, 2), rng, warm_up=0.0).waits_s
        for factor in (1.0, slower)
    )
    assert (slow >= quick - 1e-9).all()


def test_bursts_have_the_mean_and_the_peak_that_were_asked_for() -> None:
    """Over many periods the rate is the mean; counts in a tenth of a period vary as two rates do."""
    bursts = Bursts(peak=3.0, share=0.2, period_s=1.0)
    times = bursty(100.0, bursts, 4_000.0, np.random.default_rng(7))
    assert len(times) / 4_000 == pytest.approx(100, rel=0.05)
    assert (np.diff(times) >= 0).all()
    assert bursts.low == pytest.approx(0.5)
    counts = np.histogram(times, np.arange(0, 4_000, 0.02))[0]
    # of a Poisson process it is 1; of rates 300 and 50, 1 + 0.02 Var(rate) / mean, less where they change
    assert counts.var() / counts.mean() == pytest.approx(1 + 0.02 * 10_000 / 100, rel=0.1)
    regular = bursty(100.0, replace(bursts, regular=True), 1_000.0, np.random.default_rng(7))
    assert (regular % 1.0 >= 0.8).mean() == pytest.approx(0.6, rel=0.02)
    assert len(regular) / 1_000 == pytest.approx(100, rel=0.02)
    with pytest.raises(ValueError, match="below 0"):
        Bursts(peak=6.0, share=0.2, period_s=1.0)


def test_bursts_cost_more_than_their_mean() -> None:
    """The same load in bursts that are over what can be answered: a longer tail, and refusals."""
    rng, fleet = np.random.default_rng(8), Fleet(20, max_waiting=30, routing="two choices")
    even = simulate(poisson(12, 3_000, rng), exponential(8), fleet, rng)
    rough = simulate(bursty(12, Bursts(4.0, 0.2, 50.0), 3_000, rng), exponential(8), fleet, rng)
    assert even.refused == 0 < rough.refused
    assert rough.percentile_s(99) > 3 * even.percentile_s(99)


WAY = Way(2, 1, (1, 2, 4), ((0.010, 0.012, 0.008), (0.012, 0.012, 0.012), (0.016, 0.020, 0.016)))


def test_a_way_is_read_between_its_sizes() -> None:
    """Medians in a straight line; the rows that still pay, and the most that all workers then answer."""
    assert [WAY.median_s(rows) for rows in (1, 2, 3, 4, 8)] == pytest.approx(
        [0.010, 0.012, 0.014, 0.016, 0.032]
    )
    assert (WAY.most_rows, WAY.peak) == (4, pytest.approx(2 * 4 / 0.016))
    assert str(WAY) == "2 workers of 1 thread"
    drawn = {round(WAY.service(np.random.default_rng(seed))(1), 9) for seed in range(50)}
    assert drawn == {0.010, 0.012, 0.008}


def test_what_is_measured_is_kept(tmp_path: Path) -> None:
    """Every worker's runs are there, with conditions that name no host; a file gives back what it got."""
    found = measure(make_artifact(tmp_path / "net.infer"), [(1, 1), (2, 1)], rounds=1, runs=3)
    assert [len(times) for way in found.ways for times in way.seconds] == [3] * 6 + [6] * 6
    assert all(time > 0 for way in found.ways for times in way.seconds for time in times)
    assert "net" in found.conditions["model"]
    with pytest.raises(ValueError, match="several threads"):
        measure(tmp_path / "net.infer", [(1, 2)], rounds=1, runs=1, processor_time=True)
    found.save(tmp_path / "sizing.json")
    assert Measured.load(tmp_path / "sizing.json") == found


def test_a_fleet_answers_what_was_said_to_fit() -> None:
    """The highest load of a node keeps its p99 in the bound, and a tenth more than the peak does not."""
    sizing = Sizing(Measured({"model": "made up"}, (WAY,)), scale=0.1)
    most = sizing.most(WAY, 1, "two choices")
    assert 0 < most < WAY.peak
    assert sizing.fits(sizing.at(WAY, 1, "two choices", most))
    assert not sizing.fits(sizing.at(WAY, 1, "two choices", 1.1 * WAY.peak))
    nodes = sizing.nodes_for(5 * WAY.peak, Bursts(3.0, 0.2, 2.0))
    assert 5 < nodes <= 31
