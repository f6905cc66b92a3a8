"""Whether a measurement is worse than a baseline by more than is allowed, and sure to be."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from infer.errors import InputError
from infer.measure.pairs import pairs, where
from infer.measure.record import Record, Series
from infer.measure.statistics import Estimate, quotient

METRICS = ("p50", "p90", "p95", "p99", "p99.9", "mean", "throughput")


@dataclass(frozen=True)
class Condition:
    """`metric` grew (`percent` > 0) or shrank (`percent` < 0) by more than so many percent."""

    metric: str
    percent: float

    def __str__(self) -> str:
        sign = ">" if self.percent >= 0 else "<"
        return f"{self.metric} {sign} {self.percent:+g}%"


@dataclass(frozen=True)
class Change:
    """`ratio` is the metric now over that of the baseline. `failed`: all of its interval is beyond what is
    allowed; `undecided`: some of it is."""

    candidate: str
    scenario: str
    sizes: dict[str, int]
    condition: Condition
    ratio: Estimate
    failed: bool
    undecided: bool


def parse_condition(text: str) -> Condition:
    """A condition as people write it: "p99 > +10%", "throughput < -5%". Raises `InputError`."""
    match = re.fullmatch(r"\s*([\w.]+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*%\s*", text)
    if not match or match[1] not in METRICS:
        raise InputError(
            f"'{text}' is not METRIC > +N% or METRIC < -N%, such as \"p99 > +10%\"; the metrics are"
            f" {', '.join(METRICS)}"
        )
    percent = float(match[3])
    if (match[2] == ">") != (percent >= 0):
        raise InputError(f'\'{text}\' never makes sense: write "p99 > +10%" or "throughput < -5%"')
    return Condition(match[1], percent)


def changes(now: Record, baseline: Record, conditions: Sequence[Condition]) -> list[Change]:
    """Every condition at every point that both records have.

    They were measured apart, so what the machine itself did is not held against a candidate: how much its
    fixed piece of work changed from one to the other, and how much it spread in each, moves the ends of
    intervals that much further out. Raises `InputError` if the records have nothing in common, or are of
    different machines.
    """
    here, there = now.conditions, baseline.conditions
    if (here.cpu, here.cores) != (there.cpu, there.cores):
        raise InputError(
            f"the baseline was measured on another machine ({there.cpu}, {there.cores} cores), this is"
            f" {here.cpu} with {here.cores}; measure the baseline here"
        )
    found = [(pair.now, pair.before) for pair in pairs(now, baseline)]
    if not found:
        if not conditions:
            return []
        raise InputError(
            "the baseline has none of the measured candidates, scenarios and sizes; it has"
            f" {'; '.join(sorted({f'{s.candidate}, {s.scenario}' for s in baseline.series}))}"
        )
    drift = math.log(here.work_ms / there.work_ms)
    spread = math.hypot(math.log1p(here.noise), math.log1p(there.noise))
    machine = (min(drift, 0.0) - spread, max(drift, 0.0) + spread)
    return [_change(new, old, condition, machine) for new, old in found for condition in conditions]


def changes_within(record: Record, conditions: Sequence[Condition]) -> list[Change]:
    """Every condition of each candidate against the first, which took turns with it."""
    first = record.candidates[0].name if record.candidates else ""
    of_first = {where(series): series for series in record.series if series.candidate == first}
    return [
        _change(series, of_first[where(series)], condition, (0.0, 0.0))
        for series in record.series
        if series.candidate != first and where(series) in of_first
        for condition in conditions
    ]


_Machine = tuple[float, float]
"""The logarithms between which the machine alone may have changed how long things take."""


def _change(now: Series, before: Series, condition: Condition, machine: _Machine) -> Change:
    new, old = _metric(now, condition.metric), _metric(before, condition.metric)
    if condition.metric == "throughput":  # a slower machine gives less
        machine = (-machine[1], -machine[0])
    ratio = _ratio(new, old, machine)
    edge = 1 + condition.percent / 100
    if condition.percent >= 0:
        failed, possible = ratio.low > edge, ratio.high > edge
    else:
        failed, possible = ratio.high < edge, ratio.low < edge
    return Change(now.candidate, now.scenario, now.sizes, condition, ratio, failed, possible and not failed)


def _ratio(new: Estimate, old: Estimate, machine: _Machine) -> Estimate:
    """Of two that were measured apart. Had the machine become slower by itself, as much of it would be
    the machine's."""
    found = quotient(new, old)
    return Estimate(found.value, found.low / math.exp(machine[1]), found.high / math.exp(machine[0]))


def _metric(series: Series, name: str) -> Estimate:
    if name == "throughput":
        return series.throughput
    if name == "mean":
        return series.mean_ms
    if name not in series.latency_ms:
        raise InputError(
            f"{series.queries} queries of '{series.candidate}' say nothing of {name}; measure for longer"
            f" with --seconds"
        )
    return series.latency_ms[name]
