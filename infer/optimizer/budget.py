"""What a variant may lose, as people write it, and whether it kept to that.

equal               every answer within the tolerance of the conversion (the default)
cosine>=0.999       the mean cosine of answers to the reference's, of the output where it is lowest
min-cosine>=0.99    the lowest one
accuracy-0.5%       a metric of `infer eval`, which may fall by half a point
rmse+1%             an error, which may grow by a hundredth of what it is

What are no floats, such as labels, have no cosine: the share of elements that are equal takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infer.errors import InputError
from infer.evaluation import is_unbounded, lower_is_better
from infer.parity import TOLERANCES, Tolerance, alike, compare
from infer.signature import Array

EQUAL = "equal"
COSINES = ("cosine", "min-cosine")
BATCH_COSINE = "batch-cosine"
"""The mean cosine of rows in the batch where it is lowest."""

FARTHER = 2.0
"""A few answers may be so much farther from the reference's (1 - cosine) than many were."""

CLOSEST = 1e-6
"""A cosine is not told from 1 any closer."""

_BESIDE = 0.01
"""With a metric for a budget, nobody asked how near answers are; rows in a batch may be so far off."""

Answers = Sequence[Mapping[str, Array]]
"""Outputs by name, for one feed after another."""


@dataclass(frozen=True)
class Budget:
    """One condition. `least` is the lowest cosine; `change` how far a metric may move, in percent: points
    of a share, which lies between 0 and 1; of its value for errors, and for others that do not."""

    metric: str = EQUAL
    least: float = 0.0
    change: float = 0.0

    def __str__(self) -> str:
        if self.metric == EQUAL:
            return EQUAL
        if self.metric in COSINES:
            return f"{self.metric}>={self.least:g}"
        return f"{self.metric}{self.change:+g}%"

    @property
    def of_task(self) -> bool:
        """Whether it is about a metric, for which data with known answers is needed."""
        return self.metric != EQUAL and self.metric not in COSINES

    def broken(self, found: Mapping[str, float], reference: Mapping[str, float]) -> str | None:
        """Why these figures are beyond the budget, or None; those of the reference are of its metrics."""
        value = found[self.metric]
        if self.metric == EQUAL:
            return None if value else "its answers differ"
        if self.metric in COSINES:
            return None if value >= self.least else f"{self.metric} {value:.5f} < {self.least:g}"
        before = reference[self.metric]
        of_share = 0 <= before <= 1 and not is_unbounded(self.metric)
        limit = before + self.change / 100 * (1.0 if of_share else abs(before))
        worse = value > limit if lower_is_better(self.metric) else value < limit
        return f"{self.metric} {before:.4f} → {value:.4f}" if worse else None


def parse_budget(text: str) -> Budget:
    """Raises `InputError`."""
    text = text.strip()
    if text == EQUAL:
        return Budget()
    if match := re.fullmatch(rf"({'|'.join(COSINES)})\s*>=\s*(\d*\.?\d+)", text):
        least = float(match[2])
        if least > 1:
            raise InputError(f"the budget '{text}' cannot be met: no cosine is above 1")
        return Budget(match[1], least=least)
    if match := re.fullmatch(r"([a-z][\w.]*)\s*([+-]\d*\.?\d+)\s*%", text):
        return Budget(match[1], change=float(match[2]))
    raise InputError(
        f"'{text}' is no budget; write equal, cosine>=0.999, min-cosine>=0.99, or a metric of infer eval"
        f" and how far it may fall, such as accuracy-0.5%"
    )


def figures(
    expected: Answers, found: Answers, tolerances: Mapping[str, Tolerance] = TOLERANCES
) -> dict[str, float]:
    """How near answers are: "equal" (1 or 0), "cosine" and "min-cosine", see `cosines`."""
    equal = all(
        difference.within
        for before, after in zip(expected, found, strict=True)
        for difference in compare(before, after, tolerances)
    )
    cosines = cosines_of(expected, found)
    return {
        EQUAL: float(equal),
        "cosine": min((float(c.mean()) for c in cosines.values()), default=1.0),
        "min-cosine": min((float(c.min()) for c in cosines.values()), default=1.0),
    }


def broken_unlike(budgets: Sequence[Budget], alone: Mapping[str, float], unlike: float) -> str | None:
    """Why feeds that are not like those that are judged are too far off, or None. `alone` are the figures
    of what is judged, and `unlike` the cosine of the others.

    These are few: they may be as far off as the farthest that is judged, or `FARTHER` times as far as the
    budget lets the mean be. What was calibrated and judged with feeds that are all alike may be right on
    these only.
    """
    for budget in budgets:
        if budget.metric == EQUAL:
            continue
        farthest = 1 - alone["min-cosine"]
        given = max(farthest, _BESIDE / FARTHER) if budget.of_task else 1 - budget.least
        least = 1 - max(FARTHER * given, farthest)
        if unlike < least:
            return f"cosine of rows that are not like the others {unlike:.5f} < {least:.5g}"
    return None


def broken_beside(
    budgets: Sequence[Budget], alone: Mapping[str, float], beside: float, same: float
) -> str | None:
    """Why rows in a batch are too far off, or None. `alone` are the figures of feeds alone, `beside` the
    cosine of the batch that is farthest off, and `same` that of its rows alone.

    These rows are few, and some are made: they may be as far off as the budget lets the mean of all be, or
    `FARTHER` times as far as they are alone; with a metric for a budget, as the farthest feed is alone.
    """
    for budget in budgets:
        if budget.metric == EQUAL:
            continue
        own = FARTHER * max(1 - same, CLOSEST)
        given = max(FARTHER * (1 - alone["min-cosine"]), _BESIDE) if budget.of_task else 1 - budget.least
        least = 1 - max(own, given)
        if beside < least:
            return f"cosine of rows in a batch {beside:.5f} < {least:.5g}"
    return None


def cosines_of(expected: Answers, found: Answers) -> dict[str, Array]:
    """For each output, the cosine of every feed's answer, as `cosines` gives it."""
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for before, after in zip(expected, found, strict=True):
        for name, array in before.items():
            pairs.setdefault(name, []).append((array, after[name]))
    return {name: cosines(each) for name, each in pairs.items()}


def cosines(pairs: Sequence[tuple[Array, Array]]) -> Array:
    """Of each pair of arrays; of single elements, of all of them as one pair, since the cosine of two
    numbers is 1 or -1 whatever they are. What has none is judged as `infer.parity.alike` does it.
    """
    single = [a.shape == b.shape and a.size == 1 for a, b in pairs]
    joined = [pair for pair, one in zip(pairs, single, strict=True) if one]
    rest = [pair for pair, one in zip(pairs, single, strict=True) if not one]
    if joined:
        first, second = (np.concatenate([pair[side].ravel() for pair in joined]) for side in (0, 1))
        rest.append((first, second))
    return np.array([alike(a, b) for a, b in rest])
