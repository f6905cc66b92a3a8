"""How one thing is tried: the graph is rewritten and saved, judged, and timed beside the best so far."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from infer.errors import InferError
from infer.feeds import BATCH, Feeds, batch_dim, resized, sizes_of
from infer.machine import this_machine
from infer.measure.rounds import Progress
from infer.measure.statistics import Estimate, verdict
from infer.measure.work import operations_by_node
from infer.optimizer.budget import Budget
from infer.optimizer.divergence import diverges
from infer.optimizer.gates import Contender, Judge, Judged, time_ratio
from infer.optimizer.material import Material
from infer.optimizer.outcome import OptimizeOptions, Settings
from infer.optimizer.passes import PassResult
from infer.optimizer.quantization.weights import channels_that_may_saturate
from infer.optimizer.rewriting import constant
from infer.optimizer.verdict import Verdict
from infer.optimizer.workshop import Workshop, graph_of
from infer.options import PlanOptions, SessionOptions
from infer.parity import TOLERANCES
from infer.planner import make_plan
from infer.session import Session, open_session

_REHEARSED = 16
"""Calibration feeds that a sensitivity search asks again and again."""

_STARTS = 4
"""How often contenders are opened for a ratio that decides."""

_QUERY_S = 0.4
"""How long the feeds that are timed may take together."""

_GLANCE, _MUCH_SLOWER = 0.25, 1.1
"""How much of the time a first look takes, and what it is enough for: one start may be 6 % off."""

_SLOWER = 0.02
"""A smaller variant may be so much slower, which is less than is noticed."""

_QUICKLY = SessionOptions(verify=False, warm_up=False)

Build = Callable[[ir.Model], PassResult]


@dataclass(frozen=True)
class Attempt:
    """One thing to be tried.

    Attributes:
        backend: what is to run it.
        build: changes the reference's graph; None: nothing, it is the backend that is tried.
        precision, exact: of what comes of it, and whether that is to keep the numbers.
    """

    name: str
    backend: str
    build: Build | None
    precision: str
    exact: bool


@dataclass(frozen=True)
class Choice:
    """A verdict's graph, run with these settings."""

    found: Verdict
    settings: Settings


