"""Two records beside each other: what both of them measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from infer.measure.record import Record, Series
from infer.measure.statistics import Estimate, quotient, unpaired_ratio


@dataclass(frozen=True)
class Pair:
    """A candidate in a scenario at a point, now and in an earlier record."""

    now: Series
    before: Series

    @cached_property
    def ratio(self) -> Estimate:
        """Time per sample now over then, measured apart; below 1 is faster.

        Of the server scenario, where the latency is given and the rate is found: the rate then over now.
        """
        if self.now.scenario == "server":
            return quotient(self.before.throughput, self.now.throughput)
        # a query of the offline scenario has as many samples as were fastest that day
        return unpaired_ratio(
            [median / self.now.samples for median in self.now.medians_ms],
            [median / self.before.samples for median in self.before.medians_ms],
        )


def pairs(now: Record, before: Record) -> list[Pair]:
    """Every series of `now` whose candidate, scenario, bound and sizes `before` has, too."""
    earlier = {_key(series): series for series in before.series}
    return [Pair(series, earlier[_key(series)]) for series in now.series if _key(series) in earlier]


def where(series: Series) -> tuple[object, ...]:
    """Scenario, sizes and bound, which are alike for those that can be compared."""
    return series.scenario, tuple(sorted(series.sizes.items())), series.bound_ms


def _key(series: Series) -> tuple[object, ...]:
    return series.candidate, *where(series)
