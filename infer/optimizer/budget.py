"""What a variant may lose, as people write it, and whether it kept to that.

equal               every answer within the tolerance of the conversion (the default)
cosine>=0.999       the mean cosine of answers to the reference's, of the output where it is lowest
min-cosine>=0.99    the lowest one
accuracy-0.5%       a metric of `infer eval`, which may fall by half a point
rmse+1%             an error, which may grow by a hundredth of what it is

What are no floats, such as labels, have no cosine: the share of elements that are equal takes its place.

A cosine does not see how large answers are: logits that are all doubled have one of 1. So where a cosine is
asked for, answers must be as long as the reference's, too, to within what that cosine lets them be turned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infer.errors import InputError
from infer.evaluation import is_unbounded, lower_is_better
from infer.parity import TOLERANCES, Tolerance, alike, comparable_values, compare
from infer.signature import Array

EQUAL = "equal"
COSINES = ("cosine", "min-cosine")
BATCH_COSINE = "batch-cosine"
"""The mean cosine of rows in the batch where it is lowest."""

LENGTH = "length"
"""How long all answers together are, as vectors, over the reference's: of the output where it is farthest
from 1."""

FROM_MEAN = "cosine-from-mean"
"""The cosine of single numbers, seen from their mean: of the output where it is lowest; 1 without any."""

FARTHER = 2.0
"""A few answers may be so much farther from the reference's (1 - cosine) than many were."""

CLOSEST = 1e-6
"""A cosine is not told from 1 any closer."""

_BESIDE = 0.01
"""With a metric for a budget, nobody asked how near answers are; rows in a batch may be so far off."""

_ENDLESS = 1e6
"""What is not 0 is so many times as long as what is."""

_SEVERAL, _VARIED = 8, 1e-3
"""So many single numbers have a mean from which to look at them, if they vary by this part of it."""

Answers = Sequence[Mapping[str, Array]]
"""Outputs by name, for one feed after another."""

Pairs = Sequence[tuple[Array, Array]]
"""What was expected, and what was found, of one output."""


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
            for name, cosine in ((self.metric, value), (FROM_MEAN, found[FROM_MEAN])):
                if cosine < self.least:
                    return f"{name} {cosine:.5f} < {self.least:g}"
            length = found[LENGTH]
            return None if abs(length - 1) <= _room(self.least) else f"answers are ×{length:.3g} as large"
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
    """How near answers are: "equal" (1 or 0), "cosine" and "min-cosine", see `cosines`, `FROM_MEAN` and
    `LENGTH`."""
    equal = all(
        difference.within
        for before, after in zip(expected, found, strict=True)
        for difference in compare(before, after, tolerances)
    )
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for before, after in zip(expected, found, strict=True):
        for name, array in before.items():
            pairs.setdefault(name, []).append((array, after[name]))
    near = [cosines(each) for each in pairs.values()]
    return {
        EQUAL: float(equal),
        "cosine": min((float(c.mean()) for c in near), default=1.0),
        "min-cosine": min((float(c.min()) for c in near), default=1.0),
        FROM_MEAN: min((cosine_from_mean(each) for each in pairs.values()), default=1.0),
        LENGTH: farthest_from_1(map(length, pairs.values())),
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


def broken_lengths(budgets: Sequence[Budget], beside: float, same: float) -> str | None:
    """Why rows in a batch are too large or small, or None: as `broken_beside` for their `LENGTH`s."""
    for budget in budgets:
        if budget.metric not in COSINES:
            continue
        if abs(beside - 1) > max(_room(budget.least), FARTHER * abs(same - 1)):
            return f"rows in a batch are ×{beside:.3g} as large"
    return None


def farness(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """How far an answer is off, over the length of the reference's, where it is farthest."""
    return max((_distance(array, found[name]) for name, array in expected.items()), default=0.0)


def _distance(a: Array, b: Array) -> float:
    if a.shape != b.shape:
        return math.inf
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return float(np.mean(a != b)) if a.size else 0.0
    both = comparable_values(a, b)
    if both is None:
        return math.inf
    difference, length = float(np.linalg.norm(both[1] - both[0])), float(np.linalg.norm(both[0]))
    return difference / length if length else difference


def cosines(pairs: Pairs) -> Array:
    """Of each pair of arrays; of single elements, of all of them as one pair, since the cosine of two
    numbers is 1 or -1 whatever they are. What has none is judged as `infer.parity.alike` does it.
    """
    rest, single = _with_single_joined(pairs)
    return np.array([alike(a, b) for a, b in (*rest, *single)])


def cosine_from_mean(pairs: Pairs) -> float:
    """Of single numbers, seen from their mean; 1 where there is none to look from."""
    return min((alike(a, b) for a, b in _from_mean(_with_single_joined(pairs)[1])), default=1.0)


def length(pairs: Pairs) -> float:
    """How long the second of all pairs are together, as one vector, over the first, from the mean where
    there is one to look from; 1 where there are no floats, or where these cannot be compared, which their
    cosine says."""
    rest, single = _with_single_joined(pairs)
    vectors = (*rest, *(_from_mean(single) or single))
    both = [comparable_values(a, b) for a, b in vectors if a.shape == b.shape and a.dtype.kind == "f"]
    values = [pair for pair in both if pair is not None and pair[0].size]
    scale = max((float(np.abs(side).max()) for pair in values for side in pair), default=0.0) or 1.0
    before, after = (math.fsum(float(np.square(pair[s] / scale).sum()) for pair in values) for s in (0, 1))
    if before == after:
        return 1.0
    return min(math.sqrt(after / before), _ENDLESS) if before else _ENDLESS


def farthest_from_1(lengths: Iterable[float]) -> float:
    """1 if there are none."""
    return max(lengths, key=lambda each: abs(each - 1), default=1.0)


def _room(least: float) -> float:
    """How far apart two vectors of length 1 are with this cosine."""
    return math.sqrt(2 * max(1 - least, CLOSEST))


def _with_single_joined(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """The pairs of several elements, and all those of single ones as one pair, if there are any."""
    single = [(a, b) for a, b in pairs if a.shape == b.shape and a.size == 1]
    rest = [(a, b) for a, b in pairs if a.shape != b.shape or a.size != 1]
    if not single:
        return rest, []
    first, second = (np.concatenate([pair[side].ravel() for pair in single]) for side in (0, 1))
    return rest, [(first, second)]


def _from_mean(single: Pairs) -> Pairs:
    """Single numbers less their mean in the first of the pair: those of about 100 are all alike beside 0,
    and need not be for whoever asks. Nothing if they are too few, or vary too little to be told apart."""
    for first, second in single:
        finite = first[np.isfinite(first)].astype(np.float64) if first.dtype.kind == "f" else first[:0]
        if len(finite) >= _SEVERAL and np.std(finite) > _VARIED * np.abs(np.mean(finite)):
            return [(first - finite.mean(), second - finite.mean())]
    return []
