"""The story of an optimization.

material → the reference answers → backends as they are, and passes, one at a time: kept if equal and faster
         → recipes that approximate, each kept if within the budget and faster
         → threads and other settings → all of these for many rows, or for one
         → the output: the reference, what was kept, and the evidence
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from infer.artifact import Artifact
from infer.backends import BACKENDS, FIXED_SHAPES, load_backend
from infer.drafts import check_target
from infer.errors import DeviceError, InferError, InputError, MissingPackageError
from infer.evaluation import EVALUATORS
from infer.machine import this_machine
from infer.measure.statistics import Estimate, verdict
from infer.optimizer.budget import EQUAL
from infer.optimizer.by_rows import faster_at, other_rows, rows_said
from infer.optimizer.contract import Counted, whole
from infer.optimizer.gates import Contender
from infer.optimizer.making import Making
from infer.optimizer.material import material
from infer.optimizer.outcome import (
    INTERRUPTED,
    OBJECTIVES,
    OUT_OF_TIME,
    REFERENCE,
    WHOLE,
    Optimized,
    OptimizeOptions,
    Outcome,
    Settings,
    runtime_of,
)
from infer.optimizer.passes import Pass, PassResult
from infer.optimizer.positions import needs_more_bits
from infer.optimizer.recipes import LIKE, Given, Recipe, unfit
from infer.optimizer.resuming import key_of, left_over
from infer.optimizer.targets import INSTEAD, Target, saturates, targets_of
from infer.optimizer.timing import Choice, much_slower, speed_said
from infer.optimizer.trial import Attempt, Trial, too_slow
from infer.optimizer.tuning import Tuning
from infer.optimizer.verdict import Verdict
from infer.optimizer.workshop import Workshop
from infer.optimizer.writing import write_output
from infer.options import PlanOptions
from infer.session import Session, open_session

Progress = Callable[[str], None]

FUSED = "fp32-fused"

_FOR_GRAPHS = 0.8
"""The share of the time after which no other graph is tried: how the best is run can be worth as much."""


def optimize(
    artifact: Artifact, output: Path, options: OptimizeOptions, progress: Progress = lambda _: None
) -> Optimized:
    """Try what can help on this machine, and write to `output` what did.

    Ctrl-C, or the end of the time, ends the search; the best so far is written all the same. Raises
    `InputError` for data or budgets that do not fit, and what `infer.load` raises for the artifact.
    """
    _check(artifact, options)
    output = output if output.name else output.resolve()
    folder = output.with_name(f".{output.name}.optimizing")
    # not after minutes of work; what this very search left unfinished may be replaced
    check_target(output, overwrite=options.overwrite or left_over(folder, output))
    plan_options = PlanOptions(
        device=options.device,
        variant=artifact.manifest.variants[0].name,
        num_threads=options.num_threads,
    )
    with ExitStack() as stack:
        progress("loading the reference")
        reference = stack.enter_context(open_session(artifact, plan_options))
        targets = _installed(targets_of(reference.plan.device), options, reference)
        found = material(reference, options.data, OBJECTIVES[options.objective])
        if found.dataset is None:
            _check_metrics(options)
        key = key_of(artifact, options, targets, found)
        if not options.overwrite and not left_over(folder, output, key):
            check_target(output, overwrite=False)
        workshop = Workshop(folder, artifact, key)
        try:
            trial = Trial(workshop, reference, found, options, progress)
            search = _Search(trial, targets)
            unfinished = search.run()
        except InferError:
            if not workshop.verdicts:
                workshop.clear()
            raise
        for each in search.outcome.running:
            if each.has_int8_products:
                search.outcome.saturation[each.name] = trial.saturation(each)
        progress("writing the artifact")
        written = write_output(
            artifact,
            workshop,
            output,
            search.outcome,
            reference,
            found.judged[0],
            options.budget,
            found.described,
            prepared=options.prepare and options.objective != "size",
            overwrite=True,  # what is there was looked at in the beginning
        )
        left = _whole(workshop, search.outcome, reference)
    if unfinished:
        workshop.leave(output)
    else:
        workshop.clear()
    return Optimized(
        written,
        tuple(workshop.verdicts),
        search.outcome,
        options.budget,
        search.metrics,
        found.described,
        left,
        unfinished,
    )


def _whole(workshop: Workshop, outcome: Outcome, reference: Session) -> Counted:
    """Of the variant that keeps the numbers, or of the reference."""
    plan, graph, instead = reference.plan, workshop.reference.graph, ""
    if plan.backend != "onnxruntime":
        return Counted(untold=f"the reference runs on {plan.backend}, and what that fuses cannot be seen")
    exact = next((found for found in outcome.variants.values() if found.exact), None)
    if exact is None and (slower := workshop.known(WHOLE)) is not None:
        instead = f"dropped: {slower.why} than the reference"
    elif exact is not None and exact.backend != plan.backend:
        instead = f"dropped: {exact.backend} is faster, and what that fuses cannot be seen"
    elif exact is not None and exact.graph is not None:
        graph = exact.graph
    try:
        return replace(whole(workshop.folder / graph, plan), instead=instead)
    except InferError as error:  # the output is written, and what cannot be counted is no reason to lose it
        return Counted(untold=str(error))


def _check(artifact: Artifact, options: OptimizeOptions) -> None:
    if options.objective not in OBJECTIVES:
        raise InputError(
            f"there is no objective '{options.objective}'; choose from {', '.join(OBJECTIVES)}"
        )
    if unknown := [name for name in options.backends if name not in BACKENDS]:
        raise InputError(f"there is no backend '{unknown[0]}'; choose from {', '.join(BACKENDS)}")
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
        _check_metrics(options)


def _check_metrics(options: OptimizeOptions) -> None:
    """Raises `InputError` if a budget is about a metric, for data that has no known answers."""
    if wanted := [budget for budget in options.budgets if budget.of_task]:
        raise InputError(
            f"the budget '{wanted[0]}' needs data with known answers; give it with --data, as infer eval"
            f" takes it, or as a Dataset"
        )


def _installed(
    targets: tuple[Target, ...], options: OptimizeOptions, reference: Session
) -> dict[str, Target]:
    """The targets that can be tried, by backend; the reference's own is first. Raises `MissingPackageError`
    for a backend that is asked for by name and absent."""
    own = reference.plan.backend
    found = {own: Target(own, reference.plan.device, {})}
    for target in targets:
        if options.backends and target.backend not in (own, *options.backends):
            continue
        try:
            load_backend(target.backend)
        except MissingPackageError:
            if options.backends:
                raise
            continue
        found[target.backend] = target
    if absent := [name for name in options.backends if name not in found]:
        raise DeviceError(f"the backend {absent[0]} was asked for, and cannot use {reference.plan.device}")
    return found


class _Search:
    """The order in which things are tried, and what is kept of them."""

    def __init__(self, trial: Trial, targets: dict[str, Target]) -> None:
        self._trial, self._targets = trial, targets
        self._options = trial.options
        self._begun = self._until = time.monotonic()
        self._passes: dict[str, dict[str, Pass]] = {name: {} for name in targets}
        self._dtypes: dict[str, str] = {}
        self._ways: dict[tuple[str, ...], str] = {}
        self._spared: dict[str, Sequence[str]] = {}
        bounded = saturates(this_machine())
        self._given = {name: Given(trial.material.calibration, bounded) for name in targets}
        plan, graph = trial.reference.plan, trial.workshop.reference
        self._start = Verdict(
            REFERENCE,
            True,
            "",
            precision=graph.precision,
            backend=plan.backend,
            graph=graph.graph,
            size_bytes=graph.size_bytes,
        )
        self.outcome = Outcome(Settings(plan.num_threads), runtime=runtime_of(plan.backend))

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the reference that budgets are about."""
        wanted = [budget.metric for budget in self._options.budgets if budget.of_task]
        return {name: self._trial.judge.metrics[name] for name in wanted}

    def run(self) -> str:
        """Do all steps; why not all of them were, or ""."""
        unfinished = ""
        if any(budget.of_task for budget in self._options.budgets):
            self._trial.judge  # noqa: B018  it says now if there is no such metric
        try:
            for step, share in ((self._try_graphs, _FOR_GRAPHS), (self._try_settings, 1.0)):
                self._until = self._begun + share * self._options.time_s
                try:
                    step()
                except _OutOfTimeError:
                    unfinished = OUT_OF_TIME
            self._compare_with_reference()
        except KeyboardInterrupt:
            return INTERRUPTED
        return unfinished

    def _try_graphs(self) -> None:
        """Other graphs and backends."""
        for target in self._targets.values():
            self._try_backend(target)
            self._try_passes(target)
        if any(budget.metric != EQUAL for budget in self._options.budgets):
            for target in self._targets.values():
                self._try_dtypes(target)
            for target, recipe in self._most_promising_first():
                self._try_recipe_of(target, recipe)

    def _try_settings(self) -> None:
        """How the best of them is run, with few rows and with many."""
        best, rows = self._best.name, other_rows(self._trial)
        about_all = {WHOLE} if rows is None else {WHOLE, rows_said(rows)}
        # of a search that goes on: what was found about another best; settings are not judged, graphs are
        self._trial.workshop.forget(
            lambda each: each.name in about_all or (not each.figures and each.against not in ("", best))
        )
        self._tuning.do_all()
        self._try_other_rows()

    def _try_backend(self, target: Target) -> None:
        """The reference's graph as it is, on another backend."""
        if target.backend == self._start.backend:
            return
        found = self._try(Attempt(target.backend, target.backend, None, self._start.precision, exact=True))
        if found.kept:
            self._keep(target.backend, found, "as it is")

    def _try_passes(self, target: Target) -> None:
        """One at a time, on top of those kept before."""
        for name, rewrite in target.passes.items():
            first = self._trial.workshop.known(INSTEAD.get(name, ""))
            if first is not None and not first.broken:
                continue
            passes = {**self._passes[target.backend], name: rewrite}

            def build(model: ir.Model, passes: dict[str, Pass] = passes) -> PassResult:
                return [each(model) for each in passes.values()][-1]

            found = self._try(Attempt(name, target.backend, build, "float32", exact=True))
            if found.kept:
                self._passes[target.backend] = passes
                self._keep(FUSED, found, found.changed)

    def _try_dtypes(self, target: Target) -> None:
        """The graph as it is, computed in the first type that there are kernels for and that it allows."""
        if self._options.objective == "size":
            return
        backend = load_backend(target.backend)
        for dtype in backend.compute_dtypes(this_machine(), self._trial.reference.signature):
            name, precision = f"{target.backend}-{dtype}", self._start.precision
            if reason := needs_more_bits(self._trial.workshop.load(), dtype == FIXED_SHAPES):
                if self._trial.workshop.known(name) is None:
                    verdict = Verdict(name, False, reason, precision, exact=False, backend=target.backend)
                    self._trial.workshop.note(verdict)
                continue
            found = self._try(
                Attempt(name, target.backend, None, precision, exact=False, compute_dtype=dtype)
            )
            if found.kept:
                self._dtypes[target.backend] = dtype
                self._keep(name, found, "as it is")
            return

    def _most_promising_first(self) -> list[tuple[Target, Recipe]]:
        """Products of integers before what only stores weights otherwise; of each, the backend of the best
        so far before the others: the time may not be enough for all."""
        targets = sorted(self._targets.values(), key=lambda target: target.backend != self._best.backend)
        found = [(target, recipe) for target in targets for recipe in target.recipes]
        return sorted(found, key=lambda each: not each[1].has_int8_products)

    def _try_recipe_of(self, target: Target, recipe: Recipe) -> None:
        if recipe.for_size and self._options.objective != "size":
            return
        if reason := unfit(recipe, self._trial.workshop.load()) or self._like(recipe):
            if self._trial.workshop.known(recipe.name) is None:
                self._trial.workshop.note(
                    Verdict(recipe.name, False, reason, exact=False, backend=target.backend)
                )
            return
        given = self._given[target.backend]
        found = self._made(recipe, target, given, None)
        dtype = self._dtypes.get(target.backend)
        if dtype is not None and found.within:
            # what is between the integers is computed sooner, or only converted more often
            self._made(recipe, target, given, dtype)

    def _made(self, recipe: Recipe, target: Target, given: Given, dtype: str | None) -> Verdict:
        """A recipe as a whole, or with some nodes in float, computed in this type."""
        passes = self._passes[target.backend]
        making = Making(recipe, target, given, passes, dtype, self._trial, self._ways, self._out_of_time)
        found = self._try_recipe(making)
        if found.broken and recipe.is_divisible:
            found = self._with_some_in_float(making)
        if found.kept:
            self._keep(found.name, found, found.changed)
        return found

    def _like(self, recipe: Recipe) -> str | None:
        """Why another recipe tells that this one is not worth a try, or None."""
        other = self._trial.workshop.known(LIKE.get(recipe.name, ""))
        if other is None or not much_slower(other.ratio):
            return None
        return f"its kernels are those of {other.name}, which is slower"

    def _try_recipe(self, making: Making) -> Verdict:
        """The recipe as a whole."""
        name = making.name
        if (known := self._trial.workshop.known(name)) is not None:
            return known
        self._check_time()
        return self._try(making.attempt(name, ()))

    def _with_some_in_float(self, making: Making) -> Verdict:
        """The recipe again, without the nodes that cost the most accuracy: as few as calibration feeds
        allow, or twice as many where these did not show it all."""
        trial = self._trial
        name = f"{making.name}-mixed"
        done = [verdict for verdict in trial.workshop.verdicts if verdict.name.startswith(name)]
        if done and not done[-1].broken:
            return done[-1]
        self._check_time()
        found = None
        for turn, keep in enumerate(self._spared_by(making, name), 1):
            found = self._try(making.attempt(name if turn == 1 else f"{name}-{turn}", keep))
            if not found.broken:
                self._spared[making.recipe.name] = keep
                break
        if found is None:
            self._check_time()
            why = "most nodes would have to be spared to meet the budget"
            found = Verdict(name, False, why, exact=False, backend=making.target.backend)
            trial.workshop.note(found)
        return found

    def _spared_by(self, making: Making, name: str) -> Iterator[Sequence[str]]:
        """Nodes to leave in float: those with which the recipe held in another type, then what a search
        finds."""
        if (before := self._spared.get(making.recipe.name)) is not None:
            yield before
        yield from making.spared(name)

    def _try_other_rows(self) -> None:
        """Something else, for feeds of another size than those of the search."""
        trial = self._trial
        rows = other_rows(trial)
        if rows is None:
            return
        self._check_time()
        best = self._best
        name = rows_said(rows)
        try:
            found = faster_at(trial, self._start, self.outcome, rows, self._check_time)
        except InferError as error:
            found = f"it fails: {error}"
        noted = Verdict(name, False, "", best.precision, best.exact)
        if isinstance(found, str):
            noted = replace(noted, why=found)
        else:
            self.outcome.other = found
            noted = replace(noted, kept=True, why=found.said, ratio=found.ratio, against=best.name)
        trial.workshop.note(noted)

    def _compare_with_reference(self) -> None:
        """The best, beside where it began; what is not worth it as a whole is not kept."""
        usual = Settings(self._trial.reference.plan.num_threads)
        while self.outcome.best is not None or self.outcome.settings != usual:
            best = self._best
            ratio = self._ratio_to_reference(best)
            why = self._not_worth_it(best, ratio)
            if not why:
                self.outcome.ratio = ratio
                return
            self._trial.workshop.note(
                Verdict(WHOLE, False, f"{best.name} is {why}", ratio=ratio, against=REFERENCE)
            )
            if self.outcome.other is not None:
                row = self._trial.workshop.known(rows_said(self.outcome.other.rows))
                assert row is not None
                self._trial.workshop.note(replace(row, kept=False, why=f"{best.name} is not kept"))
            self.outcome = self.outcome.without_best(usual, runtime_of(self._start.backend))

    def _not_worth_it(self, best: Verdict, ratio: Estimate) -> str:
        """Why the reference is better than the best, or "". Each step was taken for a gain; what loses
        nothing by all of them is kept unless they are a loss, what approximates only for a gain."""
        if self._options.objective == "size":
            return speed_said(ratio) if too_slow(ratio) else ""
        found = verdict(ratio)
        return speed_said(ratio) if found == "slower" or (found != "faster" and not best.exact) else ""

    def _ratio_to_reference(self, best: Verdict) -> Estimate:
        timing = self._trial.timing
        if self.outcome.settings.huge_pages:
            try:
                own = Choice(best, self.outcome.settings)
                return timing.apart(own, Choice(self._start, timing.usual))
            except InferError:  # no memory for two more processes
                self.outcome.settings = replace(self.outcome.settings, huge_pages=False)
        return timing.whole(self._contender, timing.contender(self._start))

    def _keep(self, variant: str, found: Verdict, change: str) -> None:
        self.outcome.keep(variant, found, change, runtime_of(found.backend))

    @property
    def _tuning(self) -> Tuning:
        return Tuning(self._trial, self._start, self.outcome, self._check_time)

    @property
    def _best(self) -> Verdict:
        return self._tuning.best

    @property
    def _contender(self) -> Contender:
        """The best so far, with its settings."""
        return self._tuning.contender

    def _try(self, attempt: Attempt) -> Verdict:
        """Try one thing, unless the time is over. Raises `_OutOfTimeError`."""
        if self._trial.workshop.known(attempt.name) is None:
            self._check_time()
        return self._trial.attempt(attempt, self._contender, self._best.size_bytes)

    def _out_of_time(self) -> bool:
        return time.monotonic() > self._until

    def _check_time(self) -> None:
        if self._out_of_time():
            raise _OutOfTimeError


class _OutOfTimeError(Exception):
    """Nothing new may be begun."""
