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
        self._each: dict[int, float] = {}
        self.enough = 0
        """The cost beyond which more rows in one run gain nothing, as far as is known."""

    def learn(self, cost: int, seconds: float) -> None:
        """Note what a run took. The first of its size says little: it also makes room for it."""
        size = cost.bit_length()
        if size not in self._taken:
            self._taken[size] = deque(maxlen=_REMEMBERED)
            return
        self._taken[size].append(seconds / cost)
        self._each[size] = statistics.median(self._taken[size])
        self.enough = self._enough()

    def seconds(self, cost: int) -> float | None:
        """What a run of this cost takes; None if no run of its size was seen."""
        each = self._each.get(cost.bit_length())
        return None if each is None else each * cost

    def _enough(self) -> int:
        judged = {size for size, taken in self._taken.items() if len(taken) >= _LEAST}
        for size in sorted(judged):
            if size + 1 not in judged:
                return int(2 ** (size + 1) - 1)
            if self._each[size + 1] > _WORTH * self._each[size]:
                return int(2**size - 1)
        return 0
