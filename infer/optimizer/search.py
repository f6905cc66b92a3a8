"""The story of an optimization.

material → the reference answers → passes, one at a time, each kept if equal and faster
         → recipes that approximate, each kept if within the budget and faster
         → threads → the output: the reference, what was kept, and the evidence
"""

from __future__ import annotations

import hashlib
import json
import pickle
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from infer.artifact import Artifact
from infer.drafts import check_target
from infer.errors import InferError, InputError
from infer.evaluation import EVALUATORS
from infer.machine import this_machine
from infer.measure.statistics import Estimate, verdict
from infer.optimizer.budget import EQUAL, Budget
from infer.optimizer.divergence import diverges
from infer.optimizer.gates import Contender, Judge, Judged, time_ratio
from infer.optimizer.material import Data, Material, material
from infer.optimizer.passes import Pass, PassResult
from infer.optimizer.sensitivity import kept_in_float
from infer.optimizer.targets import CENSUS, Given, Recipe, Target, saturates, target_of, unfit
from infer.optimizer.verdict import Verdict, shortfalls
from infer.optimizer.workshop import Workshop
from infer.optimizer.writing import write_output
from infer.options import PlanOptions, SessionOptions
from infer.parity import TOLERANCES
from infer.session import Session, open_session

Progress = Callable[[str], None]

OBJECTIVES = {"latency": 1, "throughput": 8, "size": 1}
"""What is to become better → the rows of a feed that is timed."""

INTERRUPTED, OUT_OF_TIME = "interrupted", "out of time"

REFERENCE = "reference"
FUSED = "fp32-fused"
_SLOWER = 0.02
"""A smaller variant may be so much slower, which is less than is noticed."""

_REHEARSED = 16
"""Calibration feeds that a sensitivity search asks again and again."""


@dataclass(frozen=True)
class OptimizeOptions:
    """How to optimize.

    Attributes:
        budgets: all must hold. Without any, answers must be equal, and nothing that approximates is tried.
        data: inputs of the task, with their answers if a budget is about a metric.
        objective: one of `OBJECTIVES`.
        time_s: nothing new is begun after so many seconds.
        gate_s: how long a variant is timed beside what it would replace.
        device, num_threads: as in `PlanOptions`.
        overwrite: replace an artifact at the output.
    """

    budgets: tuple[Budget, ...] = ()
    data: Data | None = None
    objective: str = "latency"
    time_s: float = 600.0
    gate_s: float = 6.0
    device: str = "auto"
    num_threads: int | None = None
    overwrite: bool = False


def _digest(data: object) -> str:
    """Of data in memory; what has no stable bytes is taken to be new each time."""
    try:
        return hashlib.sha256(pickle.dumps(data)).hexdigest()
    except Exception:  # any object may refuse, in any way
        return uuid.uuid4().hex


@dataclass
class Outcome:
    """What is worth keeping so far.

    Attributes:
        variants: name → its verdict, which says where its graph is; the last one is best.
        changes: pass → what it did, of those that are in the variants.
        num_threads: of the best.
        ratio: time of the best over the reference's.
    """

    variants: dict[str, Verdict] = field(default_factory=dict)
    precisions: dict[str, str] = field(default_factory=dict)
    changes: dict[str, dict[str, str]] = field(default_factory=dict)
    num_threads: int = 0
    ratio: Estimate | None = None


@dataclass(frozen=True)
class Optimized:
    """What came of it: the artifact at the output, all that was tried, and what was worth keeping.

    `data` says what answers were judged on; `unfinished`, why not all was tried: "", `INTERRUPTED` or
    `OUT_OF_TIME`.
    """

    artifact: Artifact
    verdicts: tuple[Verdict, ...]
    outcome: Outcome
    data: str
    unfinished: str

    @property
    def shortfalls(self) -> list[str]:
        """What the original does more often than passes rewrote; see `verdict.shortfalls`."""
        return shortfalls(self.verdicts, self.artifact.manifest.provenance.census, CENSUS)

    @property
    def best(self) -> str:
        """The name of the variant that is fastest here."""
        return next(reversed(self.outcome.variants), self.artifact.manifest.variants[0].name)


