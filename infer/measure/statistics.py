"""What latencies say, and how sure that is.

Queries are timed in rounds, in which all candidates take turns. A machine drifts from round to round, so
queries of one round are alike and rounds are what is drawn again when an interval is computed (a
bootstrap of clusters); ratios are taken within each round. Where candidates were started several times,
each round has the number of its start: a process keeps the speed it began with (where its memory came to
lie, which cores its threads took), so starts are drawn first, then rounds of each.

Source of the levels: Kalibera and Jones 2013, "Rigorous benchmarking in reasonable time".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infer.signature import Array

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

VERDICTS = ("faster", "slower", "alike", "undecided")

_DRAWS = 1000
_CONFIDENCE = 0.95
_ALIKE = 0.02


@dataclass(frozen=True)
class Estimate:
    """A value, and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float


def percentiles(rounds: Sequence[Array], starts: Sequence[int] = ()) -> dict[str, Estimate]:
    """Each of `PERCENTILES` that the number of queries allows, by name ("p99"), of latencies in rounds.

    The percentile is the smallest latency that at least so many queries stay within, as in LoadGen. One
    of which fewer than one query lies beyond is left out.
    """
    latencies = np.concatenate([np.asarray(r, np.float64) for r in rounds])
    order = np.argsort(latencies, kind="stable")
    ordered = latencies[order]
    owner = np.repeat(np.arange(len(rounds)), [len(r) for r in rounds])[order]
    wanted = [q for q in PERCENTILES if len(latencies) * (1 - q / 100) >= 1]
    draws = np.array([_at(ordered, weights[owner], wanted) for weights in _draw(len(rounds), starts)])
    whole = _at(ordered, np.ones(len(ordered)), wanted)
    return {
        f"p{q:g}": _estimate(value, draws[:, i], starts)
        for i, (q, value) in enumerate(zip(wanted, whole, strict=True))
    }


def mean(rounds: Sequence[Array], starts: Sequence[int] = ()) -> Estimate:
    """The mean over all queries."""
    sums = np.array([np.sum(r) for r in rounds], np.float64)
    counts = np.array([len(r) for r in rounds], np.float64)
    draws = np.array([(w @ sums) / (w @ counts) for w in _draw(len(rounds), starts)])
    return _estimate(float(sums.sum() / counts.sum()), draws, starts)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], starts: Sequence[int] = ()) -> Estimate:
    """How many times as long `ours` takes as `theirs`: the median over rounds of the ratio within each; of
    several starts, the geometric mean of the middle half of theirs."""
    ratios = np.asarray(ours, np.float64) / np.asarray(theirs, np.float64)
    groups = _groups(len(ratios), starts)

    def over_starts(draws: Array) -> Array:
        logs = np.stack([np.log(drawn_medians(ratios[group], draws[:, group])) for group in groups], axis=1)
        often = np.stack([draws[:, group].sum(axis=1) / len(group) for group in groups], axis=1)
        return np.asarray(np.exp(_middle_means(logs, often)))

    (whole,) = over_starts(np.ones((1, len(ratios))))
    return _estimate(float(whole), over_starts(_draw(len(ratios), starts)), starts)


def unpaired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The ratio of medians of rounds that did not run together, such as a record's and today's."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    draws = drawn_medians(a, _draw(len(a))) / drawn_medians(b, _draw(len(b), seed=1))
    return _estimate(float(np.median(a) / np.median(b)), draws)


def quotient(new: Estimate, old: Estimate) -> Estimate:
    """The ratio of two estimates that were made apart: on a log scale, distances to the ends add like
    errors do.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures", MOVER.
    """
    middle = math.log(new.value / old.value)
    down = math.hypot(math.log(new.value / new.low), math.log(old.high / old.value))
    up = math.hypot(math.log(new.high / new.value), math.log(old.value / old.low))
    return Estimate(math.exp(middle), math.exp(middle - down), math.exp(middle + up))


