"""Candidates side by side: at every point and in every scenario, in turns, with ratios to the first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from infer.errors import InferError, InputError
from infer.feeds import BATCH, Feeds, batch_dim, resized, sizes_of
from infer.machine import this_machine
from infer.measure.candidates import Candidate, difference
from infer.measure.loadgen import Tested, harness, loadgen_probe
from infer.measure.queries import Query, repeated
from infer.measure.record import Conditions, Exclusion, Limit, Peaks, Series, ServedRate
from infer.measure.rounds import MIN_ROUNDS, TURN_S, Measured, Progress, Times, take_turns
from infer.measure.scenarios import (
    MIN_QUERIES,
    MULTI_STREAM_SAMPLES,
    RATE_STEP,
    SCENARIOS,
    ImpossibleBoundError,
    Served,
    built_in_probe,
    fastest_batch,
    highest_rate,
)
from infer.measure.statistics import Estimate, mean, paired_ratio, percentiles, verdict
from infer.parity import Tolerance

LimitOf = Callable[[Candidate, Feeds, float], Limit | None]
"""How close a query with these feeds and this median latency, in milliseconds, comes to the limit."""


def no_limit(candidate: Candidate, feeds: Feeds, median_ms: float) -> None:
    """For who does not ask."""


_LOADGEN_TEST_S = 0.2
"""The shortest test of LoadGen: starting one, and reading what it wrote, takes some milliseconds."""

_LONE_QUERIES_S = 2.0
_SERVED_ROUNDS = 15
"""Latencies of the server scenario are cut into so many stretches, to be drawn again for intervals."""


@dataclass(frozen=True)
class Asked:
    """What to measure. `sizes` hold at every point; `sweep` gives some dims several sizes in turn. With
    `loadgen`, MLPerf's LoadGen asks; candidates must then be of this process. `starts` is how often the
    candidates are started in each scenario but the server's, see `compare`."""

    scenarios: Sequence[str] = ("single-stream",)
    seconds: float = 10.0
    bound_ms: float | None = None
    samples: int = MULTI_STREAM_SAMPLES
    sizes: Mapping[str, int] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    loadgen: bool = False
    starts: int = 1

    def __post_init__(self) -> None:
        if unknown := [name for name in self.scenarios if name not in SCENARIOS]:
            raise InputError(f"there is no scenario '{unknown[0]}'; choose from {', '.join(SCENARIOS)}")
        if "server" in self.scenarios and self.bound_ms is None:
            raise InputError("the scenario 'server' needs a latency bound, such as --latency-bound 50")

    def points(self) -> list[dict[str, int]]:
        """Sizes of every point, in the order of the sweep."""
        names = list(self.sweep)
        return [
            {**self.sizes, **dict(zip(names, values, strict=True))}
            for values in itertools.product(*self.sweep.values())
        ]


