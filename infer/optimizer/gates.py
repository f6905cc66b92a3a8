"""The two gates: is it still right, and is it faster?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from infer.errors import InferError, InputError
from infer.evaluation import evaluate_task, lower_is_better
from infer.feeds import Feeds, batch_dim, resized
from infer.measure.queries import Call
from infer.measure.rounds import MIN_ROUNDS, WARM_UP_S, take_turns
from infer.measure.statistics import Estimate, paired_ratio
from infer.optimizer.batches import different_rows
from infer.optimizer.budget import (
    BATCH_COSINE,
    EQUAL,
    LENGTH,
    Budget,
    broken_beside,
    broken_lengths,
    broken_unlike,
    farness,
    farthest_from_1,
    figures,
)
from infer.optimizer.material import Material
from infer.parity import Tolerance, compare
from infer.session import Session
from infer.signature import Array

Progress = Callable[[str], None]

_WARM_UP_S = 1.0
"""For each of several starts: a search has more to time than a benchmark."""

_SIZES = (2, 3)
"""Batches at which answers must hold, beside feeds alone."""


@dataclass(frozen=True)
class Judged:
    """What came of the first gate. `farthest` are the feeds whose answer is the farthest off, if a budget
    is broken."""

    figures: dict[str, float]
    broken: str | None
    farthest: Feeds | None = None


@dataclass(frozen=True)
class _Batch:
    """Feeds of several rows, and the reference's answer."""

    feeds: Feeds
    answer: Mapping[str, Array]
    count: int
    padded: bool = False


