"""Tries exporter after exporter until one gives a graph that answers as the original does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from converters import finish
from converters.exporters import EXPORTERS, INPUT, Exporter, branch_on_values, quiet, why
from converters.flat import FlatModule
from converters.options import ConvertOptions
from converters.origins import keep_origins
from converters.patches import apply_graph_patches, torch_patches
from converters.points import BATCH, Point, Points, fix_dims, size_of, to_numpy, traced_elsewhere
from converters.pristine import pristine
from converters.rounding import own_rounding
from converters.sizes import sizes_walked_once
from infer.bare_graph import artifact_of_graph
from infer.errors import ConversionError, InferError, ParityError
from infer.graphwriting import save
from infer.manifest import Attempt, Measured
from infer.options import PlanOptions, SessionOptions
from infer.parity import Difference, Tolerance, compare, tolerance_of
from infer.session import Session, open_session
from infer.signature import Range

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What came of one exporter.

    Attributes:
        reason: why it lost; None if it passed at every point.
        ran: whether its graph answered at every point, right or wrong.
        failed_dims: dims it cannot vary, as far as that explains all its failures.
        limits: sizes of dims beyond which the graph would be wrong.
        branch: the line where the model branches on values, if that is why there is no graph.
        wrong_before: whether what the exporter traced already fails in torch, where its graph does.
        measured: what parity was found to be, where the graph answered.
    """

    exporter: Exporter
    reason: str | None
    ran: bool = False
    failed_dims: frozenset[str] = frozenset()
    limits: Mapping[str, Range] = field(default_factory=dict)
    branch: str | None = None
    wrong_before: bool = False
    measured: tuple[Measured, ...] = ()
    patches: tuple[str, ...] = ()
    size_bytes: int = 0


@dataclass(frozen=True)
class Exported:
    """The graph that stands at last, the points it was held to, and all attempts in order."""

    outcome: Outcome
    points: Points
    attempts: tuple[Attempt, ...]

    @property
    def proved(self) -> tuple[Point, ...]:
        """The points within the limits of the graph."""
        refused = {f"{dim}=1" for dim, limit in self.outcome.limits.items() if 1 not in limit}
        return tuple(point for point in self.points.points if point.name not in refused)


def export(
    flat: FlatModule,
    points: Points,
    graph: Path,
    options: ConvertOptions,
    only: Sequence[str],
    progress: Progress,
) -> Exported:
    """Write a graph that passes parity at all points to `graph`.

    Exporters that fail only where a dim varies trace again where it has another size. If that fails
    too and nobody demanded the dim, it is fixed and all are tried again. A trace that is itself wrong
    is not written at another opset. `only` names the exporters that can take this source.

    Raises `ParityError` if graphs ran but answered wrongly (unless `options.allow_mismatch`),
    `ConversionError` if none ran.
    """
    exporters = [e for e in EXPORTERS if not only or e.name in only]
    demanded = {dim for by_axis in options.dynamic.values() for dim in by_axis.values()}
    outcomes: list[Outcome] = []
    wrong_traces: dict[object, Outcome] = {}

    def attempt(exporter: Exporter, points: Points, where: str) -> Outcome:
        trace = (exporter.name, str(points.axes), *(tensor.shape for tensor in points.example))
        if (before := wrong_traces.get(trace)) is not None:
            reason = f"its trace is that of opset {before.exporter.opset}, which is wrong itself"
            outcome = Outcome(exporter, reason, failed_dims=before.failed_dims)
        else:
            progress(f"exporting with {exporter}{where}")
            outcome = try_exporter(exporter, flat, points, graph, options, progress)
        if outcome.wrong_before:
            wrong_traces[trace] = outcome
        outcomes.append(outcome)
        if outcome.reason is not None:
            progress(f"{exporter}: {outcome.reason}")
        return outcome

    while True:
        this_round = []
        for exporter in exporters:
            outcome = attempt(exporter, points, "")
            if outcome.branch and not options.freeze_branches:
                raise ConversionError(_branches(outcome.branch))
            if outcome.reason is None:
                return Exported(outcome, points, _attempts(outcomes))
            this_round.append(outcome)
        for failed in this_round:
            if dims := failed.failed_dims - {BATCH}:
                elsewhere = traced_elsewhere(flat, points, dims)
                where = f" at other sizes of {' and '.join(sorted(dims))}"
                outcome = attempt(failed.exporter, elsewhere, where)
                if outcome.reason is None:
                    return Exported(outcome, elsewhere, _attempts(outcomes))
        mendable = [o.failed_dims for o in this_round if o.failed_dims and not o.failed_dims & demanded]
        if not mendable:
            break
        frozen = min(mendable, key=len)
        reason = next(o.reason for o in this_round if o.failed_dims == frozen)
        progress(f"fixing {' and '.join(sorted(frozen))}, which no exporter can vary")
        points = fix_dims(flat, points, frozen, f"no exporter can vary it ({reason})")
    if options.allow_mismatch and (wrong := [o for o in this_round if o.ran]):
        outcome = try_exporter(wrong[0].exporter, flat, points, graph, options, progress)
        return Exported(outcome, points, _attempts(outcomes))
    if any(o.ran for o in this_round):
        progress("asking the original how exact it is itself")
        raise ParityError(_mismatch(this_round, own_rounding(flat, points), options.tolerances))
    raise ConversionError(f"no exporter could convert this model: {_reasons(this_round)}")