def verdict(ratio: Estimate) -> str:
    """What a ratio of times allows to say: "faster", "slower", "alike" (within 2 %), or "undecided"."""
    if ratio.low >= 1 - _ALIKE and ratio.high <= 1 + _ALIKE:
        return "alike"
    if ratio.high < 1:
        return "faster"
    return "slower" if ratio.low > 1 else "undecided"


def spread(values: Sequence[float]) -> float:
    """How far apart the values are: half the distance from the 10th to the 90th percentile, relative to
    the median. 0.05 is ±5 %."""
    low, middle, high = np.percentile(np.asarray(values, np.float64), [10, 50, 90])
    return float((high - low) / 2 / middle)


def _draw(count: int, starts: Sequence[int] = (), seed: int = 0) -> Array:
    """How often each of `count` rounds is in each draw, shape = (draws, count).

    The same every time, so that results are, too. `starts` has the start of each round; none are one start.
    """
    rng = np.random.default_rng(seed)
    groups = _groups(count, starts)
    found = np.zeros((_DRAWS, count))
    often = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=_DRAWS)
    for place, group in enumerate(groups):
        even = np.full(len(group), 1 / len(group))
        found[:, group] = rng.multinomial(often[:, place] * len(group), even)
    return found


def _groups(count: int, starts: Sequence[int]) -> list[Array]:
    """The places of each start's rounds."""
    of_round = np.asarray(starts) if len(starts) else np.zeros(count, int)
    return [np.flatnonzero(of_round == start) for start in np.unique(of_round)]


def drawn_medians(values: Array, often: Array) -> Array:
    """The median of each draw, which has each of `values` as often as its row of `often` says, shape =
    (draws, values). Where that is never, the answer means nothing."""
    order = np.argsort(values)
    reached = np.cumsum(often[:, order], axis=1)
    last = reached[:, -1:]
    # the two in the middle, which are one if their number is odd
    middle = [(reached <= place).sum(axis=1) for place in ((last - 1) // 2, last // 2)]
    lower, upper = (values[order][np.minimum(places, len(values) - 1)] for places in middle)
    return np.asarray((lower + upper) / 2)


def _at(ordered: Array, weights: Array, wanted: Sequence[float]) -> list[float]:
    reached = np.cumsum(weights)
    total = reached[-1]
    # a rounding error in the sum must not move a percentile to the next query
    places = [int(np.searchsorted(reached, total * q / 100 - 1e-9)) for q in wanted]
    return [float(ordered[min(place, len(ordered) - 1)]) for place in places]


def _middle_means(values: Array, often: Array) -> Array:
    """The mean of the middle half of each row's values, which count as often as `often` says; both have the
    shape (draws, values). Now and then a process starts badly and stays many times as slow: a quarter of
    such starts changes nothing here, and fewer starts are needed than for a median."""
    order = np.argsort(values, axis=1)
    values, often = (np.take_along_axis(each, order, axis=1) for each in (values, often))
    upper = np.cumsum(often, axis=1)
    low, high = upper[:, -1:] / 4, upper[:, -1:] * 3 / 4
    inside = np.clip(upper, low, high) - np.clip(upper - often, low, high)
    return np.asarray(np.sum(inside * values, axis=1) / inside.sum(axis=1))


def _estimate(value: float, draws: Array, starts: Sequence[int] = ()) -> Estimate:
    tail = (1 - _CONFIDENCE) / 2 * 100
    low, high = np.percentile(draws, [tail, 100 - tail])
    if not math.isfinite(value):
        raise ValueError("a latency is not finite")
    low, high = min(value, float(low)), max(value, float(high))
    if len(set(starts)) < 2:
        return Estimate(value, low, high)
    wider = _few(len(set(starts)))
    return Estimate(value, value * (low / value) ** wider, value * (high / value) ** wider)


def _few(starts: int) -> float:
    """How much wider, on a log scale, an interval must be because few starts were drawn from: they vary
    less than all starts would, and by chance, so that Student's t takes the place of the normal.

    Source: Abramowitz and Stegun 26.7.5, t from a normal quantile.
    """
    free, z = starts - 1, 1.959964
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return t / z * math.sqrt(starts / free)
