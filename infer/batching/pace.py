"""How long runs take by what they cost, learned from runs."""

from __future__ import annotations

import statistics
from collections import deque

_REMEMBERED = 8
"""Runs of each size of which the median counts: few, because a machine's load changes."""

_WORTH = 0.95
"""Twice the work in one run is worth the wait of others if it takes less than this part of two runs'."""


_LEAST = 3
"""Runs before a size is judged."""


class Pace:
    """Seconds of a run by its cost, in sizes that double; a size that is not known yet is tried.

    Cost is rows times their length, or pixels. Together, rows share what a run takes however small it is,
    and use the cores better; beyond some size neither gains, and large runs only make others wait.
    """

    def __init__(self) -> None:
        self._taken: dict[int, deque[float]] = {}

    def learn(self, cost: int, seconds: float) -> None:
        """Note what a run took. The first of its size says little: it also makes room for it."""
        size = cost.bit_length()
        if size in self._taken:
            self._taken[size].append(seconds / cost)
        else:
            self._taken[size] = deque(maxlen=_REMEMBERED)

    def seconds(self, cost: int) -> float | None:
        """What a run of this cost takes; None if no run of its size was seen."""
        taken = self._taken.get(cost.bit_length())
        return statistics.median(taken) * cost if taken else None

    @property
    def enough(self) -> int:
        """The cost beyond which more rows in one run gain nothing, as far as is known."""
        judged = [size for size in sorted(self._taken) if self._judged(size) is not None]
        for size in judged:
            here, beyond = self._judged(size), self._judged(size + 1)
            if beyond is None:
                return int(2 ** (size + 1) - 1)
            if here is not None and beyond > _WORTH * here:
                return int(2**size - 1)
        return 0

    def _judged(self, size: int) -> float | None:
        taken = self._taken.get(size, ())
        return statistics.median(taken) if len(taken) >= _LEAST else None
