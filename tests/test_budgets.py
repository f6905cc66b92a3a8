"""What variants may lose, as it is written and kept, and which nodes it is worth keeping in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from infer.errors import InputError
from infer.optimizer import parse_budget
from infer.optimizer.budget import (
    Budget,
    broken_beside,
    broken_lengths,
    broken_unlike,
    farness,
    figures,
    length,
)
from infer.optimizer.sensitivity import kept_in_float


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("equal", Budget()),
        ("cosine>=0.999", Budget("cosine", least=0.999)),
        (" min-cosine >= .9 ", Budget("min-cosine", least=0.9)),
        ("accuracy-0.5%", Budget("accuracy", change=-0.5)),
        ("rmse+1%", Budget("rmse", change=1.0)),
    ],
)
def test_budgets_as_people_write_them(text: str, budget: Budget) -> None:
    """Read, and written back."""
    assert parse_budget(text) == budget
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    "text", ["", "fast", "cosine>0.9", "cosine>=1.5", "accuracy-", "accuracy<0.5%", "-0.5%"]
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    """With the forms there are, or why it cannot be met."""
    with pytest.raises(InputError, match=r"is no budget; write|cannot be met"):
        parse_budget(text)


def test_budgets_are_kept_to_the_letter() -> None:
    """Points of shares, percent of errors, however small these are."""
    accuracy, error = parse_budget("accuracy-0.5%"), parse_budget("rmse+1%")
    assert accuracy.broken({"accuracy": 0.896}, {"accuracy": 0.9}) is None
    assert accuracy.broken({"accuracy": 0.894}, {"accuracy": 0.9}) == "accuracy 0.9000 → 0.8940"
    assert error.broken({"rmse": 55.4}, {"rmse": 55.0}) is None
    assert error.broken({"rmse": 55.6}, {"rmse": 55.0}) is not None
    assert error.broken({"rmse": 0.0504}, {"rmse": 0.05}) is None
    assert error.broken({"rmse": 0.051}, {"rmse": 0.05}) == "rmse 0.0500 → 0.0510"
    assert parse_budget("eer+0.5%").broken({"eer": 0.014}, {"eer": 0.01}) is None


def test_a_budget_of_nothing_is_kept_to_as_well() -> None:
    """Whichever way the metric goes."""
    for metric, better, worse in (("accuracy", 1.0, 0.8), ("rmse", 0.8, 1.0)):
        kept = parse_budget(f"{metric}+0%")
        assert kept.broken({metric: 0.9}, {metric: 0.9}) is None
        assert kept.broken({metric: better}, {metric: 0.9}) is None
        assert kept.broken({metric: worse}, {metric: 0.9}) is not None


@pytest.mark.parametrize("metric", ["rmse", "mae", "log_loss", "eer", "rmse_price", "rmse_a b"])
def test_errors_may_grow_and_not_fall(metric: str) -> None:
    """Those of one target, too."""
    assert Budget(metric, change=1.0).broken({metric: 0.5}, {metric: 1.0}) is None
    assert Budget(metric, change=1.0).broken({metric: 1.5}, {metric: 1.0}) is not None


def test_cosines_are_the_worst_outputs() -> None:
    """Of each output over all feeds; what is not finite is as far as can be."""
    a = [{"x": np.array([1.0, 0.0], np.float32), "y": np.array([1.0, 1.0], np.float32)}] * 2
    b = [{**a[0], "y": np.array([1.0, 0.0], np.float32)}, a[1]]
    found = figures(a, b)
    assert found["equal"] == 0
    assert found["cosine"] == pytest.approx((1 + np.sqrt(0.5)) / 2)
    assert found["min-cosine"] == pytest.approx(np.sqrt(0.5))
    assert figures(a, a) == {"equal": 1, "cosine": 1, "min-cosine": 1, "length": 1, "cosine-from-mean": 1}
    assert figures(a, [{**a[0], "x": np.array([np.nan, 0], np.float32)}, a[1]])["min-cosine"] == -1


def test_what_is_no_float_counts_by_its_share() -> None:
    """Labels, truth values and texts have no cosine; beside floats, the worse of both counts. Of single
    labels the share is that of all feeds, so one of four that is wrong leaves 0.75."""
    same = {"equal": 1, "cosine": 1, "min-cosine": 1, "length": 1, "cosine-from-mean": 1}
    x = np.array([3.0, 4.0], np.float32)
    for right, wrong in (([1, 2], [1, 3]), ([True, True], [True, False]), (["a", "b"], ["a", "c"])):
        a, b = np.array(right), np.array(wrong)
        found = figures([{"x": x, "y": a}] * 2, [{"x": x, "y": b}, {"x": x, "y": a}])
        assert found == {**same, "equal": 0, "cosine": 0.75, "min-cosine": 0.5}
        assert figures([{"y": a}], [{"y": a}]) == same
    labels = [{"y": np.array([i])} for i in (0, 1, 2, 3)]
    found = figures(labels, [*labels[:3], {"y": np.array([0])}])
    assert found == {**same, "equal": 0, "cosine": 0.75, "min-cosine": 0.75}


def test_places_that_are_not_finite_must_be_the_same() -> None:
    """Then the others are judged; NaN of the reference's own, and logits that a mask forbids, are no fault
    of a variant. Where a mask fills with the lowest number, that is no direction either."""
    nan, inf, low = np.nan, np.inf, np.finfo(np.float32).min

    def cosine(a: list[float], b: list[float]) -> float:
        x, y = ({"x": np.array(each, np.float32)} for each in (a, b))
        return figures([x], [y])["min-cosine"]

    for same in (nan, inf, -inf, low):
        assert cosine([same, 1, 0], [same, 1, 1]) == pytest.approx(np.sqrt(0.5))
        assert cosine([same, 1, 0], [same, 2, 0]) == pytest.approx(1)
        assert cosine([same, same], [same, same]) == 1
    for a, b in ((nan, inf), (inf, -inf), (nan, 1), (1, nan), (1, inf), (-inf, 1)):
        assert cosine([a, 1, 0], [b, 1, 0]) == -1
    assert cosine([low, 1, 0], [1, 1, 0]) < 0


@pytest.mark.parametrize(
    ("factor", "least", "held"),
    [(1.0, 0.999, True), (1.04, 0.999, True), (1.05, 0.999, False), (0.95, 0.999, False), (2.0, 0.9, False),
     (1.4, 0.9, True), (0.0, 0.9, False), (1.01, 0.9999, True), (1.02, 0.9999, False)],
)  # fmt: skip
def test_a_cosine_does_not_hide_how_large_answers_are(factor: float, least: float, held: bool) -> None:
    """Logits that are all doubled have a cosine of 1. They may be off by as much as two vectors of that
    cosine are; the output that is farthest off counts."""
    rng = np.random.default_rng(0)
    expected = [{name: rng.standard_normal(8).astype(np.float32) for name in "ab"} for _ in range(4)]
    found = [{"a": each["a"], "b": factor * each["b"]} for each in expected]
    numbers = figures(expected, found)
    assert numbers["length"] == pytest.approx(factor)
    for metric in ("cosine", "min-cosine"):
        why = Budget(metric, least=least).broken(numbers, {})
        assert (why is None) == held
        assert held or not factor or why == f"answers are ×{factor:.3g} as large"


def test_numbers_are_looked_at_from_their_mean() -> None:
    """A regressor whose answers are 100 ± 3, and one that always says 100, have a cosine of 0.9996 as seen
    from 0; one whose answers lie twice as far from 100 has a cosine of 1."""
    rng = np.random.default_rng(0)
    numbers = [{"y": np.array([each], np.float32)} for each in 100 + 3 * rng.standard_normal(50)]
    mean = np.mean([each["y"] for each in numbers])
    least = Budget("cosine", least=0.999)
    assert least.broken(figures(numbers, [{"y": mean + 0 * each["y"]} for each in numbers]), {}) is not None
    assert least.broken(figures(numbers, [{"y": each["y"] + 3} for each in numbers]), {}) is not None
    twice = figures(numbers, [{"y": mean + 2 * (each["y"] - mean)} for each in numbers])
    assert (twice["cosine-from-mean"], twice["length"]) == (pytest.approx(1), pytest.approx(2, rel=1e-4))
    assert twice["cosine"] > 0.999
    near = figures(numbers, [{"y": each["y"] + rng.normal(0, 0.05)} for each in numbers])
    assert least.broken(near, {}) is None
    assert 0.999 < near["cosine-from-mean"] < 0.9999
    # what is nearly the same for all, as a model's answers to noise are, has no mean to look from
    same = [{"y": np.array([each], np.float32)} for each in 0.5023 + 1e-5 * rng.standard_normal(50)]
    assert least.broken(figures(same, [{"y": each["y"] + np.float32(1e-4)} for each in same]), {}) is None
    few = numbers[:7]
    assert figures(few, [{"y": mean + 0 * each["y"]} for each in few])["cosine-from-mean"] == 1


@pytest.mark.parametrize(
    ("beside", "same", "held"),
    [(1.0, 1.0, True), (1.04, 1.0, True), (1.05, 1.0, False), (0.95, 1.0, False), (1.06, 1.04, True),
     (1.09, 1.04, False), (2.0, 1.0, False)],
)  # fmt: skip
def test_rows_in_a_batch_are_as_large_as_alone(beside: float, same: float, held: bool) -> None:
    """To within what the budget lets all be, or twice as far as they are off alone; nobody asked with a
    metric for a budget, or where answers must be equal anyway."""
    assert (broken_lengths([Budget("cosine", least=0.999)], beside, same) is None) == held
    for other in (Budget(), parse_budget("accuracy-0.5%")):
        assert broken_lengths([other], beside, same) is None


def test_lengths_are_finite_numbers() -> None:
    """Also of what is all zeros, infinite or as large as numbers get: they are written as JSON."""
    zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
    huge, odd = np.full(4, 3e38, np.float32), np.array([np.inf, np.nan, 2, 1], np.float32)
    for a, b, expected in [(zeros, zeros, 1), (zeros, ones, 1e6), (ones, zeros, 0), (huge, huge / 2, 0.5),
                           (odd, odd, 1), (odd, ones, 1), (ones[:0], ones[:0], 1)]:  # fmt: skip
        assert length([(a, b)]) == pytest.approx(expected)
    assert length([(np.full(4, 1e300), np.full(4, 2e300))]) == pytest.approx(2)


def test_the_farthest_answer_is_told() -> None:
    """By its distance over its length; other shapes and NaN are as far as can be, labels by their share."""
    a = {"x": np.array([3.0, 4.0], np.float32), "label": np.array([1, 2])}
    assert farness(a, a) == 0
    assert farness(a, {**a, "x": a["x"] + np.float32([0, 1])}) == pytest.approx(0.2)
    assert farness(a, {**a, "label": np.array([1, 3])}) == 0.5
    assert farness(a, {**a, "x": a["x"][:1]}) == farness(a, {**a, "x": a["x"] * np.nan}) == np.inf


def test_answers_of_another_shape_are_as_far_as_can_be() -> None:
    """Also if they have as many numbers."""
    a = np.ones((2, 3), np.float32)
    assert figures([{"x": a}], [{"x": a.T}])["cosine"] == -1


def test_single_numbers_are_judged_together_whatever_stands_beside_them() -> None:
    """The cosine of two numbers is 1 or -1; those of feeds of one number are one vector, even where other
    feeds have several."""
    one, two, both = (np.array(each, np.float32) for each in ([1.0], [2.0], [1.0, 2.0]))
    found = figures([{"x": one}, {"x": one}, {"x": both}], [{"x": one}, {"x": two}, {"x": both}])
    assert found["min-cosine"] == pytest.approx(3 / np.sqrt(10))


@pytest.mark.parametrize(
    ("budget", "beside", "same", "held"),
    [
        ("cosine>=0.99", 0.991, 1.0, True),
        ("cosine>=0.99", 0.989, 1.0, False),
        ("cosine>=0.99", 0.97, 0.98, True),  # these rows are as far off alone
        ("cosine>=0.99", 0.95, 0.98, False),
        ("accuracy-1%", 0.92, 1.0, True),  # twice the farthest alone
        ("accuracy-1%", 0.88, 1.0, False),
        ("equal", 0.5, 1.0, True),  # which has a figure of its own
    ],
)
def test_rows_in_batches_are_held_to_what_is_known_of_rows_alone(
    budget: str, beside: float, same: float, held: bool
) -> None:
    """They may be as far off as the budget lets the mean be, or twice as far as they are alone; with a
    metric, twice as far as the farthest is alone."""
    alone = {"cosine": 0.999, "min-cosine": 0.95}
    assert (broken_beside([parse_budget(budget)], alone, beside, same) is None) == held


@pytest.mark.parametrize(
    ("budget", "farthest", "elsewhere", "held"),
    [
        ("cosine>=0.99", 0.999, 0.981, True),  # twice as far as the mean may be
        ("cosine>=0.99", 0.999, 0.979, False),
        ("cosine>=0.99", 0.95, 0.951, True),  # as far as one that is judged
        ("min-cosine>=0.99", 0.995, 0.97, False),
        ("accuracy-1%", 0.95, 0.91, True),
        ("accuracy-1%", 0.95, 0.89, False),
        ("accuracy-1%", 1.0, 0.985, False),
        ("equal", 0.999, 0.5, True),  # which has a figure of its own
    ],
)
def test_feeds_of_another_kind_are_held_to_what_is_judged(
    budget: str, farthest: float, elsewhere: float, held: bool
) -> None:
    """They are few and made up, so they may be farther off than the mean of all."""
    alone = {"cosine": 0.9995, "min-cosine": farthest}
    assert (broken_unlike([parse_budget(budget)], alone, elsewhere) is None) == held


def test_sensitivity_finds_the_few_that_hurt() -> None:
    """Of forty nodes three hurt: they are kept in float, and no others; with 200, in groups."""
    for count, most in ((40, 3), (200, 9)):
        names = [f"n{i}" for i in range(count)]
        bad = {"n3", "n17", "n31"}

        def damage(keep: Any, names: list[str] = names, bad: set[str] = bad) -> float:
            return 0.001 + len(bad - set(keep))

        def holds(keep: Any, bad: set[str] = bad) -> bool:
            return bad <= set(keep)

        kept, *more = kept_in_float(dict.fromkeys(names, 2.0), damage, holds, lambda: False, lambda _: None)
        assert bad <= set(kept)
        assert len(kept) <= most
        assert set(kept) < set(more[0])
        assert len(more[-1]) <= 0.75 * count
    costs = dict.fromkeys(names, 0.0)
    assert not list(kept_in_float(costs, damage, lambda keep: False, lambda: False, lambda _: None))
    assert not list(kept_in_float(costs, damage, holds, lambda: True, lambda _: None))


def test_what_costs_little_in_float_is_kept_there_first() -> None:
    """Two small nodes lose together more than the large one does, which takes most of the time: they are
    kept, though it does the most damage alone. Where nothing is known of costs, it is kept first."""
    lost = {"large": 0.5, "a": 0.3, "b": 0.3, "c": 0.0, "d": 0.0, "e": 0.0, "f": 0.0, "g": 0.0}

    def damage(keep: Sequence[str]) -> float:
        return sum(lost[name] for name in lost if name not in keep)

    def first(costs: dict[str, float]) -> list[str]:
        found = kept_in_float(
            costs, damage, lambda keep: damage(keep) <= 0.6, lambda: False, lambda _: None
        )
        return next(found)

    assert first({name: 90.0 if name == "large" else 1.0 for name in lost}) in (["a", "b"], ["b", "a"])
    assert first(dict.fromkeys(lost, 0.0)) == ["large"]
