"""Percentiles, ratios and their intervals, against closed forms and independent definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.measure.statistics import (
    Estimate,
    drawn_medians,
    mean,
    paired_ratio,
    percentiles,
    spread,
    unpaired_ratio,
    verdict,
)
from infer.signature import Array


def rounds_of(values: list[float], size: int) -> list[Array]:
    return [np.array(values[i : i + size]) for i in range(0, len(values), size)]


@given(
    st.lists(st.floats(0.01, 1e4), min_size=20, max_size=400),
    st.integers(3, 40),
)
def test_percentiles_are_those_of_all_queries(values: list[float], size: int) -> None:
    """The value of a percentile is numpy's "inverted_cdf" of all latencies, which is LoadGen's, and lies in
    its interval, which lies in the data."""
    found = percentiles(rounds_of(values, size))
    for q in (50.0, 90.0, 95.0, 99.0, 99.9):
        if len(values) * (1 - q / 100) < 1:
            assert f"p{q:g}" not in found
            continue
        estimate = found[f"p{q:g}"]
        assert estimate.value == pytest.approx(np.percentile(values, q, method="inverted_cdf"))
        assert min(values) <= estimate.low <= estimate.value <= estimate.high <= max(values)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of 100 samples with drift from round to round, 95 % intervals of the median hold the true one in at
    least 85 %: rounds, not single queries, are drawn again. Drawing queries would hold it in about 20 %."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        drift = rng.normal(0.0, 0.1, 30)
        rounds = [np.exp(rng.normal(d, 0.02, 50)) for d in drift]
        estimate = percentiles(rounds)["p50"]
        held += estimate.low <= 1.0 <= estimate.high
    assert held >= 85


def test_the_mean_is_over_queries() -> None:
    """Rounds may differ in length; each query counts once."""
    assert mean([np.array([1.0]), np.array([4.0, 4.0, 4.0])]).value == 3.25


def test_a_paired_ratio_is_blind_to_drift() -> None:
    """A machine that becomes three times slower on the way hides a difference of 5 % from medians taken
    apart, and not from ratios within rounds."""
    rng = np.random.default_rng(0)
    drift = np.linspace(1.0, 3.0, 40)
    theirs = drift * rng.normal(1.0, 0.005, 40)
    ours = 1.05 * drift * rng.normal(1.0, 0.005, 40)
    paired, apart = paired_ratio(list(ours), list(theirs)), unpaired_ratio(list(ours), list(theirs))
    assert 1.04 < paired.low < paired.value < paired.high < 1.06
    assert apart.low < 0.9
    assert apart.high > 1.2
    assert verdict(paired) == "slower"
    assert verdict(apart) == "undecided"


def test_of_several_starts_a_ratio_is_the_mean_of_the_middle_half() -> None:
    """Of the medians within each: of two starts, 2 and 8, it is 4; of eight, two that stayed 25 times as
    slow change nothing; and the rounds of a start do not make it weigh more."""
    two = paired_ratio([2.0, 2.1, 2.0, 8.0, 8.0, 7.0], [1.0] * 6, [0, 0, 0, 1, 1, 1])
    assert two.value == pytest.approx(4.0)
    eight = [1.0, 1.0, 2.0, 2.0, 8.0, 8.0, 25.0, 25.0]
    assert paired_ratio(eight, [1.0] * 8, range(8)).value == pytest.approx(4.0)
    long = paired_ratio([*eight, *eight[-1:] * 9], [1.0] * 17, [*range(8), *[7] * 9])
    assert long.value == pytest.approx(4.0)


@given(st.lists(st.tuples(st.floats(0.01, 1e4), st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_medians_of_draws_are_numpys(drawn: list[tuple[float, int, int]]) -> None:
    """Of two draws, which have each value as often as they say; one that has none is passed over."""
    values = np.array([value for value, *_ in drawn])
    often = np.array([times for _, *times in drawn], np.float64).T
    for found, times in zip(drawn_medians(values, often), often.astype(int), strict=True):
        assert not times.any() or found == np.median(np.repeat(values, times))


def test_intervals_of_several_starts_hold_the_truth() -> None:
    """Where each start has its own speed, ±5 %, and rounds within it are alike, intervals that draw rounds
    only hold the true ratio in less than half of 100 comparisons, those that draw starts in most."""
    rng = np.random.default_rng(0)
    starts = np.repeat(np.arange(8), 10)
    held = {"starts": 0, "rounds": 0}
    for _ in range(100):
        speeds = np.exp(rng.normal(0.0, 0.05, 8))[starts]
        ours = list(speeds * np.exp(rng.normal(0.0, 0.01, len(starts))))
        theirs = [1.0] * len(ours)
        for name, of_round in (("starts", starts.tolist()), ("rounds", [])):
            estimate = paired_ratio(ours, theirs, of_round)
            held[name] += estimate.low <= 1.0 <= estimate.high
    assert held["starts"] >= 90
    assert held["rounds"] < 50


def test_percentiles_and_means_draw_starts_too() -> None:
    """Two starts of very different speed: their intervals reach at least from one to the other."""
    rounds = [np.full(20, 1.0)] * 5 + [np.full(20, 3.0)] * 5
    starts = [0] * 5 + [1] * 5
    assert mean(rounds, starts).low < 1.0
    assert mean(rounds, starts).high > 3.0
    assert 1.0 < mean(rounds).low < mean(rounds).high < 3.0
    assert percentiles(rounds, starts)["p90"].low < 1.0
    assert percentiles(rounds)["p90"].high == 3.0


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.80, 0.90, "faster"),
        (1.10, 1.20, "slower"),
        (0.99, 1.01, "alike"),
        (0.90, 1.10, "undecided"),
        (0.97, 0.995, "faster"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, said: str) -> None:
    """A word is said only where every value of the interval allows it."""
    assert verdict(Estimate(math.sqrt(low * high), low, high)) == said


def test_spread_is_half_the_middle_eighty_percent() -> None:
    """Of 1 … 101, the 10th and 90th percentiles are 11 and 91, the median 51."""
    assert spread(list(range(1, 102))) == pytest.approx(40 / 51)
