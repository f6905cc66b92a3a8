"""Whether a measurement is worse than a baseline by more than is allowed, and sure to be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from infer.errors import InputError
from infer.measure.pairs import pairs
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
    """Every condition at every point that both records have. Raises `InputError` if they share none."""
    found = [
        _change(pair.now, pair.before, condition)
        for pair in pairs(now, baseline)
        for condition in conditions
    ]
    if not found:
        raise InputError(
            "the baseline has none of the measured candidates, scenarios and sizes; it has"
            f" {'; '.join(sorted({f'{s.candidate}, {s.scenario}' for s in baseline.series}))}"
        )
    return found


def _change(now: Series, before: Series, condition: Condition) -> Change:
    new, old = _metric(now, condition.metric), _metric(before, condition.metric)
    ratio = quotient(new, old)
    edge = 1 + condition.percent / 100
    if condition.percent >= 0:
        failed, possible = ratio.low > edge, ratio.high > edge
    else:
        failed, possible = ratio.high < edge, ratio.low < edge
    return Change(now.candidate, now.scenario, now.sizes, condition, ratio, failed, possible and not failed)


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
