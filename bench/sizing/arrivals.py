"""When requests come, in seconds from the start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.sizing.simulation import Floats


@dataclass(frozen=True)
class Bursts:
    """A load that is `peak` times the mean during a `share` of the time, and lower in between. A burst and
    a pause take `period_s` together: always if `regular`, else in the mean, with exponential lengths."""

    peak: float
    share: float
    period_s: float
    regular: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not 1 <= self.peak <= 1 / self.share:
            raise ValueError(f"{self}: between bursts the load would be below 0")

    @property
    def low(self) -> float:
        """The load between bursts, over the mean."""
        return (1 - self.peak * self.share) / (1 - self.share)


def poisson(rate: float, duration_s: float, rng: np.random.Generator) -> Floats:
    """Independent callers, `rate` requests a second together."""
    return np.sort(rng.uniform(0, duration_s, rng.poisson(rate * duration_s)))


def bursty(rate: float, bursts: Bursts, duration_s: float, rng: np.random.Generator) -> Floats:
    """A Poisson process whose rate goes up and down, `rate` in the mean. Irregular, it is an MMPP of two
    states; regular, it begins with a pause."""
    parts, now, high = [], 0.0, not bursts.regular and bool(rng.random() < bursts.share)
    while now < duration_s:
        share, load = (bursts.share, bursts.peak) if high else (1 - bursts.share, bursts.low)
        mean_s = share * bursts.period_s
        length = min(mean_s if bursts.regular else float(rng.exponential(mean_s)), duration_s - now)
        parts.append(now + poisson(rate * load, length, rng))
        now, high = now + length, not high
    return np.concatenate(parts)
