"""How contenders are timed: variants of one artifact, opened as they would be run, asked in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from infer.feeds import Feeds, batch_dim, resized, sizes_of
from infer.machine import this_machine
from infer.measure.rounds import MIN_ROUNDS, Progress
from infer.measure.statistics import Estimate, verdict
from infer.optimizer.apart import Planned, ratio_apart
from infer.optimizer.gates import Contender, time_ratio
from infer.optimizer.outcome import OptimizeOptions, Settings
from infer.optimizer.verdict import Verdict
from infer.optimizer.workshop import Workshop
from infer.options import PlanOptions, SessionOptions
from infer.plan import Plan
from infer.planner import make_plan
from infer.session import Session, open_session

_QUERY_S = 0.15
"""How long the feeds that are timed may take together, if they are more than one."""

_AGAIN = 0.05
"""The part of the search's time that measuring anew may take."""

_MUCH = 1.1
"""How many times as slow or as fast a glance tells surely: one start may be 6 % off."""

_QUICKLY = SessionOptions(verify=False, warm_up=False)


@dataclass(frozen=True)
class _Look:
    """How closely two are looked at: for which part of a gate's time, in how many rounds at least, and
    opened how often."""

    part: float
    rounds: int
    starts: int


_GLANCE, _SHORT, _FULL, _LONG = (
    _Look(0.25, 5, 1), _Look(0.5, 8, 2), _Look(1.0, MIN_ROUNDS, 4), _Look(3.0, MIN_ROUNDS, 4)
)  # fmt: skip
_APART = _Look(2.0, MIN_ROUNDS, 8)
"""Processes differ more than sessions of one do."""


@dataclass(frozen=True)
class Choice:
    """A verdict's graph, run with these settings."""

    found: Verdict
    settings: Settings