def _attempts(outcomes: Sequence[Outcome]) -> tuple[Attempt, ...]:
    return tuple(Attempt(o.exporter.name, o.exporter.opset, o.reason) for o in outcomes)


def _mismatch(
    outcomes: Sequence[Outcome], rounding: Mapping[str, float], tolerances: Mapping[str, Tolerance]
) -> str:
    outputs = {m.output for outcome in outcomes for m in outcome.measured if not m.within}
    rounding = {name: error for name, error in rounding.items() if name in outputs}
    inexact = [
        f" The original's own float32 answer '{name}' is {error:.1e} of its largest value off its float64"
        f" one; if that is exact enough for you, say so: --tolerance {name}={2 * error:.0e}."
        for name, error in sorted(rounding.items())
        if 2 * error > getattr(tolerance_of(name, "float32", tolerances), "scaled", 0.0)
    ]
    return (
        f"no exporter gave a graph that answers as the original does: {_reasons(outcomes)}."
        f"{''.join(inexact)} Nothing was written; to look at the wrong graph, add --allow-mismatch:"
        f" infer compare SOURCE ARTIFACT then names the first module that differs"
    )


def _branches(branch: str) -> str:
    return (
        f"the model branches on values of its inputs, {branch}; a graph would always take the side that"
        f" the example takes, and answer wrongly on the other. Write the branch with torch.where"
        f" or torch.cond, or take it out of the model; if it never changes, accept that with"
        f" --freeze-branches"
    )


def _reasons(outcomes: Sequence[Outcome]) -> str:
    return "; ".join(f"{o.exporter}: {o.reason}" for o in outcomes)


def try_exporter(
    exporter: Exporter,
    flat: FlatModule,
    points: Points,
    graph: Path,
    options: ConvertOptions,
    progress: Progress,
) -> Outcome:
    """Export, finish and check with one exporter; its graph stays at `graph`, right or wrong."""
    shutil.rmtree(graph.parent, ignore_errors=True)
    given = [INPUT.format(i) for i in range(len(flat.input_names))]
    inputs = points.inputs
    try:
        with quiet(), pristine(flat.module), sizes_walked_once(), torch_patches() as active:
            traced = exporter.export(flat, points.example, points.axes, exporter.opset, active.translations)
    except ConversionError:
        raise
    except Exception as error:  # whatever an exporter raises, the next one may do better
        branch = branch_on_values(error)
        said = f"it branches on values, {branch}" if branch else why(error)
        return Outcome(exporter, f"the export failed ({said})", branch=branch)
    model = traced.model
    if drawn := finish.random_operators(model):
        return Outcome(exporter, f"the graph draws random numbers ({', '.join(drawn)})")
    if frozen := finish.frozen_axes(model, inputs, given):
        sizes = ", ".join(f"'{dim}' at {size}" for dim, size in sorted(frozen.items()))
        reason, traced_so = f"the exporter froze {sizes}", traced.program is not None
        return Outcome(exporter, reason, failed_dims=frozenset(frozen), wrong_before=traced_so)
    patches = (*sorted(active.used), *apply_graph_patches(model))
    finish.name_tensors(model, inputs, points.outputs, given)
    finish.store_weights_once(model)
    keep_origins(model)
    size_bytes = save(model, graph)
    del model
    progress(f"checking parity at {len(points.points)} points")
    checked, failed = _check(exporter, points, graph, options)
    if failed and traced.program is not None:
        wrong = _wrong_in_torch(traced.program, flat, failed, options)
        checked = replace(checked, wrong_before=wrong)
    limits = dict(points.limits)
    for dim, limit in (*_not_contradicted(traced.limits, points, checked), *checked.limits.items()):
        limits[dim] = limit & limits.get(dim, Range())
    return replace(checked, patches=patches, size_bytes=size_bytes, limits=limits)