@dataclass(frozen=True)
class Found:
    """What was measured, who was left out where, and the machine meanwhile: see `rounds.Measured`."""

    series: tuple[Series, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    noise: float = 0.0
    work_ms: float = 0.0
    interrupted: bool = False


def compare(
    candidates: Sequence[Candidate],
    feeds: Feeds,
    asked: Asked,
    tolerances: Mapping[str, Tolerance] | None,
    progress: Progress = lambda _: None,
    limit_of: LimitOf = no_limit,
    restart: Callable[[], None] = lambda: None,
) -> Found:
    """Measure `candidates` with `feeds`, which fit all of them, at every point.

    `restart` starts all candidates anew, which those can that have processes of their own; it is called
    between starts if `asked` has several, and their queries must go on as before.

    At each point they answer first: one that fails, or whose answers differ from the first's by more than
    `tolerances` (None: they may), is left out there, and so is one that no rate of which meets the bound
    of the server scenario. Ctrl-C ends the measurement; what was finished is returned.
    """
    found = Found()
    points = asked.points()
    steps = len(points) * len(asked.scenarios)
    for i, point in enumerate(points):
        try:
            agreeing, exclusions = _agreeing(candidates, feeds, point, tolerances)
            found = replace(found, exclusions=(*found.exclusions, *exclusions))
            for j, scenario in enumerate(asked.scenarios if agreeing else ()):
                where = "".join(f", {name} {size}" for name, size in point.items())
                head = f"{i * len(asked.scenarios) + j + 1}/{steps} {scenario}{where}"
                told = _headed(progress, head)
                if scenario == "server":
                    some = _server(scenario, agreeing, feeds, point, asked, told)
                else:
                    some = _in_turns(scenario, agreeing, feeds, point, asked, told, limit_of, restart)
                found = replace(
                    found,
                    series=(*found.series, *some.series),
                    exclusions=(*found.exclusions, *some.exclusions),
                    noise=max(found.noise, some.noise),
                    work_ms=some.work_ms,
                    interrupted=some.interrupted,
                )
                if some.interrupted:
                    return found
        except KeyboardInterrupt:
            if not found.series:
                raise
            return replace(found, interrupted=True)
    return found


_PACKAGES = ("infer-onnx", "numpy", "onnxruntime", "openvino", "onnxruntime-gpu", "torch", "transformers")


def conditions(found: Found, asked: Asked, threads: int, peaks: tuple[Peaks, ...] = ()) -> Conditions:
    """Those under which `found` was measured, just now and on this machine."""
    machine = this_machine()
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Conditions(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        harness=harness() if asked.loadgen else "built-in",
        seconds=asked.seconds,
        starts=asked.starts,
        threads=threads,
        noise=found.noise,
        work_ms=found.work_ms,
        interrupted=found.interrupted,
        cpu=machine.cpu,
        isa=machine.isa,
        cores=machine.cores,
        memory_bytes=machine.memory_bytes,
        system=machine.system,
        versions=versions,
        peaks=peaks,
    )


def _headed(progress: Progress, head: str) -> Progress:
    return lambda sentence: progress(f"{head}: {sentence}")


def _agreeing(
    candidates: Sequence[Candidate],
    feeds: Feeds,
    point: Mapping[str, int],
    tolerances: Mapping[str, Tolerance] | None,
) -> tuple[list[Candidate], list[Exclusion]]:
    """Those that answer at a point as the first of them does, and the others with the reasons."""
    agreeing: list[Candidate] = []
    exclusions: list[Exclusion] = []
    expected: Feeds | None = None
    for candidate in candidates:
        try:
            found = candidate.run(one_sample(candidate, feeds, point))
            reason = None
            if expected is not None and tolerances is not None:
                reason = difference(expected, found, tolerances)
        except InferError as error:
            reason = str(error)
        if reason is not None:
            exclusions.append(Exclusion(candidate.name, dict(point), reason))
            continue
        expected = found if expected is None else expected
        agreeing.append(candidate)
    return agreeing, exclusions


def one_sample(candidate: Candidate, feeds: Feeds, point: Mapping[str, int]) -> Feeds:
    """A sample is one row, unless the point says otherwise."""
    batch = batch_dim(candidate.signature)
    if batch is None or batch in point or BATCH in point:
        return resized(candidate.signature, feeds, point)
    return resized(candidate.signature, feeds, {**point, batch: 1})


@dataclass(frozen=True)
class _Plan:
    """How a candidate is asked in a scenario: `query` is `repeat` runs of `feeds`, `samples` in all."""

    query: Query
    feeds: Feeds
    repeat: int
    samples: int


def _plan(
    scenario: str, candidate: Candidate, feeds: Feeds, point: Mapping[str, int], asked: Asked
) -> _Plan:
    batch = batch_dim(candidate.signature)
    one = one_sample(candidate, feeds, point)
    if scenario in ("single-stream", "server"):
        rows = sizes_of(candidate.signature, one).get(batch, 1) if batch else 1
        return _Plan(candidate.query(one), one, 1, rows)
    if batch is None:  # a fixed batch: samples one after another
        count = asked.samples if scenario == "multi-stream" else 1
        return _Plan(candidate.query(one, count), one, count, count)

    def at(size: int) -> Feeds:
        return resized(candidate.signature, feeds, {**_without_batch(point, batch), batch: size})

    named = point.get(BATCH, point.get(batch))
    if named is not None:  # a point that says the batch is taken at its word
        count = named
    elif scenario == "multi-stream":
        count = asked.samples
    else:
        count = fastest_batch(lambda size: candidate.query(at(size)))
    return _Plan(candidate.query(at(count)), at(count), 1, count)


def _without_batch(point: Mapping[str, int], batch: str) -> dict[str, int]:
    return {name: size for name, size in point.items() if name not in (batch, BATCH)}


def _in_turns(
    scenario: str,
    candidates: Sequence[Candidate],
    feeds: Feeds,
    point: Mapping[str, int],
    asked: Asked,
    progress: Progress,
    limit_of: LimitOf,
    restart: Callable[[], None],
) -> Found:
    plans = {c.name: _plan(scenario, c, feeds, point, asked) for c in candidates}
    turn_s = TURN_S
    queries: dict[str, Query] = {name: plan.query for name, plan in plans.items()}
    if asked.loadgen:
        turn_s = max(_LOADGEN_TEST_S, asked.seconds / (MIN_ROUNDS * len(candidates)))
        queries = {
            c.name: Tested(scenario, _answering(c, plans[c.name]), plans[c.name].samples, turn_s)
            for c in candidates
        }
    measured = take_turns(queries, asked.seconds, progress, turn_s, asked.starts, restart)
    series: list[Series] = []
    for candidate in candidates:
        plan, times = plans[candidate.name], measured.times[candidate.name]
        each = _series(candidate, scenario, point, times, plan.samples, measured.starts)
        limit = limit_of(candidate, plan.feeds, each.latency_ms["p50"].value / plan.repeat)
        if series:
            ratio = paired_ratio(each.per_sample_ms, series[0].per_sample_ms, measured.starts)
            each = replace(each, ratio=ratio, verdict=verdict(ratio))
        query = queries[candidate.name]
        validity = query.validity if isinstance(query, Tested) else None
        series.append(replace(each, limit=limit, validity=validity))
    return Found(tuple(series), (), measured.noise, measured.work_ms, measured.interrupted)


def _answering(candidate: Candidate, plan: _Plan) -> Callable[[int], object]:
    """Answers one query, which has as many samples as the plan says."""
    answer = repeated(lambda: candidate.run(plan.feeds), plan.repeat)
    return lambda _: answer()


def _series(
    candidate: Candidate,
    scenario: str,
    point: Mapping[str, int],
    times: Times,
    samples: int,
    starts: Sequence[int] = (),
) -> Series:
    average = mean(times.rounds, starts)
    return Series(
        candidate=candidate.name,
        scenario=scenario,
        sizes=dict(point),
        queries=times.queries,
        samples=samples,
        latency_ms=percentiles(times.rounds, starts),
        mean_ms=average,
        throughput=Estimate(
            1e3 * samples / average.value, 1e3 * samples / average.high, 1e3 * samples / average.low
        ),
        quantiles_ms=tuple(np.percentile(np.concatenate(times.rounds), np.arange(101)).tolist()),
        medians_ms=tuple(times.medians),
        stable=times.stable,
    )


def _server(
    scenario: str,
    candidates: Sequence[Candidate],
    feeds: Feeds,
    point: Mapping[str, int],
    asked: Asked,
    progress: Progress,
) -> Found:
    """One candidate after another: the search for a rate is not the same work for all of them."""
    assert asked.bound_ms is not None
    plans = {c.name: _plan(scenario, c, feeds, point, asked) for c in candidates}
    lone_s = min(_LONE_QUERIES_S, asked.seconds)
    alone: Measured = take_turns({name: plan.query for name, plan in plans.items()}, lone_s, progress)
    series: list[Series] = []
    exclusions: list[Exclusion] = []
    first: Estimate | None = None
    for candidate in candidates:
        query, times = plans[candidate.name].query, alone.times[candidate.name]
        if asked.loadgen:
            answering = _answering(candidate, plans[candidate.name])
            probe = loadgen_probe(answering, asked.bound_ms, asked.seconds / 4, MIN_QUERIES)
        else:
            probe = built_in_probe(query, asked.bound_ms, asked.seconds / 4)
        try:
            served = highest_rate(
                probe,
                np.concatenate(times.rounds),
                asked.bound_ms,
                _headed(progress, candidate.name),
            )
        except ImpossibleBoundError as error:
            exclusions.append(Exclusion(candidate.name, dict(point), f"server: {error}"))
            continue
        stretches = Times(np.array_split(served.best.latencies, _SERVED_ROUNDS), times.stable)
        rate = _reached(served, alone.noise)
        each = replace(
            _series(candidate, scenario, point, stretches, plans[candidate.name].samples),
            throughput=rate,
            bound_ms=asked.bound_ms,
            rates=tuple(
                ServedRate(p.rate, float(np.median(p.latencies)), p.p99_ms, p.met, float(p.queued.mean()))
                for p in served.tried
            ),
        )
        if first is not None:
            # time for each sample, as everywhere: the first's rate over this one's
            ratio = Estimate(first.value / rate.value, first.low / rate.high, first.high / rate.low)
            each = replace(each, ratio=ratio, verdict=verdict(ratio))
        if candidate is candidates[0]:
            first = rate
        series.append(each)
    return Found(tuple(series), tuple(exclusions), alone.noise, alone.work_ms, False)


def _reached(served: Served, noise: float) -> Estimate:
    """The rate that met the bound. The truth lies between it and the one that broke it, or, by chance, as
    far on its other side; and rates were not tried in turns, so the machine's noise counts in full."""
    rate = served.best.rate
    step = (served.broken.rate / rate if served.broken else 1 + RATE_STEP) * (1 + noise)
    return Estimate(rate, rate / step, rate * step)
