"""How one thing is tried: the graph is rewritten and saved, judged, and timed beside the best so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from infer.errors import InferError, InputError
from infer.feeds import Feeds
from infer.manifest import Saturation
from infer.measure.rounds import Progress
from infer.measure.statistics import Estimate, verdict
from infer.measure.work import operations_by_node
from infer.optimizer.budget import Budget
from infer.optimizer.divergence import diverges
from infer.optimizer.gates import Contender, Judge, Judged
from infer.optimizer.material import Material
from infer.optimizer.outcome import OptimizeOptions
from infer.optimizer.passes import PassResult
from infer.optimizer.quantization.saturation import saturation
from infer.optimizer.rewriting import constant_or_turned
from infer.optimizer.timing import Timing, much_slower, speed_said
from infer.optimizer.verdict import Verdict
from infer.optimizer.workshop import Workshop, graph_of
from infer.parity import TOLERANCES
from infer.session import Session

_REHEARSED, _FEWEST_REHEARSED = 16, 8
"""Calibration feeds that a sensitivity search asks again and again: the most, and for slow models."""

_REHEARSAL_S = 1.0
"""How long the reference may take for them."""

_SLOWER = 0.02
"""A smaller variant may be so much slower, which is less than is noticed."""

Build = Callable[[ir.Model], PassResult]


@dataclass(frozen=True)
class Attempt:
    """One thing to be tried.

    Attributes:
        backend: what is to run it.
        build: changes the reference's graph; None: nothing, it is the backend that is tried.
        precision, exact: of what comes of it, and whether that is to keep the numbers.
        compute_dtype: what is computed in where the graph has float32, if that is another.
    """

    name: str
    backend: str
    build: Build | None
    precision: str
    exact: bool
    compute_dtype: str | None = None


class Trial:
    """All that it takes to try things on one artifact. Each verdict is kept as soon as it is reached, and
    reached once.

    Attributes:
        rehearsal_s: how long the latest rehearsal took; 0.0 before the first.
    """

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
        self.timing = Timing(workshop, reference, material.timed, options, progress)
        self._judge: Judge | None = None
        self._rehearsal: Judge | None = None
        self.rehearsal_s = 0.0

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
            compute_dtype=attempt.compute_dtype,
            graph=self.workshop.reference.graph,
            size_bytes=self.workshop.reference.size_bytes,
        )
        try:
            with self.workshop.trying(attempt.name):
                found = self._built_and_gated(attempt, found, best, best_bytes)
        except Exception as error:  # whatever is wrong with one thing, others may help
            found = replace(found, kept=False, why=f"it fails: {told(error)}")
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
        found = replace(found, graph=graph, size_bytes=size_bytes)
        return self._gated(found, model, best, best_bytes)

    def _gated(self, found: Verdict, model: ir.Model | None, best: Contender, best_bytes: int) -> Verdict:
        if self.options.objective == "size" and found.size_bytes >= best_bytes:
            return replace(found, why="it is not smaller")
        budgets = (Budget(),) if found.exact else self.options.budgets
        contender = self.timing.contender(found)
        with contender.opening() as session:
            self.progress(f"{found.name}: judging")
            judged = self.judge.judge(session, budgets)
            moved = self.judge.neighbours(session) if judged.broken is None else None
        found = replace(found, figures=judged.figures, neighbours=moved)
        if judged.broken is not None:
            if not found.exact and much_slower(glance := self.timing.glance(contender, best)):
                # with some of its nodes in float, it would be slower still
                why = f"{judged.broken}, and it is slower"
                return replace(found, why=why, ratio=glance, against=best.name)
            where = self._where(model, judged.farthest, exact=found.exact)
            return replace(found, why=f"{judged.broken}{where}", broken=True)
        ratio = self.timing.ratio(contender, best)
        kept, why = self._worth(ratio, found.size_bytes, best_bytes)
        return replace(found, kept=kept, why=why, within=True, ratio=ratio, against=best.name)

    def _worth(self, ratio: Estimate, size_bytes: int, best_bytes: int) -> tuple[bool, str]:
        if self.options.objective != "size":
            return verdict(ratio) == "faster", speed_said(ratio)
        return not too_slow(ratio), f"{size_bytes / best_bytes:.0%} of the size, {speed_said(ratio)}"

    def _where(self, model: ir.Model | None, feeds: Feeds | None, *, exact: bool) -> str:
        """Where a graph that should be equal first is not with these feeds, or where one that approximates
        loses the most, if that can be told from its inside."""
        if model is None or feeds is None:
            return ""
        try:
            told = diverges(self.workshop.load(), model, feeds, self._tolerances)
        except (InferError, MemoryError):  # all values of both at once are more than their answers
            return ""
        if exact:
            return f", first at {told.first}" if told.first else ""
        return f", most of it at {told.steps[0]}" if told.steps else ""

    @property
    def judge(self) -> Judge:
        """Holds answers to the reference's, which are computed when it is first asked."""
        if self._judge is None:
            self.progress("asking the reference")
            golden = list(self.reference.artifact.golden_feeds())
            self._judge = self._judging(self.material, self.options.budgets, golden)
        return self._judge

    def _judging(
        self, material: Material, budgets: Sequence[Budget], golden: Sequence[Feeds] = ()
    ) -> Judge:
        return Judge(self.reference, material, budgets, self._tolerances, self.progress, golden)

    def _rehearsing(self) -> Judge:
        """Of calibration feeds; without the metrics of the task, if these are too few for them: some need
        an input of each class, say."""
        material, budgets = self.material.rehearsed(self._few), self.options.budgets
        try:
            return self._judging(material, budgets)
        except InputError:
            return self._judging(material, [budget for budget in budgets if not budget.of_task])

    def rehearse(self, attempt: Attempt, budgets: Sequence[Budget]) -> Judged:
        """What an attempt's answers to calibration feeds are, for decisions that judging must not see; one
        that fails is as far off as can be."""
        assert attempt.build is not None
        if self._rehearsal is None:
            self._rehearsal = self._rehearsing()
        budgets = [budget for budget in budgets if budget in self._rehearsal.budgets]
        start = time.perf_counter()
        try:
            with self.workshop.trying(attempt.name):
                model = self.workshop.load()
                attempt.build(model)
                graph, _ = self.workshop.write(model, "rehearsal")
                with self.timing.opened(graph, attempt.backend, attempt.compute_dtype) as session:
                    return self._rehearsal.judge(session, budgets)
        except Exception as error:  # as in `attempt`
            return Judged({"cosine": -1.0}, f"it fails: {told(error)}")
        finally:
            self.workshop.discard(graph_of("rehearsal"))
            self.rehearsal_s = time.perf_counter() - start

    @property
    def _few(self) -> int:
        """How many calibration feeds are asked where all would take too long."""
        count = int(_REHEARSAL_S / self.timing.typical_s)
        return max(_FEWEST_REHEARSED, min(_REHEARSED, count))

    def saturation(self, found: Verdict) -> Saturation:
        """What of a quantized variant can overflow elsewhere, asked with calibration feeds."""
        assert found.graph is not None
        self.progress(f"{found.name}: what it would be without VNNI")
        return saturation(
            ir.load(self.workshop.folder / found.graph), self.material.calibration[: self._few]
        )

    def costs(self, nodes: Sequence[ir.Node]) -> dict[str, float]:
        """What each of these nodes of the reference takes as it is, by name: weights if files are to become
        smaller, otherwise operations."""
        if self.options.objective == "size":
            return {node.name or "": _weights(node) for node in nodes}
        counts = self._operations()
        return {node.name or "": counts.get(node.name or "", 0.0) for node in nodes}

    def _operations(self) -> dict[str, float]:
        graph, _ = self.workshop.write(self.workshop.load(), "rehearsal")
        feeds = self.timing.typical
        try:
            with self.timing.opened(graph, "onnxruntime") as session:
                return operations_by_node(session.artifact, session.plan, feeds)
        except InferError:  # it is no reason not to search that nobody knows what is worth sparing
            return {}
        finally:
            self.workshop.discard(graph)


def too_slow(ratio: Estimate) -> bool:
    """Whether what is smaller is slower, surely and by more than is let through."""
    return ratio.low > 1 + _SLOWER


def told(error: Exception) -> str:
    """What went wrong, in a sentence."""
    if isinstance(error, InferError):
        return f"{error}"
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    return f"{type(error).__name__}: {error}"[:200]


def _weights(node: ir.Node) -> float:
    found = [array.size for value in node.inputs if (array := constant_or_turned(value)) is not None]
    return float(max(found, default=0))