class Trial:
    """All that it takes to try things on one artifact. Each verdict is kept as soon as it is reached, and
    reached once."""

    def __init__(
        self,
        workshop: Workshop,
        reference: Session,
        material: Material,
        options: OptimizeOptions,
        progress: Progress,
    ) -> None:
        self.workshop, self.reference, self.material = workshop, reference, material
        self.options, self.progress = options, progress
        parity = reference.artifact.manifest.parity
        self._tolerances = parity.tolerances if parity else TOLERANCES
        self._timed = _short(material.timed, reference)
        self._resized: dict[int, Sequence[Feeds]] = {}
        self._judge: Judge | None = None
        self._rehearsal: Judge | None = None

    def attempt(self, attempt: Attempt, best: Contender, best_bytes: int) -> Verdict:
        """Build a graph, judge it, and time it beside the best so far."""
        if (known := self.workshop.known(attempt.name)) is not None:
            return known
        self.progress(f"{attempt.name}: preparing")
        found = Verdict(
            attempt.name,
            False,
            "",
            precision=attempt.precision,
            exact=attempt.exact,
            backend=attempt.backend,
            graph=self.workshop.reference.graph,
            size_bytes=self.workshop.reference.size_bytes,
        )
        try:
            found = self._built_and_gated(attempt, found, best, best_bytes)
        except InferError as error:
            found = replace(found, kept=False, why=f"it fails: {error}")
        if not found.kept and (attempt.exact or not found.within):
            # what approximates and is within the budget may be faster for other sizes
            self.workshop.discard(graph_of(attempt.name))
            found = replace(found, graph=found.graph if found.within and attempt.build is None else None)
        return self.workshop.note(found)

    def _built_and_gated(
        self, attempt: Attempt, found: Verdict, best: Contender, best_bytes: int
    ) -> Verdict:
        if attempt.build is None:
            return self._gated(found, None, best, best_bytes)
        model = self.workshop.load()
        result = attempt.build(model)
        found = replace(
            found, found=result.found, rewritten=result.rewritten, declined=dict(result.declined)
        )
        if not result.rewritten:
            why = "it could not be applied" if result.found else "nothing of the kind is in the graph"
            return replace(found, why=why)
        graph, size_bytes = self.workshop.write(model, attempt.name)
        saturating = 0 if attempt.exact else channels_that_may_saturate(model)
        found = replace(found, graph=graph, size_bytes=size_bytes, may_saturate=saturating)
        return self._gated(found, model, best, best_bytes)

    def _gated(self, found: Verdict, model: ir.Model | None, best: Contender, best_bytes: int) -> Verdict:
        if self.options.objective == "size" and found.size_bytes >= best_bytes:
            return replace(found, why="it is not smaller")
        budgets = (Budget(),) if found.exact else self.options.budgets
        contender = self.contender(found)
        with contender.opening() as session:
            self.progress(f"{found.name}: judging")
            judged = self.judge.judge(session, budgets)
        found = replace(found, figures=judged.figures, neighbours=judged.neighbours)
        if judged.broken is not None:
            if not found.exact and much_slower(glance := self.glance(contender, best)):
                # with some of its nodes in float, it would be slower still
                why = f"{judged.broken}, and it is slower"
                return replace(found, why=why, ratio=glance, against=best.name)
            where = "" if model is None or not found.exact else self._first_difference(model)
            return replace(found, why=f"{judged.broken}{where}", broken=True)
        ratio = self.ratio(contender, best)
        kept, why = self._worth(ratio, found.size_bytes, best_bytes)
        return replace(found, kept=kept, why=why, within=True, ratio=ratio, against=best.name)

    def _worth(self, ratio: Estimate, size_bytes: int, best_bytes: int) -> tuple[bool, str]:
        if self.options.objective != "size":
            return verdict(ratio) == "faster", speed_said(ratio)
        slower = ratio.low > 1 + _SLOWER
        return not slower, f"{size_bytes / best_bytes:.0%} of the size, {speed_said(ratio)}"

    def _first_difference(self, model: ir.Model) -> str:
        """Where a graph that should be equal is not, if that can be told from its inside."""
        try:
            first = diverges(self.workshop.load(), model, self.material.judged[0], self._tolerances).first
        except InferError:
            return ""
        return "" if first is None else f", first at {first}"

    @property
    def judge(self) -> Judge:
        """Holds answers to the reference's, which are computed when it is first asked."""
        if self._judge is None:
            self.progress("asking the reference")
            self._judge = self._judging(self.material)
        return self._judge

    def _judging(self, material: Material) -> Judge:
        return Judge(self.reference, material, self.options.budgets, self._tolerances, self.progress)

    def rehearse(self, attempt: Attempt, budgets: Sequence[Budget]) -> Judged:
        """What an attempt's answers to calibration feeds are, for decisions that judging must not see; one
        that fails is as far off as can be."""
        assert attempt.build is not None
        if self._rehearsal is None:
            self._rehearsal = self._judging(self.material.rehearsed(_REHEARSED))
        try:
            model = self.workshop.load()
            attempt.build(model)
            graph, _ = self.workshop.write(model, "rehearsal")
            with self._opened(graph, attempt.backend, None) as session:
                return self._rehearsal.judge(session, budgets)
        except InferError as error:
            return Judged({"cosine": -1.0}, f"it fails: {error}", 0.0)
        finally:
            self.workshop.discard(graph_of("rehearsal"))

    def costs(self, nodes: Sequence[ir.Node]) -> dict[str, float]:
        """What each of these nodes of the reference takes as it is, by name: weights if files are to become
        smaller, otherwise operations."""
        if self.options.objective == "size":
            return {node.name or "": _weights(node) for node in nodes}
        counts = self._operations()
        return {node.name or "": counts.get(node.name or "", 0.0) for node in nodes}

    def _operations(self) -> dict[str, float]:
        graph, _ = self.workshop.write(self.workshop.load(), "rehearsal")
        feeds = self._timed[len(self._timed) // 2]
        try:
            with self._opened(graph, "onnxruntime", None) as session:
                return operations_by_node(session.artifact, session.plan, feeds)
        except InferError:  # it is no reason not to search that nobody knows what is worth sparing
            return {}
        finally:
            self.workshop.discard(graph)

    def ratio(self, contender: Contender, against: Contender, rows: int | None = None) -> Estimate:
        """Its time over the other's, for so many rows, by default for those that the search is for. A
        glance is enough to drop what is much slower; what is undecided is measured again, for three times
        as long."""
        ratio = self.glance(contender, against, rows)
        if much_slower(ratio):
            return ratio
        ratio = self._look(contender, against, 1.0, _STARTS, rows)
        return (
            self._look(contender, against, 3.0, _STARTS, rows) if verdict(ratio) == "undecided" else ratio
        )

    def glance(self, contender: Contender, against: Contender, rows: int | None = None) -> Estimate:
        """The same, of one start each and in a part of the time."""
        return self._look(contender, against, _GLANCE, 1, rows)

    def _look(
        self, contender: Contender, against: Contender, part: float, starts: int, rows: int | None
    ) -> Estimate:
        def told(said: str) -> None:
            at = "" if rows is None else f" with {rows} rows"
            self.progress(f"{contender.name}: timing{at}, {said}")

        timed = self._timed if rows is None else self._timed_with(rows)
        return time_ratio(contender, against, timed, part * self.options.gate_s, told, starts)

    def mixed_ratio(self, contender: Contender, against: Contender, rows: int) -> Estimate:
        """As `ratio`, where feeds of so many rows and those of the search are asked in turn."""
        own, other = self._timed, self._timed_with(rows)
        timed = [feeds for pair in zip(own, other, strict=False) for feeds in pair]

        def told(said: str) -> None:
            self.progress(f"{contender.name}: timing feeds of both sizes in turn, {said}")

        return time_ratio(contender, against, timed, self.options.gate_s, told, _STARTS)

    @property
    def rows(self) -> int:
        """How many rows feeds have that the search is for."""
        dim = batch_dim(self.reference.signature)
        if dim is None:
            return 1
        return round(
            statistics.median(sizes_of(self.reference.signature, feeds)[dim] for feeds in self._timed)
        )

    def _timed_with(self, rows: int) -> Sequence[Feeds]:
        signature = self.reference.signature
        if rows not in self._resized:
            feeds = [resized(signature, feeds, {BATCH: rows}) for feeds in self.material.timed]
            self._resized[rows] = _short(feeds, self.reference)
        return self._resized[rows]

    def contender(self, found: Verdict, settings: Settings | None = None) -> Contender:
        """A verdict's graph on its backend, with the reference's settings, or those that are given."""
        assert found.graph is not None
        return Contender(found.name, partial(self._opened, found.graph, found.backend, settings))

    @contextmanager
    def _opened(self, graph: str, backend: str, settings: Settings | None) -> Iterator[Session]:
        options = self._plan_options(backend, settings or Settings(self.reference.plan.num_threads))
        with open_session(self.workshop.artifact(graph), options, _QUICKLY) as session:
            yield session

    def _plan_options(self, backend: str, settings: Settings) -> PlanOptions:
        return PlanOptions(device=self.reference.plan.device, backend=backend, **asdict(settings))

    def by_rows(self, few: Choice, many: Choice, rows_from: int) -> Contender:
        """Two verdicts' graphs in one session, the second for so many rows and more."""
        return Contender(
            f"{few.found.name} and {many.found.name}", partial(self._opened_by_rows, few, many, rows_from)
        )

    @contextmanager
    def _opened_by_rows(self, few: Choice, many: Choice, rows_from: int) -> Iterator[Session]:
        plans = []
        for choice in (few, many):
            assert choice.found.graph is not None
            manifest = self.workshop.artifact(choice.found.graph).manifest
            options = self._plan_options(choice.found.backend, choice.settings)
            plans.append(make_plan(manifest, this_machine(), options))
        plan = replace(plans[0], larger=replace(plans[1], rows_from=rows_from))
        artifact = self.workshop.artifact(*dict.fromkeys(plan.graph for plan in plans))
        with open_session(artifact, options=_QUICKLY, plan=plan) as session:
            yield session


def _short(timed: Sequence[Feeds], reference: Session) -> Sequence[Feeds]:
    """Feeds, from the smallest to the largest, that the reference answers in `_QUERY_S` together: a gate
    asks them some thirty times."""
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
            return [timed[place] for place in places]
        count -= 1
    return [timed[len(timed) // 2]]


def _weights(node: ir.Node) -> float:
    found = [array.size for value in node.inputs if (array := constant(value)) is not None]
    return float(max(found, default=0))


def much_slower(ratio: Estimate | None) -> bool:
    """Surely, after no more than a glance."""
    return ratio is not None and ratio.low > _MUCH_SLOWER


def speed_said(ratio: Estimate) -> str:
    """A ratio of times as a word."""
    return {
        "faster": "faster",
        "slower": "slower",
        "alike": "not faster",
        "undecided": "not surely faster",
    }[verdict(ratio)]
