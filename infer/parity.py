"""Whether two sets of outputs are equal within a stated tolerance, and by how much they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from infer.signature import Array


@dataclass(frozen=True)
class Tolerance:
    """|actual - expected| ≤ atol + rtol·|expected| + scaled·max|expected|, for every element.

    `scaled` speaks of the whole tensor, because the rounding error of a sum is proportional
    to its largest terms and not to what is left after they cancel. There are no defaults:
    whoever compares says how closely.
    """

    atol: float
    rtol: float
    scaled: float


TOLERANCES: dict[str, Tolerance] = {
    # float32 has 6e-8 of relative precision. Reordered sums in deep networks were seen to reach
    # 4e-6 of the tensor's largest value over the tested architectures; wrong graphs start
    # at 1e-3. 2e-5 lies well clear of both. atol keeps exact zeros comparable.
    "float32": Tolerance(atol=1e-7, rtol=0.0, scaled=2e-5),
    "float64": Tolerance(atol=1e-12, rtol=0.0, scaled=1e-9),
    # float16 has 5e-4 of relative precision; the same factor over it.
    "float16": Tolerance(atol=1e-6, rtol=0.0, scaled=1e-2),
}
"""What an export must keep, per dtype. Other dtypes (ints, bools, strings) must be equal."""


_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Difference:
    """How far `actual` is from `expected`. Numbers are None if the two cannot be subtracted.

    `max_relative` is relative to the largest expected magnitude. `problem` is None if the
    tensors agree within the tolerance, else what is wrong in words.
    """

    output: str
    max_abs: float | None
    max_relative: float | None
    cosine: float | None
    problem: str | None

    @property
    def within(self) -> bool:
        return self.problem is None

    @property
    def comparable(self) -> bool:
        """Whether they agree, or a wider tolerance could let them."""
        return self.within or self.max_relative is not None

    @property
    def said(self) -> str:
        """What is wrong, and by how much, without the name."""
        numbers = (
            f"max abs {self.max_abs:.1e}, relative {self.max_relative:.1e}, cosine {self.cosine:.7f}"
            if self.max_abs is not None and self.max_relative is not None and self.cosine is not None
            else "not comparable"
        )
        return f"{self.problem or 'equal'} ({numbers})"

    def __str__(self) -> str:
        return f"output '{self.output}': {self.said}"


def compare(
    expected: Mapping[str, Array],
    actual: Mapping[str, Array],
    tolerances: Mapping[str, Tolerance],
) -> tuple[Difference, ...]:
    """One `Difference` for each expected output, in order."""
    return tuple(
        compare_tensor(name, array, actual[name], tolerances)
        if name in actual
        else Difference(name, None, None, None, "it is missing")
        for name, array in expected.items()
    )


def compare_tensor(
    name: str, expected: Array, actual: Array, tolerances: Mapping[str, Tolerance]
) -> Difference:
    """Compare two arrays; dtype and shape must be the same, NaN and infinities must coincide.

    `tolerances` is as for `tolerance_of`; without one the arrays must be equal.
    """
    if expected.dtype != actual.dtype:
        return Difference(name, None, None, None, f"dtype is {actual.dtype}, expected {expected.dtype}")
    if expected.shape != actual.shape:
        return Difference(
            name, None, None, None, f"shape is {list(actual.shape)}, expected {list(expected.shape)}"
        )
    tolerance = tolerance_of(name, expected.dtype.name, tolerances)
    if tolerance is None:
        return _compare_exact(name, expected, actual)
    return _compare_floats(name, expected, actual, tolerance)


def tolerance_of(output: str, dtype: str, tolerances: Mapping[str, Tolerance]) -> Tolerance | None:
    """What an output is held to: its own entry in `tolerances`, or else its dtype's."""
    return tolerances.get(output) or tolerances.get(dtype)


def _compare_exact(name: str, expected: Array, actual: Array) -> Difference:
    unequal = int(np.count_nonzero(expected != actual))
    problem = f"{unequal} of {expected.size} values differ" if unequal else None
    if expected.dtype.kind not in "iub":
        return Difference(name, None, None, None, problem)
    return _with_numbers(name, expected.astype(np.float64), actual.astype(np.float64), problem)


def _compare_floats(name: str, expected: Array, actual: Array, tolerance: Tolerance) -> Difference:
    e, a = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(e)
    if not np.array_equal(e[~finite], a[~finite], equal_nan=True) or not np.all(np.isfinite(a[finite])):
        return Difference(name, None, None, None, "NaN or infinity where the other is finite")
    e, a = e[finite], a[finite]
    # masks are filled with the dtype's lowest value; that is not a scale of the data
    lowest = 0.5 * float(np.finfo(expected.dtype).max) if expected.dtype.kind == "f" else np.inf
    magnitudes = np.abs(e)
    data = magnitudes[magnitudes < lowest]
    scale = float(data.max()) if data.size else 0.0
    bound = tolerance.atol + tolerance.rtol * magnitudes + tolerance.scaled * scale
    with np.errstate(over="ignore"):  # infinitely far is outside, too
        outside = int(np.count_nonzero(np.abs(a - e) > bound))
    problem = f"{outside} of {expected.size} values are outside the tolerance" if outside else None
    return _with_numbers(name, e, a, problem)


def _with_numbers(name: str, e: Array, a: Array, problem: str | None) -> Difference:
    if e.size == 0:
        return Difference(name, 0.0, 0.0, 1.0, problem)
    with np.errstate(over="ignore"):
        max_abs = min(float(np.max(np.abs(a - e))), _LARGEST)  # a manifest holds finite numbers only
    scale = float(np.max(np.abs(e)))
    # tiny scales: where the quotient overflows, relative says nothing that absolute does not
    relative = max_abs / scale if scale > max_abs * 1e-300 else max_abs
    return Difference(name, max_abs, relative, cosine(e, a), problem)


def cosine(e: Array, a: Array) -> float:
    """Cosine of the angle between two tensors; each is scaled first, so that no square overflows."""
    e, a = e.ravel(), a.ravel()
    largest_e, largest_a = float(np.max(np.abs(e))), float(np.max(np.abs(a)))
    if largest_e == 0.0 or largest_a == 0.0:
        return float(largest_e == largest_a)
    e, a = e / largest_e, a / largest_a
    return float(e @ a / math.sqrt(float(e @ e) * float(a @ a)))


def alike(a: Array, b: Array) -> float:
    """The cosine of two answers; of integers, truth values and texts the share of elements that are equal.

    Arrays of two shapes, or whose NaN and infinities are not at the same places, have -1; others are judged
    by the places that are finite.
    """
    if a.shape != b.shape:
        return -1.0
    if np.array_equal(a, b):
        return 1.0
    if a.dtype.kind != "f" or b.dtype.kind != "f":
        return float(np.mean(a == b))
    both = comparable_values(a, b)
    if both is None:
        return -1.0
    return cosine(*both) if both[0].size else 1.0


def comparable_values(a: Array, b: Array) -> tuple[Array, Array] | None:
    """What is finite in two arrays of floats of one shape, flat; None if that is not at the same places."""
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return None
    # masks may be filled with the dtype's lowest value, beside which all else would count for nothing
    lowest = 0.5 * float(np.finfo(a.dtype).max)
    a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
    filled = (np.minimum(np.abs(a), np.abs(b)) >= lowest) & (np.sign(a) == np.sign(b))
    return a[~filled], b[~filled]