def _not_contradicted(
    limits: Mapping[str, Range], points: Points, checked: Outcome
) -> list[tuple[str, Range]]:
    """The limits but those beyond which the graph was seen to be right: not every branch on a size changes
    the answer; some only choose another way to it."""
    if checked.reason is not None:
        return list(limits.items())
    names = {measured.point for measured in checked.measured}
    proved = [point for point in points.points if point.name in names]
    return [
        (dim, limit)
        for dim, limit in limits.items()
        if all(size_of(dim, points.axes, point.feeds) in limit for point in proved)
    ]


def _wrong_in_torch(
    program: torch.export.ExportedProgram,
    flat: FlatModule,
    failed: Sequence[Point],
    options: ConvertOptions,
) -> bool:
    """Whether a trace, run in torch, fails or answers wrongly at each of these points."""
    module = program.module(check_guards=False)
    for point in failed:
        feeds = [torch.from_numpy(point.feeds[name].copy()) for name in flat.input_names]
        try:
            with torch.no_grad(), quiet():
                answers = zip(point.outputs, module(*feeds), strict=True)
                found = {name: to_numpy(answer, name) for name, answer in answers}
        except Exception:  # it was made for other sizes, and may fail in any way
            continue
        if all(d.within for d in compare(point.outputs, found, options.tolerances)):
            return False
    return True


def _check(
    exporter: Exporter, points: Points, graph: Path, options: ConvertOptions
) -> tuple[Outcome, Sequence[Point]]:
    """Run the graph as a user would, guards and all optimizations on, at every point; with the points that
    speak against it."""
    measured: list[Measured] = []
    reasons: list[str] = []
    failed: list[Point] = []
    ran = True
    try:
        session = open_session(
            artifact_of_graph(graph),
            PlanOptions(device="cpu"),
            SessionOptions(verify=False, warm_up=False),
        )
    except InferError as error:
        return Outcome(exporter, f"the graph does not load: {error}"), ()
    with session:
        for point in points.points:
            try:
                found = _differences(session, point, options)
            except InferError as error:
                ran = False
                failed.append(point)
                reasons.append(f"at {point.name} the graph fails: {error}")
                continue
            measured += [
                Measured(point.name, d.output, d.max_abs, d.max_relative, d.cosine, d.within) for d in found
            ]
            if wrong := next((d for d in found if not d.within), None):
                failed.append(point)
                reasons.append(f"at {point.name}, {wrong}")
    if failed and all(point.at_one for point in failed):
        # torch.export takes sizes to be 2 or more
        limits = {dim: Range(least=2) for point in failed for dim in point.varied}
        names = {point.name for point in failed}
        outcome = Outcome(
            exporter,
            reason=None,
            ran=True,
            limits=limits,
            measured=tuple(m for m in measured if m.point not in names),
        )
        return outcome, ()
    outcome = Outcome(
        exporter,
        reason=reasons[0] if reasons else None,
        ran=ran,
        failed_dims=_explains(failed),
        measured=tuple(measured),
    )
    return outcome, failed


def _differences(session: Session, point: Point, options: ConvertOptions) -> tuple[Difference, ...]:
    # twice: the second run takes the path of repeated shapes, which must answer the same
    session.run(point.feeds)
    return compare(point.outputs, session.run(point.feeds), options.tolerances)


def _explains(failed: Sequence[Point]) -> frozenset[str]:
    """The dims whose variation explains the failures; none if the graph fails where nothing varies.

    Points that vary several dims at once say little of each: if no single one explains them, all
    but the batch are to blame.
    """
    if any(not point.varied for point in failed):
        return frozenset()
    dims = frozenset[str]().union(*(p.varied for p in failed if len(p.varied) == 1))
    for point in failed:
        if not point.varied & dims:
            dims |= point.varied - {BATCH} or point.varied
    return dims
