"""The two gates: is it still right, and is it faster?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import numpy as np

from infer.errors import InferError, InputError
from infer.evaluation import LOWER_IS_BETTER, evaluate_task
from infer.feeds import Feeds, batch_dim, resized
from infer.measure.queries import Call
from infer.measure.rounds import take_turns
from infer.measure.statistics import Estimate, paired_ratio
from infer.optimizer.budget import Budget, figures
from infer.optimizer.material import Material
from infer.parity import Tolerance
from infer.session import Session
from infer.signature import Array

Progress = Callable[[str], None]

_SIZES = (2, 3)
"""Batches at which answers must hold, beside single rows."""


@dataclass(frozen=True)
class Judged:
    """What came of the first gate. `neighbours` is how far an answer moves with its neighbours in a batch,
    relative to its largest value."""

    figures: dict[str, float]
    broken: str | None
    neighbours: float


@dataclass
class Judge:
    """Compares variants with the reference, whose answers are computed once. Metrics of the task are
    measured if one of the budgets is about any. Raises `InputError` if there is no such metric."""

    reference: Session
    material: Material
    budgets: Sequence[Budget]
    tolerances: Mapping[str, Tolerance]
    progress: Progress
    _answers: list[Mapping[str, Array]] = field(default_factory=list)
    _metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._feeds = [*self.material.judged, *self._batches()]
        self._answers = [self.reference.run(feeds) for feeds in self._feeds]
        self._add_padded()
        wanted = [budget for budget in self.budgets if budget.of_task]
        if wanted:
            self._metrics = self._measured(self.reference)
        for budget in wanted:
            if budget.metric not in self._metrics:
                raise InputError(
                    f"the budget '{budget}' is about '{budget.metric}', but the metrics of the data are"
                    f" {', '.join(self._metrics)}"
                )
            grows = budget.metric in LOWER_IS_BETTER
            if grows != (budget.change > 0):
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
        answers = [session.run(feeds) for feeds in self._feeds]
        found = figures(self._answers, answers, self.tolerances)
        if self._metrics:
            found |= self._measured(session)
        broken = [reason for budget in budgets if (reason := budget.broken(found, self._metrics))]
        return Judged(found, "; ".join(broken) or None, self._neighbours(session))

    def _measured(self, session: Session) -> dict[str, float]:
        assert self.material.dataset is not None
        return evaluate_task(session.task, self.material.dataset, self.progress).metrics

    def _batches(self) -> list[Feeds]:
        signature = self.reference.signature
        dim = batch_dim(signature)
        if dim is None:
            return []
        return [
            resized(signature, self.material.judged[0], {dim: size})
            for size in _SIZES
            if dim not in signature.limits or size in signature.limits[dim]
        ]

    def _add_padded(self) -> None:
        """Two rows, of which the second has half masked out, as of a batch of texts of two lengths: a feed
        of one row is never padded. Left out where the reference has no finite answer to it."""
        dim = batch_dim(self.reference.signature)
        if dim is None or dim in self.reference.signature.limits:
            return
        feeds = resized(self.reference.signature, self.material.judged[0], {dim: 2})
        masked = False
        for spec in self.reference.signature.inputs:
            if "mask" in spec.name and spec.dims[:1] == (dim,) and len(spec.dims) > 1:
                array = feeds[spec.name] = feeds[spec.name].copy()
                array[1, array.shape[1] // 2 :] = 0
                masked = True
        if not masked:
            return
        try:
            answer = self.reference.run(feeds)
        except InferError:
            return
        if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in answer.values()):
            self._feeds.append(feeds)
            self._answers.append(answer)

    def _neighbours(self, session: Session) -> float:
        """One input alone, and beside another one of the same size."""
        dim = batch_dim(session.signature)
        if dim is None or dim in session.signature.limits:
            return 0.0
        first = self.material.judged[0]
        shapes = {name: array.shape for name, array in first.items()}
        worst = 0.0
        for other in self.material.judged[1:9]:
            if {name: array.shape for name, array in other.items()} != shapes:
                continue
            both = {
                spec.name: np.concatenate([first[spec.name], other[spec.name]])
                if dim == (spec.dims or (None,))[0]
                else first[spec.name]
                for spec in session.signature.inputs
            }
            alone, beside = session.run(first), session.run(both)
            for spec in session.signature.outputs:
                if spec.dims[:1] == (dim,) and alone[spec.name].dtype.kind == "f":
                    worst = max(worst, _moved(alone[spec.name], beside[spec.name][: len(alone[spec.name])]))
        return worst


def _moved(alone: Array, beside: Array) -> float:
    scale = float(np.abs(alone).max(initial=0.0)) or 1.0
    return float(np.abs(alone - beside).max(initial=0.0)) / scale


Opening = Callable[[], AbstractContextManager[Session]]
"""Opens a session anew."""


@dataclass(frozen=True)
class Contender:
    """A variant to be timed, by its name and how to open it."""

    name: str
    opening: Opening


class _Asked:
    """A contender that answers all of `timed` as one query, in a session that can be opened anew."""

    def __init__(self, contender: Contender, timed: Sequence[Feeds], stack: ExitStack) -> None:
        self._contender, self._timed = contender, timed
        self._own = stack.enter_context(ExitStack())
        self._session = self._own.enter_context(contender.opening())

    def reopen(self) -> None:
        self._own.close()
        self._session = self._own.enter_context(self._contender.opening())

    def turn(self, count: int) -> Array:
        run, timed = self._session.run, self._timed

        def call() -> None:
            for feeds in timed:
                run(feeds)

        return Call(call).turn(count)

    def serve(self, due_s: Array) -> Array:
        raise NotImplementedError  # nothing here is timed by arrivals


def time_ratio(
    contender: Contender,
    against: Contender,
    timed: Sequence[Feeds],
    seconds: float,
    progress: Progress,
    starts: int,
) -> Estimate:
    """How many times as long `contender` takes as `against` for all of `timed`, asked in turns.

    Both are opened `starts` times: a session keeps the speed that it began with, and two of one and the
    same graph were seen 6 % apart. Fewer times, but twice, if opening would take longer than timing.
    """
    with ExitStack() as stack:
        start = time.perf_counter()
        ours, theirs = _Asked(contender, timed, stack), _Asked(against, timed, stack)
        opening_s = time.perf_counter() - start
        starts = min(starts, max(2, int(seconds / opening_s)))

        def restart() -> None:
            ours.reopen()
            theirs.reopen()

        measured = take_turns({"a": ours, "b": theirs}, seconds, progress, starts=starts, restart=restart)
    times = measured.times
    return paired_ratio(times["a"].medians, times["b"].medians, measured.starts)
