"""Candidates side by side: at every point and in every scenario, in turns, with ratios to the first."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from infer.errors import InputError
from infer.measure.candidates import Candidate
from infer.measure.feeds import BATCH, Feeds, batch_dim, resized, sizes_of
from infer.measure.queries import Query
from infer.measure.record import Series, ServedRate
from infer.measure.rounds import Progress, Times, take_turns
from infer.measure.scenarios import (
    MULTI_STREAM_SAMPLES,
    OFFLINE_BATCHES,
    SCENARIOS,
    Probe,
    fastest_batch,
    highest_rate,
)
from infer.measure.statistics import Estimate, mean, paired_ratio, percentiles, verdict


@dataclass(frozen=True)
class Asked:
    """What to measure. `sizes` hold at every point; `sweep` gives some dims several sizes in turn."""

    scenarios: Sequence[str] = ("single-stream",)
    seconds: float = 10.0
    bound_ms: float | None = None
    samples: int = MULTI_STREAM_SAMPLES
    sizes: Mapping[str, int] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[int]] = field(default_factory=dict)

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
    """Series of all candidates that could be measured, and the noise of the machine meanwhile."""

    series: tuple[Series, ...]
    noise: float
    interrupted: bool


def compare(
    candidates: Sequence[Candidate],
    feeds: Feeds,
    asked: Asked,
    progress: Progress = lambda _: None,
) -> Found:
    """Measure candidates whose answers were found to agree; `feeds` fit all of them.

    Raises `FeedError` for sizes that a candidate cannot have, and `ImpossibleBoundError`.
    """
    series: list[Series] = []
    noises: list[float] = []
    work = list(itertools.product(asked.points(), asked.scenarios))
    for i, (point, scenario) in enumerate(work):
        where = ", ".join(f"{name} {size}" for name, size in point.items())

        def told(sentence: str, head: str = f"{i + 1} of {len(work)}, {scenario} {where}") -> None:
            progress(f"{head}: {sentence}")

        measure = _server if scenario == "server" else _in_turns
        found = measure(scenario, candidates, feeds, point, asked, told)
        series += found.series
        noises.append(found.noise)
        if found.interrupted:
            return Found(tuple(series), max(noises), True)
    return Found(tuple(series), max(noises), False)


def _in_turns(
    scenario: str,
    candidates: Sequence[Candidate],
    feeds: Feeds,
    point: Mapping[str, int],
    asked: Asked,
    progress: Progress,
) -> Found:
    queries: dict[str, Query] = {}
    samples: dict[str, int] = {}
    for candidate in candidates:
        queries[candidate.name], samples[candidate.name] = _query(scenario, candidate, feeds, point, asked)
    measured = take_turns(queries, asked.seconds, progress)
    first = measured.times[candidates[0].name]
    series = []
    for candidate in candidates:
        times, count = measured.times[candidate.name], samples[candidate.name]
        ratio = None
        if candidate is not candidates[0]:
            per_sample = [median / count for median in times.medians]
            ratio = paired_ratio(per_sample, [m / samples[candidates[0].name] for m in first.medians])
        series.append(_series(candidate, scenario, feeds, point, times, count, ratio))
    return Found(tuple(series), measured.noise, measured.interrupted)


def _query(
    scenario: str, candidate: Candidate, feeds: Feeds, point: Mapping[str, int], asked: Asked
) -> tuple[Query, int]:
    """One query of the scenario, and how many samples it has."""
    batch = batch_dim(candidate.signature)
    if scenario == "single-stream":
        given = resized(candidate.signature, feeds, _one(batch, point))
        count = sizes_of(candidate.signature, given).get(batch, 1) if batch else 1
        return candidate.query(given), count
    if batch is None:  # a fixed batch: samples one after another
        given = resized(candidate.signature, feeds, point)
        count = asked.samples if scenario == "multi-stream" else 1
        return candidate.query(given, count), count

    def at(size: int) -> Feeds:
        return resized(candidate.signature, feeds, {**point, batch: size})

    count = asked.samples
    if scenario == "offline":
        tried = {size: at(size) for size in OFFLINE_BATCHES}
        count = fastest_batch(lambda size: candidate.run(tried[size]))
    return candidate.query(at(count)), count


def _one(batch: str | None, point: Mapping[str, int]) -> dict[str, int]:
    """A sample is one row, unless the point says otherwise."""
    if batch is None or batch in point or BATCH in point:
        return dict(point)
    return {**point, batch: 1}


def _series(
    candidate: Candidate,
    scenario: str,
    feeds: Feeds,
    point: Mapping[str, int],
    times: Times,
    samples: int,
    ratio: Estimate | None,
) -> Series:
    average = mean(times.rounds)
    return Series(
        candidate=candidate.name,
        scenario=scenario,
        sizes=dict(point),
        queries=times.queries,
        samples=samples,
        latency_ms=percentiles(times.rounds),
        mean_ms=average,
        throughput=Estimate(
            1e3 * samples / average.value, 1e3 * samples / average.high, 1e3 * samples / average.low
        ),
        quantiles_ms=tuple(np.percentile(np.concatenate(times.rounds), np.arange(101)).tolist()),
        medians_ms=tuple(times.medians),
        stable=times.stable,
        ratio=ratio,
        verdict=None if ratio is None else verdict(ratio),
    )


def _server(
    scenario: str,
    candidates: Sequence[Candidate],
    feeds: Feeds,
    point: Mapping[str, int],
    asked: Asked,
    progress: Progress,
) -> Found:
    assert asked.bound_ms is not None
    one = {c.name: _query("single-stream", c, feeds, point, asked)[0] for c in candidates}
    alone = take_turns(one, min(2.0, asked.seconds), progress)
    series: list[Series] = []
    rate_of_first: Estimate | None = None
    for candidate in candidates:
        service = np.concatenate(alone.times[candidate.name].rounds)
        best, tried = highest_rate(
            one[candidate.name],
            service,
            asked.bound_ms,
            asked.seconds / 4,
            lambda sentence, name=candidate.name: progress(f"{name}, {sentence}"),  # type: ignore[misc]
        )
        rate = _between(best, tried)
        rate_of_first = rate_of_first or rate
        ratio = None
        if candidate is not candidates[0]:
            ratio = Estimate(
                rate_of_first.value / rate.value,
                rate_of_first.low / rate.high,
                rate_of_first.high / rate.low,
            )
        times = Times(list(np.array_split(best.latencies, 15)), alone.times[candidate.name].stable)
        found = _series(candidate, scenario, feeds, point, times, 1, ratio)
        rates = tuple(ServedRate(p.rate, float(np.median(p.latencies)), p.p99_ms, p.met) for p in tried)
        series.append(replace(found, throughput=rate, bound_ms=asked.bound_ms, rates=rates))
    return Found(tuple(series), alone.noise, False)


def _between(best: Probe, tried: Sequence[Probe]) -> Estimate:
    """The rate that met the bound, and the next one tried that broke it: the truth lies between, give or
    take a step."""
    broken = [probe.rate for probe in tried if not probe.met]
    step = min(broken) / best.rate if broken else 1.05
    return Estimate(best.rate, best.rate / step, best.rate * step)