def optimize(
    artifact: Artifact, output: Path, options: OptimizeOptions, progress: Progress = lambda _: None
) -> Optimized:
    """Try what can help on this machine, and write to `output` what did.

    Ctrl-C, or the end of the time, ends the search; the best so far is written all the same. Raises
    `InputError` for data or budgets that do not fit, and what `infer.load` raises for the artifact.
    """
    _check(artifact, options)
    check_target(output, overwrite=options.overwrite)  # not after minutes of work
    plan_options = PlanOptions(
        device=options.device,
        variant=artifact.manifest.variants[0].name,
        num_threads=options.num_threads,
    )
    with ExitStack() as stack:
        progress("loading the reference")
        reference = stack.enter_context(open_session(artifact, plan_options))
        found = material(reference, options.data, OBJECTIVES[options.objective])
        workshop = Workshop(
            output.with_name(f".{output.name}.optimizing"), artifact, _key(artifact, options)
        )
        search = _Search(workshop, reference, found, options, progress)
        try:
            unfinished = search.run()
        except InferError:
            if not workshop.verdicts:
                workshop.clear()
            raise
        progress("writing the artifact")
        written = write_output(
            artifact,
            workshop,
            output,
            search.outcome,
            reference,
            found.judged[0],
            " and ".join(map(str, options.budgets)) or EQUAL,
            found.described,
            overwrite=options.overwrite,
        )
    if not unfinished:
        workshop.clear()
    return Optimized(written, tuple(workshop.verdicts), search.outcome, found.described, unfinished)


def _check(artifact: Artifact, options: OptimizeOptions) -> None:
    if options.objective not in OBJECTIVES:
        raise InputError(
            f"there is no objective '{options.objective}'; choose from {', '.join(OBJECTIVES)}"
        )
    wanted = [budget for budget in options.budgets if budget.of_task]
    if not wanted:
        return
    task = artifact.manifest.task
    if task is None or task.name not in EVALUATORS:
        raise InputError(
            f"the budget '{wanted[0]}' is about a metric, but the artifact's task"
            f" '{task.name if task else 'tensors'}' has none; use cosine>=0.999 or the like"
        )
    if options.data is None:
        raise InputError(
            f"the budget '{wanted[0]}' needs data with known answers; give it with --data, as infer eval"
            f" takes it"
        )


