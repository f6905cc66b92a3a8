"""Comparison of outputs, held to closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infer.parity import TOLERANCES, Difference, Tolerance, compare, compare_tensor

Array = np.ndarray[Any, Any]
NONE = {"float32": Tolerance(0.0, 0.0, 0.0), "float64": Tolerance(0.0, 0.0, 0.0)}


def differ(expected: object, actual: object, dtype: str = "float32", **bounds: float) -> Difference:
    tolerance = Tolerance(**{"atol": 0.0, "rtol": 0.0, "scaled": 0.0, **bounds})
    return compare_tensor("y", np.array(expected, dtype), np.array(actual, dtype), {dtype: tolerance})


def test_the_numbers_are_those_of_the_definitions() -> None:
    """max abs, max abs over the largest expected magnitude, and the angle between 3-4-5 vectors."""
    found = differ([3.0, 4.0], [4.0, 3.0], "float64")
    assert found.max_abs == 1.0
    assert found.max_relative == 0.25
    assert found.cosine == pytest.approx(24 / 25)
    assert found.problem == "2 of 2 values are outside the tolerance"


@pytest.mark.parametrize(
    ("bounds", "largest"),
    [({"atol": 0.5}, 0.5), ({"rtol": 0.25}, 0.5), ({"scaled": 0.125}, 1.0)],
)
def test_each_bound_is_as_wide_as_its_formula(bounds: dict[str, float], largest: float) -> None:
    """|a - e| ≤ atol + rtol·|e| + scaled·max|e|, with e = [2, -8], both sides of the edge."""
    expected = [2.0, -8.0]
    inside, outside = [2.0 + largest, -8.0], [2.0 + largest + 1e-12, -8.0]
    assert differ(expected, inside, "float64", **bounds).within
    assert not differ(expected, outside, "float64", **bounds).within


def test_bounds_add_up() -> None:
    """All three at once: 0.5 + 0.25·2 + 0.125·8 = 2."""
    assert differ([2.0, -8.0], [4.0, -8.0], "float64", atol=0.5, rtol=0.25, scaled=0.125).within
    assert not differ([2.0, -8.0], [4.001, -8.0], "float64", atol=0.5, rtol=0.25, scaled=0.125).within


def test_a_mask_value_is_no_scale() -> None:
    """An expected lowest float32, as masks hold, does not widen the bound of the others."""
    lowest = float(np.finfo(np.float32).min)
    assert not differ([lowest, 1.0], [lowest, 1.1], scaled=1e-3).within
    assert differ([lowest, 1.0], [lowest, 1.0005], scaled=1e-3).within


@pytest.mark.parametrize(
    ("expected", "actual", "within"),
    [
        ([math.nan, 1.0], [math.nan, 1.0], True),
        ([math.nan, 1.0], [1.0, 1.0], False),
        ([1.0, 1.0], [math.nan, 1.0], False),
        ([math.inf], [math.inf], True),
        ([math.inf], [-math.inf], False),
        ([math.inf], [3e38], False),
        ([3e38], [math.inf], False),
        ([-0.0], [0.0], True),
    ],
)
def test_nan_and_infinities_must_coincide(expected: Any, actual: Any, within: bool) -> None:
    """They are equal to themselves and within no tolerance of anything else."""
    assert differ(expected, actual, atol=1e38).within is within


def test_zeros_and_nothing_have_numbers_too() -> None:
    """Empty and all-zero tensors are equal to themselves: distance 0, cosine 1."""
    for values in (np.zeros((0, 3), np.float32), np.zeros(3, np.float32)):
        found = compare_tensor("y", values, values, TOLERANCES)
        assert (found.max_abs, found.max_relative, found.cosine, found.problem) == (0.0, 0.0, 1.0, None)
    assert differ([0.0, 0.0], [0.0, 1.0]).cosine == 0.0


def test_other_dtypes_must_be_equal() -> None:
    """Ints, bools and text differ as soon as one element does; the count is said."""
    ints = compare_tensor("y", np.array([1, 2, 3]), np.array([1, 2, 4]), TOLERANCES)
    assert (ints.problem, ints.max_abs) == ("1 of 3 values differ", 1.0)
    bools = compare_tensor("y", np.array([True]), np.array([False]), TOLERANCES)
    assert bools.problem == "1 of 1 values differ"
    text = np.array(["a", "b"], object)
    assert compare_tensor("y", text, text.copy(), TOLERANCES).within
    assert not compare_tensor("y", text, text[::-1], TOLERANCES).within
    big = np.array([2**62 + 1])
    assert not compare_tensor("y", big, big - 1, TOLERANCES).within  # equal once rounded to float64


def test_dtype_and_shape_must_be_the_same() -> None:
    """No broadcasting, no casting."""
    x = np.ones((2, 1), np.float32)
    assert compare_tensor("y", x, x.astype(np.float64), TOLERANCES).problem == (
        "dtype is float64, expected float32"
    )
    assert compare_tensor("y", x, x[:, 0], TOLERANCES).problem == "shape is [2], expected [2, 1]"


def test_compare_goes_by_expected_names() -> None:
    """One difference for each expected output, in order; a missing one is a problem."""
    one, two = np.ones(1, np.float32), np.full(1, 2, np.float32)
    found = compare({"b": one, "a": two, "c": one}, {"a": two, "b": one, "x": one}, TOLERANCES)
    assert [(d.output, d.problem) for d in found] == [("b", None), ("a", None), ("c", "it is missing")]
    assert "not comparable" in str(found[2])


def test_magnitudes_far_apart_still_have_an_angle() -> None:
    """The smallest float64 against 1: the same direction, without overflow on the way."""
    found = differ([5e-324, 0.0], [1.0, 0.0], "float64")
    assert found.cosine == 1.0
    assert not found.within
    for expected, actual in (([5e-324], [1.0]), ([1.7e308], [-1.7e308])):
        found = differ(expected, actual, "float64", rtol=1e-9)
        assert not found.within
        assert found.max_abs is not None
        assert found.max_relative is not None
        assert math.isfinite(found.max_abs)
        assert math.isfinite(found.max_relative)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_side=0), elements=st.floats(width=32)))
def test_anything_equals_itself_bit_for_bit(x: Array) -> None:
    """NaN, infinities and empty shapes included, at no tolerance at all."""
    assert compare_tensor("y", x, x.copy(), NONE).within


@given(
    hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e6, 1e6)),
    st.data(),
)
def test_a_change_is_found_exactly_if_it_exceeds_the_bound(x: Array, data: st.DataObject) -> None:
    """One element moved by d is outside of atol if and only if d is larger, as floats compute it."""
    place = data.draw(st.integers(0, len(x) - 1))
    moved = x.copy()
    moved[place] += data.draw(st.floats(-10, 10))
    distance = abs(moved[place] - x[place])
    assert compare_tensor("y", x, moved, {"float64": Tolerance(5.0, 0.0, 0.0)}).within is bool(
        distance <= 5.0
    )


def test_the_stated_tolerances_tell_rounding_from_wrong_graphs() -> None:
    """float32: 4e-6 of the largest value passes, 1e-3 of it does not; so the table's comment says."""
    x = np.linspace(-8, 8, 101, dtype=np.float32)
    assert compare_tensor("y", x, x + np.float32(8 * 4e-6), TOLERANCES).within
    assert not compare_tensor("y", x, x + np.float32(8 * 1e-3), TOLERANCES).within


def test_an_integer_may_have_a_tolerance_of_its_own() -> None:
    """As a label that an approximation changes at a golden point has, by its output's name."""
    labels, others = np.array([3, 1]), np.array([3, 2])
    found = compare({"y": labels}, {"y": others}, {"y": Tolerance(0.0, 0.0, 0.5)})
    assert [each.within for each in found] == [True]
    found = compare({"y": labels}, {"y": others}, {"y": Tolerance(0.0, 0.0, 0.1)})
    assert [(each.within, each.comparable) for each in found] == [(False, True)]
    assert not differ([1.0], [math.nan]).comparable