@dataclass
class Judge:
    """Compares variants with the reference, whose answers are computed once. Metrics of the task are
    measured if one of the budgets is about any. Raises `InputError` if there is no such metric.

    Attributes:
        golden: golden feeds, which the final proof asks again: there, answers that should be equal must be,
            and others must be finite.
    """

    reference: Session
    material: Material
    budgets: Sequence[Budget]
    tolerances: Mapping[str, Tolerance]
    progress: Progress
    golden: Sequence[Feeds] = ()
    _metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run, signature = self.reference.run, self.reference.signature
        self._answers = [run(feeds) for feeds in self.material.judged]
        self._golden_answers = [run(feeds) for feeds in self.golden]
        self._rows = different_rows(signature, self.material.judged, run, self.tolerances)
        self._batches = [*self._full(), *self._padded()]
        self._singles = [(feeds, run(feeds)) for feeds in self._asked_alone()]
        wanted = [budget for budget in self.budgets if budget.of_task]
        if wanted:
            self._metrics = self._measured(self.reference)
        for budget in wanted:
            if budget.metric not in self._metrics:
                raise InputError(
                    f"the budget '{budget}' is about '{budget.metric}', but the metrics of the data are"
                    f" {', '.join(self._metrics)}"
                )
            grows = lower_is_better(budget.metric)
            if budget.change and grows != (budget.change > 0):
                raise InputError(
                    f"the budget '{budget}' asks for a better '{budget.metric}'; write"
                    f" '{budget.metric}{'+' if grows else '-'}{abs(budget.change):g}%'"
                )

    @property
    def metrics(self) -> dict[str, float]:
        """The reference's metrics, if they are measured."""
        return self._metrics

    def judge(self, session: Session, budgets: Sequence[Budget]) -> Judged:
        """Answer all that is judged. Raises `InferError` if the session fails."""
        answers = [session.run(feeds) for feeds in self.material.judged]
        golden = [session.run(feeds) for feeds in self.golden]
        together = [session.run(batch.feeds) for batch in self._batches]
        found = alone = figures(self._answers, answers, self.tolerances)
        broken = []
        if self._batches:
            beside, same, floats = self._beside(session, together)
            found = {
                **alone,
                EQUAL: min(alone[EQUAL], beside[EQUAL]),
                "min-cosine": min(alone["min-cosine"], beside["min-cosine"]),
                BATCH_COSINE: beside["cosine"],
            }
            reasons = (
                broken_unlike(budgets, alone, floats),
                broken_beside(budgets, alone, beside["cosine"], same["cosine"]),
                broken_lengths(budgets, beside[LENGTH], same[LENGTH]),
            )
            broken = [reason for reason in reasons if reason]
        if self.golden:
            differences = [
                difference
                for before, after in zip(self._golden_answers, golden, strict=True)
                for difference in compare(before, after, self.tolerances)
            ]
            found = found | {EQUAL: min(found[EQUAL], float(all(each.within for each in differences)))}
            if wrong := [each for each in differences if not each.comparable]:
                broken.append(f"golden {wrong[0]}")
        if self._metrics:
            found = found | self._measured(session)
        held = [reason for budget in budgets if (reason := budget.broken(found, self._metrics))]
        if not held and not broken:
            return Judged(found, None)
        asked = [
            *zip(self.material.judged, self._answers, answers, strict=True),
            *zip(self.golden, self._golden_answers, golden, strict=True),
            *(
                (batch.feeds, batch.answer, each)
                for batch, each in zip(self._batches, together, strict=True)
            ),
        ]
        farthest, _, _ = max(asked, key=lambda each: farness(each[1], each[2]))
        return Judged(found, "; ".join([*held, *broken]), farthest)

    def neighbours(self, session: Session) -> float | None:
        """How far the first row's answer moves beside one of the others, relative to its largest value; of
        what is no float, the share of elements that change. None if it cannot be measured: no row can be
        asked alone and beside another one, or no output has rows."""
        rows = self._rows
        two = any(batch.count == 2 for batch in self._batches)
        if rows is None or len(rows.feeds) < 2 or not (self._may_have(1) and two):
            return None
        alone = session.run(rows.feeds[0])
        worst = None
        for other in range(1, len(rows.feeds)):
            beside = rows.split(session.run(rows.together((0, other))), 2)[0]
            for name in rows.outputs.keys() & beside.keys():
                if alone[name].shape == beside[name].shape:
                    worst = max(worst or 0.0, _moved(alone[name], beside[name]))
        return worst

    def _measured(self, session: Session) -> dict[str, float]:
        assert self.material.dataset is not None
        return evaluate_task(session.task, self.material.dataset, self.progress).metrics

    def _beside(
        self, session: Session, answers: Sequence[Mapping[str, Array]]
    ) -> tuple[dict[str, float], dict[str, float], float]:
        """The figures of the answers to the batches, the worst ones, those of their rows alone, and the
        cosine of what is floats of these, since of a few labels a single one counts for much."""
        found: list[dict[str, float]] = []
        rows = self._rows
        for batch, answer in zip(self._batches, answers, strict=True):
            expected = batch.answer
            equal = figures([expected], [answer], self.tolerances)[EQUAL]
            if batch.padded:  # half a text is no text: a label may be another one
                expected = _floats(expected)
            answer = {name: answer[name] for name in expected}
            alike = all(array.shape == answer[name].shape for name, array in expected.items())
            before, after = (
                rows.split(each, batch.count) if rows and alike else [dict(each)]
                for each in (expected, answer)
            )
            found.append({**figures(before, after, self.tolerances), EQUAL: equal})
        expected_alone = [answer for _, answer in self._singles]
        alone = [session.run(feeds) for feeds, _ in self._singles]
        worst = {name: min(each[name] for each in found) for name in found[0]}
        worst[LENGTH] = farthest_from_1(each[LENGTH] for each in found)
        same = figures(expected_alone, alone, self.tolerances)
        floats = figures([*map(_floats, expected_alone)], [*map(_floats, alone)], self.tolerances)["cosine"]
        return worst, same, floats

    def _full(self) -> Iterator[_Batch]:
        """Batches of different rows, or of one that is repeated, where others are not to be had."""
        signature = self.reference.signature
        dim = batch_dim(signature)
        if dim is None:
            return
        for size in _SIZES:
            if not self._may_have(size):
                continue
            found = None if self._rows is None else self._answered(self._together(size), size)
            found = found or self._answered(resized(signature, self.material.judged[0], {dim: size}), size)
            if found is not None:  # a graph may leave its batch open, and yet answer at one size alone
                yield found

    def _may_have(self, count: int) -> bool:
        """Whether the model takes so many rows."""
        signature = self.reference.signature
        dim = batch_dim(signature)
        return dim is not None and signature.allows(dim, count)

    def _asked_alone(self) -> Sequence[Feeds]:
        """The rows that batches are made of, if they can be asked alone."""
        return self._rows.feeds[: max(_SIZES)] if self._rows and self._may_have(1) else ()

    def _together(self, size: int) -> Feeds:
        assert self._rows is not None
        return self._rows.together([place % len(self._rows.feeds) for place in range(size)])

    def _answered(self, feeds: Feeds, size: int) -> _Batch | None:
        try:
            return _Batch(feeds, self.reference.run(feeds), size)
        except InferError:
            return None

    def _padded(self) -> Iterator[_Batch]:
        """Two rows, of which the second has half masked out, as of a batch of texts of two lengths: a feed
        of one row is never padded. Left out where the reference has no finite answer to it."""
        signature = self.reference.signature
        dim = batch_dim(signature)
        if dim is None or dim in signature.limits or self._rows is None:
            return
        feeds = self._together(2)
        masked = False
        for spec in signature.inputs:
            if "mask" in spec.name and spec.dims[:1] == (dim,) and len(spec.dims) > 1:
                array = feeds[spec.name] = feeds[spec.name].copy()
                array[1, array.shape[1] // 2 :] = 0
                masked = True
        found = self._answered(feeds, 2) if masked else None
        if found and all(a.dtype.kind != "f" or np.isfinite(a).all() for a in found.answer.values()):
            yield replace(found, padded=True)


def _floats(answer: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in answer.items() if array.dtype.kind == "f"}


def _moved(alone: Array, beside: Array) -> float:
    if alone.dtype.kind != "f":
        return float(np.mean(alone != beside)) if alone.size else 0.0
    finite = np.isfinite(alone)
    if not np.array_equal(alone[~finite], beside[~finite], equal_nan=True):
        return 1.0
    if not np.isfinite(beside[finite]).all():
        return 1.0
    alone, beside = alone[finite].astype(np.float64), beside[finite].astype(np.float64)
    scale = float(np.abs(alone).max(initial=0.0)) or 1.0
    return float(np.abs(alone - beside).max(initial=0.0)) / scale


Opening = Callable[[], AbstractContextManager[Session]]
"""Opens a session anew."""


@dataclass(frozen=True)
class Contender:
    """A variant to be timed, by its name and how to open it."""

    name: str
    opening: Opening


class Asked:
    """A contender that answers feeds as one query, in a session that can be opened anew: from as many
    callers as the session has streams, each with its share of `timed`.

    Attributes:
        timed: what is asked; more of it makes the query longer.
    """

    def __init__(self, contender: Contender, timed: Sequence[Feeds], stack: ExitStack) -> None:
        self._contender, self.timed = contender, timed
        self._own = stack.enter_context(ExitStack())
        self._session = self._own.enter_context(contender.opening())
        self.callers = self._session.plan.streams
        self._pool = stack.enter_context(ThreadPoolExecutor(self.callers))

    def reopen(self) -> None:
        self._own.close()
        self._session = self._own.enter_context(self._contender.opening())

    def turn(self, count: int) -> Array:
        run, timed, callers = self._session.run, self.timed, self.callers

        def ask(caller: int) -> None:
            for feeds in timed[caller::callers]:
                run(feeds)

        def call() -> None:
            if callers == 1:
                ask(0)
            else:
                list(self._pool.map(ask, range(callers)))

        return Call(call).turn(count)

    def serve(self, due_s: Array) -> Array:
        raise NotImplementedError  # nothing here is timed by arrivals


def even_shares(timed: Sequence[Feeds], callers: int, others: int) -> list[Feeds]:
    """`timed` as often as it takes to give each of so many callers, or others, the same share."""
    both = math.lcm(callers, others)
    return [*timed] * (both // math.gcd(both, len(timed)))


def time_ratio(
    contender: Contender,
    against: Contender,
    timed: Sequence[Feeds],
    seconds: float,
    progress: Progress,
    starts: int,
    least: int = MIN_ROUNDS,
) -> Estimate:
    """How many times as long `contender` takes as `against` for all of `timed`, asked in turns; where one
    has several streams, for all of it as often as each caller of either has the same share.

    They are asked for so many seconds, in at least so many rounds; `KeyboardInterrupt` ends that. Both are
    opened `starts` times: a session keeps the speed that it began with, and two of one and the same graph
    were seen 6 % apart. Fewer times, but twice, if opening would take longer than timing.
    """
    with ExitStack() as stack:
        start = time.perf_counter()
        ours, theirs = Asked(contender, timed, stack), Asked(against, timed, stack)
        opening_s = time.perf_counter() - start
        ours.timed = theirs.timed = even_shares(timed, ours.callers, theirs.callers)
        starts = min(starts, max(2, int(seconds / opening_s)))

        def restart() -> None:
            ours.reopen()
            theirs.reopen()

        measured = take_turns(
            {"a": ours, "b": theirs},
            seconds,
            progress,
            starts=starts,
            restart=restart,
            least=least,
            warm_up_s=_WARM_UP_S if starts > 1 else WARM_UP_S,
        )
    if measured.interrupted:  # the rounds until then are no look, and the search is to end
        raise KeyboardInterrupt
    times = measured.times
    return paired_ratio(times["a"].medians, times["b"].medians, measured.starts)