class Timing:
    """Opens contenders and measures how many times as long one takes as another.

    Attributes:
        usual: the reference's settings.
        rows: how many a feed has that is timed, unless others are asked for.
        typical_s: what the reference takes for a feed of middle size.
    """

    def __init__(
        self,
        workshop: Workshop,
        reference: Session,
        timed: Sequence[Feeds],
        options: OptimizeOptions,
        progress: Progress,
    ) -> None:
        self._workshop, self._reference = workshop, reference
        self._gate_s, self._again_s = options.gate_s, _AGAIN * options.time_s
        self._progress = progress
        self._device = reference.plan.device
        self._all = timed
        self._timed, self.typical_s = _short(timed, reference)
        self._resized: dict[int, Sequence[Feeds]] = {}
        self.usual = Settings(reference.plan.num_threads)
        dim = batch_dim(reference.signature)
        sizes = [sizes_of(reference.signature, feeds).get(dim or "", 1) for feeds in self._timed]
        self.rows = round(statistics.median(sizes))

    @property
    def typical(self) -> Feeds:
        """The feeds of middle size among those that are timed."""
        return self._timed[len(self._timed) // 2]

    def ratio(self, contender: Contender, against: Contender, rows: int | None = None) -> Estimate:
        """Its time over the other's, for so many rows, by default for those that the search is for. A
        glance is enough to drop what is much slower, and a short look more to take what is much faster."""
        ratio = self.glance(contender, against, rows)
        if much_slower(ratio):
            return ratio
        if ratio.high < 1 / _MUCH:
            ratio = self._look(contender, against, _SHORT, rows)
            if verdict(ratio) == "faster":
                return ratio
        return self.whole(contender, against, rows)

    def whole(self, contender: Contender, against: Contender, rows: int | None = None) -> Estimate:
        """The same in a full look, however far from alike they are; what is undecided is measured again,
        for three times as long, unless that takes too much of the search's time."""
        start = time.perf_counter()
        ratio = self._look(contender, against, _FULL, rows)
        taken_s = time.perf_counter() - start
        if verdict(ratio) != "undecided" or taken_s + 2 * self._gate_s > self._again_s:
            return ratio
        return self._look(contender, against, _LONG, rows)

    def glance(self, contender: Contender, against: Contender, rows: int | None = None) -> Estimate:
        """The same, of one start each and in a part of the time."""
        return self._look(contender, against, _GLANCE, rows)

    def _look(self, contender: Contender, against: Contender, look: _Look, rows: int | None) -> Estimate:
        def told(said: str) -> None:
            at = "" if rows is None else f" with {rows} rows"
            self._progress(f"{contender.name}: timing{at}, {said}")

        timed = self._timed if rows is None else self._timed_with(rows)
        seconds = look.part * self._gate_s
        return time_ratio(contender, against, timed, seconds, told, look.starts, look.rounds)

    def mixed_ratio(self, contender: Contender, against: Contender, rows: int) -> Estimate:
        """As `ratio`, where feeds of so many rows and those of the search are asked in turn."""
        own, other = self._timed, self._timed_with(rows)
        timed = [feeds for pair in zip(own, other, strict=False) for feeds in pair]

        def told(said: str) -> None:
            self._progress(f"{contender.name}: timing feeds of both sizes in turn, {said}")

        return time_ratio(contender, against, timed, self._gate_s, told, _FULL.starts)

    def _timed_with(self, rows: int) -> Sequence[Feeds]:
        signature = self._reference.signature
        if rows not in self._resized:
            sizes = {dim: rows} if (dim := batch_dim(signature)) else {}
            feeds = [resized(signature, feeds, sizes) for feeds in self._all]
            self._resized[rows], _ = _short(feeds, self._reference)
        return self._resized[rows]

    def contender(self, found: Verdict, settings: Settings | None = None) -> Contender:
        """A verdict's graph on its backend, with the reference's settings, or those that are given."""
        assert found.graph is not None
        opening = partial(self.opened, found.graph, found.backend, found.compute_dtype, settings)
        return Contender(found.name, opening)

    @contextmanager
    def opened(
        self,
        graph: str,
        backend: str,
        compute_dtype: str | None = None,
        settings: Settings | None = None,
    ) -> Iterator[Session]:
        """A session on a graph of the workshop."""
        with self._on(self._plan(graph, backend, compute_dtype, settings or self.usual)) as session:
            yield session

    def _plan(self, graph: str, backend: str, compute_dtype: str | None, settings: Settings) -> Plan:
        # several runs at once only as they are tried: a lone caller's are timed otherwise; and sessions of
        # one process soon have the same pages
        settings = replace(settings, streams=settings.streams or 1, huge_pages=False)
        options = PlanOptions(device=self._device, backend=backend, **asdict(settings))
        plan = make_plan(self._workshop.artifact(graph).manifest, this_machine(), options)
        return replace(plan, compute_dtype=compute_dtype)

    @contextmanager
    def _on(self, plan: Plan) -> Iterator[Session]:
        graphs = {plan.graph, plan.larger.graph if plan.larger else plan.graph}
        with open_session(self._workshop.artifact(*graphs), options=_QUICKLY, plan=plan) as session:
            yield session

    def apart(self, ours: Choice, theirs: Choice) -> Estimate:
        """As `whole`, each in processes of its own, which is what can be in huge pages or not."""

        def told(said: str) -> None:
            self._progress(f"{ours.found.name}: timing in processes of their own, {said}")

        one, other = (self._planned(choice) for choice in (ours, theirs))
        return ratio_apart(one, other, self._timed, _APART.part * self._gate_s, told, _APART.starts)

    def _planned(self, choice: Choice) -> Planned:
        found = choice.found
        assert found.graph is not None
        plan = self._plan(found.graph, found.backend, found.compute_dtype, choice.settings)
        plan = replace(plan, huge_pages=choice.settings.huge_pages)
        return Planned(found.name, self._workshop.artifact(found.graph), plan)

    def by_rows(self, few: Choice, many: Choice, rows_from: int) -> Contender:
        """Two verdicts' graphs in one session, the second for so many rows and more."""
        return Contender(
            f"{few.found.name} and {many.found.name}", partial(self._opened_by_rows, few, many, rows_from)
        )

    @contextmanager
    def _opened_by_rows(self, few: Choice, many: Choice, rows_from: int) -> Iterator[Session]:
        plans = []
        for choice in (few, many):
            found = choice.found
            assert found.graph is not None
            plans.append(self._plan(found.graph, found.backend, found.compute_dtype, choice.settings))
        with self._on(replace(plans[0], larger=replace(plans[1], rows_from=rows_from))) as session:
            yield session


def _short(timed: Sequence[Feeds], reference: Session) -> tuple[Sequence[Feeds], float]:
    """Feeds, from the smallest to the largest, that the reference answers in `_QUERY_S` together: a gate
    asks them some thirty times. And what it takes for one of middle size."""
    taken = []
    for feeds in timed:
        reference.run(feeds)
        start = time.perf_counter()
        reference.run(feeds)
        taken.append(time.perf_counter() - start)
    count = len(timed)
    while count > 1:
        places = np.linspace(0, len(timed) - 1, count).round().astype(int).tolist()
        if sum(taken[place] for place in places) <= _QUERY_S:
            return [timed[place] for place in places], statistics.median(taken)
        count -= 1
    return [timed[len(timed) // 2]], statistics.median(taken)


def much_slower(ratio: Estimate | None) -> bool:
    """Surely, after no more than a glance."""
    return ratio is not None and ratio.low > _MUCH


def speed_said(ratio: Estimate) -> str:
    """A ratio of times as a word."""
    return {
        "faster": "faster",
        "slower": "slower",
        "alike": "not faster",
        "undecided": "not surely faster",
    }[verdict(ratio)]