def _key(artifact: Artifact, options: OptimizeOptions) -> str:
    """Changes with all that verdicts depend on."""
    path = options.data if isinstance(options.data, Path) else None
    data = path.stat() if path is not None and path.exists() else None
    said = [
        artifact.manifest.to_json(),
        str(artifact.path.resolve()),
        [str(budget) for budget in options.budgets],
        str(options.data) if path is not None or options.data is None else _digest(options.data),
        [data.st_mtime_ns, data.st_size] if data else None,
        options.objective,
        options.gate_s,
        options.device,
        options.num_threads,
        this_machine().fingerprint,
        [version(package) for package in ("infer-onnx", "onnxruntime", "onnx-ir", "numpy")],
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class _Search:
    """One search, step by step. Every step is a verdict that is kept at once."""

    def __init__(
        self,
        workshop: Workshop,
        reference: Session,
        found: Material,
        options: OptimizeOptions,
        progress: Progress,
    ) -> None:
        self._workshop, self._reference, self._found = workshop, reference, found
        self._options, self._progress = options, progress
        self._until = time.monotonic() + options.time_s
        parity = reference.artifact.manifest.parity
        self._tolerances = parity.tolerances if parity else TOLERANCES
        self._judge: Judge | None = None
        self._passes: dict[str, Pass] = {}
        self._target: Target = target_of(reference.plan.backend, reference.plan.device)
        self.outcome = Outcome(num_threads=reference.plan.num_threads)

    def run(self) -> str:
        """Do all steps; why not all of them were, or ""."""
        unfinished = ""
        if any(budget.of_task for budget in self._options.budgets):
            self._judging()  # which says now if there is no such metric
        try:
            try:
                self._try_passes()
                if any(budget.metric != EQUAL for budget in self._options.budgets):
                    self._try_recipes()
                self._try_threads()
            except _OutOfTimeError:
                unfinished = OUT_OF_TIME
            self._compare_with_reference()
        except KeyboardInterrupt:
            return INTERRUPTED
        return unfinished

    def _try_passes(self) -> None:
        """One at a time, on top of those kept before."""
        for name, rewrite in self._target.passes.items():
            passes = {**self._passes, name: rewrite}

            def build(model: ir.Model, passes: dict[str, Pass] = passes) -> PassResult:
                return [each(model) for each in passes.values()][-1]

            verdict = self._step(name, build, "float32", (Budget(),))
            if verdict.kept:
                self._passes = passes
                self._keep(FUSED, verdict, "float32", {name: verdict.changed})

    def _try_recipes(self) -> None:
        given = Given(self._found.calibration, saturates(this_machine()))
        for recipe in self._target.recipes:
            if reason := unfit(recipe, self._workshop.load()):
                if self._workshop.known(recipe.name) is None:
                    self._note(Verdict(recipe.name, False, reason))
                continue
            verdict = self._step(
                recipe.name, self._building(recipe, given, ()), recipe.precision, self._options.budgets
            )
            if verdict.broken:
                verdict = self._with_some_in_float(recipe, given)
            if verdict.kept:
                self._keep(verdict.name, verdict, recipe.precision, {recipe.name: verdict.changed})

    def _building(
        self, recipe: Recipe, given: Given, keep: Collection[str]
    ) -> Callable[[ir.Model], PassResult]:
        def build(model: ir.Model) -> PassResult:
            result = recipe.build(model, given, keep)
            for rewrite in self._passes.values():
                rewrite(model)
            return result

        return build

    def _with_some_in_float(self, recipe: Recipe, given: Given) -> Verdict:
        """The recipe again, without the nodes that cost the most accuracy."""
        name = f"{recipe.name}-mixed"
        if (known := self._workshop.known(name)) is not None:
            return known
        rehearsal = Judge(
            self._reference,
            self._found.rehearsed(_REHEARSED),
            self._options.budgets,
            self._tolerances,
            self._progress,
        )

        def answered(keep: Sequence[str], budgets: Sequence[Budget]) -> Judged:
            model = self._workshop.load()
            self._building(recipe, given, keep)(model)
            graph, _ = self._workshop.write(model, "rehearsal")
            with self._opened("rehearsal", graph, recipe.precision) as session:
                return rehearsal.judge(session, budgets)

        names = [node.name or "" for node in recipe.candidates(self._workshop.load())]
        keep = kept_in_float(
            names,
            lambda keep: 1.0 - answered(keep, ()).figures["cosine"],
            lambda keep: answered(keep, self._options.budgets).broken is None,
            lambda: time.monotonic() > self._until,
            lambda said: self._progress(f"{name}: {said}"),
        )
        self._workshop.discard("graphs/rehearsal.onnx")
        if keep is None:
            return self._note(
                Verdict(name, False, "most nodes would have to stay in float to meet the budget")
            )
        return self._step(
            name, self._building(recipe, given, keep), recipe.precision, self._options.budgets
        )

    def _try_threads(self) -> None:
        """Fewer threads are faster for small graphs."""
        plan = self._reference.plan
        if self._options.num_threads is not None or plan.device != "cpu":
            return
        for count in sorted({1, plan.num_threads // 2} - {0, plan.num_threads}, reverse=True):
            name = f"threads-{count}"
            verdict = self._workshop.known(name)
            if verdict is None:
                self._check_time()
                best = self._best()
                ratio = self._time(self._best(count), best)
                faster = _faster(ratio)
                verdict = self._note(
                    Verdict(name, faster, _speed_said(ratio), ratio=ratio, against=best.name)
                )
            if verdict.kept:
                self.outcome.num_threads = count

    def _compare_with_reference(self) -> None:
        """The best, beside where it began."""
        if not self.outcome.variants and self.outcome.num_threads == self._reference.plan.num_threads:
            return
        threads = self._reference.plan.num_threads
        reference = self._contender(REFERENCE, self._workshop.reference.graph, threads)
        self.outcome.ratio = self._time(self._best(), reference)

    def _step(
        self,
        name: str,
        build: Callable[[ir.Model], PassResult],
        precision: str,
        budgets: Sequence[Budget],
    ) -> Verdict:
        """Build a graph, judge it, and time it beside the best so far."""
        if (known := self._workshop.known(name)) is not None:
            return known
        self._check_time()
        self._progress(f"{name}: rewriting")
        model = self._workshop.load()
        result = build(model)
        changed = str(result)
        if not result.rewritten:
            said = "nothing of the kind is in the graph" if not result.found else "it could not be applied"
            return self._note(Verdict(name, False, said, changed, result.found))
        graph, size_bytes = self._workshop.write(model, name)
        try:
            with self._opened(name, graph, precision) as session:
                self._progress(f"{name}: judging")
                judged = self._judging().judge(session, budgets)
                verdict = Verdict(
                    name,
                    False,
                    judged.broken or "",
                    changed,
                    result.found,
                    result.rewritten,
                    judged.figures,
                    neighbours=judged.neighbours,
                    graph=graph,
                    size_bytes=size_bytes,
                    broken=judged.broken is not None,
                )
                if judged.broken is not None and budgets == (Budget(),):
                    verdict = replace(verdict, why=f"{judged.broken}{self._first_difference(model)}")
                if judged.broken is None:
                    verdict = replace(verdict, kept=True)
            if verdict.kept:
                best = self._best()
                ratio = self._time(self._contender(name, graph), best)
                kept, why = self._worth(ratio, size_bytes)
                verdict = replace(verdict, kept=kept, why=why, ratio=ratio, against=best.name)
        except InferError as error:
            verdict = Verdict(name, False, f"it fails: {error}", changed, result.found, graph=graph)
        if not verdict.kept:
            self._workshop.discard(graph)
            verdict = replace(verdict, graph=None)
        return self._note(verdict)

    def _first_difference(self, model: ir.Model) -> str:
        """Where a graph that should be equal is not, if that can be told from its inside."""
        feeds = self._found.judged[0]
        try:
            first = diverges(self._workshop.load(), model, feeds, self._tolerances).first
        except InferError:
            return ""
        return "" if first is None else f", first at {first}"

    def _worth(self, ratio: Estimate, size_bytes: int) -> tuple[bool, str]:
        if self._options.objective != "size":
            return _faster(ratio), _speed_said(ratio)
        best = self._best_verdict
        before = best.size_bytes if best else self._workshop.reference.size_bytes
        if size_bytes >= before:
            return False, "it is not smaller"
        slower = ratio.low > 1 + _SLOWER
        return not slower, f"{size_bytes / before:.0%} of the size, {_speed_said(ratio)}"

    def _time(self, contender: Contender, against: Contender) -> Estimate:
        """Measured again, for three times as long, if it is undecided."""

        def told(said: str) -> None:
            self._progress(f"{contender.name}: timing, {said}")

        ratio = time_ratio(contender, against, self._found.timed, self._options.gate_s, told)
        if verdict(ratio) == "undecided":
            ratio = time_ratio(contender, against, self._found.timed, 3 * self._options.gate_s, told)
        return ratio

    def _keep(self, variant: str, verdict: Verdict, precision: str, changes: dict[str, str]) -> None:
        """Note it as the best so far, in the place of others of its kind: there is one that keeps the
        numbers, and one that does not."""
        before = self.outcome.changes.get(variant, {})
        exact = precision == "float32"
        for name in list(self.outcome.variants):
            if (self.outcome.precisions[name] == "float32") == exact:
                del self.outcome.variants[name]
        self.outcome.variants[variant] = verdict
        self.outcome.precisions[variant] = precision
        self.outcome.changes[variant] = {**before, **changes}

    @property
    def _best_verdict(self) -> Verdict | None:
        return next(reversed(self.outcome.variants.values()), None)

    def _best(self, num_threads: int | None = None) -> Contender:
        """The best so far, with as many threads as it has, or as are named."""
        found, threads = self._best_verdict, num_threads or self.outcome.num_threads
        name, graph = REFERENCE, self._workshop.reference.graph
        if found is not None:
            assert found.graph is not None
            name, graph = found.name, found.graph
        return self._contender(f"{name}, {threads} threads" if num_threads else name, graph, threads)

    def _contender(self, name: str, graph: str, num_threads: int | None = None) -> Contender:
        threads = num_threads or self.outcome.num_threads
        return Contender(name, partial(self._opened, name, graph, "", threads))

    @contextmanager
    def _opened(
        self, name: str, graph: str, precision: str, num_threads: int | None = None
    ) -> Iterator[Session]:
        plan = PlanOptions(
            device=self._reference.plan.device,
            num_threads=num_threads or self._reference.plan.num_threads,
        )
        options = SessionOptions(verify=False, warm_up=False)
        with open_session(self._workshop.artifact(name, graph, precision), plan, options) as session:
            yield session

    def _judging(self) -> Judge:
        if self._judge is None:
            self._progress("asking the reference")
            self._judge = Judge(
                self._reference, self._found, self._options.budgets, self._tolerances, self._progress
            )
        return self._judge

    def _note(self, verdict: Verdict) -> Verdict:
        return self._workshop.note(verdict)

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            raise _OutOfTimeError


class _OutOfTimeError(Exception):
    """Nothing new may be begun."""


def _faster(ratio: Estimate) -> bool:
    return verdict(ratio) == "faster"


def _speed_said(ratio: Estimate) -> str:
    return {
        "faster": "faster",
        "slower": "slower",
        "alike": "not faster",
        "undecided": "not surely faster",
    }[verdict(ratio)]
