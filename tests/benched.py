"""Records of measurements that nobody made: made-up latencies through the real statistics."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from infer.measure.record import (
    ColdStart,
    Conditions,
    Entry,
    Limit,
    Peaks,
    Profile,
    Record,
    Series,
    ServedRate,
    Share,
    Waterfall,
)
from infer.measure.statistics import Estimate, mean, paired_ratio, percentiles, verdict

FIRST, OTHER, THIRD = "minilm.infer", "all-MiniLM-L6-v2", "minilm-int8.infer"
PEAKS = Peaks(2, 206.0, 29.0, 32 * 2**20)


def rounds_of(middle_ms: float, seed: int, spread: float = 0.05) -> list[np.ndarray]:
    """Skewed latencies: 15 rounds of 80 queries."""
    rng = np.random.default_rng(seed)
    drift = rng.normal(1, 0.01, 15)
    return [middle_ms * d * rng.lognormal(0, spread, 80) + rng.exponential(spread, 80) for d in drift]


def series_of(
    candidate: str,
    scenario: str,
    sizes: dict[str, int],
    middle_ms: float,
    seed: int = 0,
    samples: int = 1,
    beside: Series | None = None,
) -> Series:
    """A series around `middle_ms`, with a ratio if there is a first one."""
    rounds = rounds_of(middle_ms, seed)
    average = mean(rounds)
    medians = tuple(float(np.median(each)) for each in rounds)
    ratio = None
    if beside is not None:
        ratio = paired_ratio(
            [m / samples for m in medians], [m / beside.samples for m in beside.medians_ms]
        )
    return Series(
        candidate=candidate,
        scenario=scenario,
        sizes=sizes,
        queries=1200,
        samples=samples,
        latency_ms=percentiles(rounds),
        mean_ms=average,
        throughput=Estimate(*(1e3 * samples / ms for ms in (average.value, average.high, average.low))),
        quantiles_ms=tuple(np.percentile(np.concatenate(rounds), np.arange(101)).tolist()),
        medians_ms=medians,
        stable=True,
        ratio=ratio,
        verdict=None if ratio is None else verdict(ratio),
    )


def side_by_side(
    scenario: str, sizes: dict[str, int], middles_ms: dict[str, float], samples: int = 1
) -> list[Series]:
    """Candidates beside each other, the first one first."""
    found: list[Series] = []
    for i, (name, middle_ms) in enumerate(middles_ms.items()):
        seed = 100 * len(scenario) + 10 * sum(sizes.values()) + i
        found.append(
            series_of(name, scenario, sizes, middle_ms, seed, samples, found[0] if found else None)
        )
    return found


CONDITIONS = Conditions(
    created="2026-03-01T12:00:00+00:00",
    harness="built-in",
    seconds=10.0,
    threads=2,
    noise=0.021,
    work_ms=0.1,
    interrupted=False,
    cpu="Some CPU @ 2.50GHz",
    isa=("avx2", "fma"),
    cores=2,
    memory_bytes=8 * 2**30,
    system="Linux 6.1",
    versions={"infer-onnx": "0.1.0", "onnxruntime": "1.28.0", "numpy": "2.4.6"},
)


@functools.cache
def plain() -> Record:
    """One candidate in one scenario at one point, and nothing else."""
    return Record(
        CONDITIONS,
        (Entry(FIRST, "fp32 on onnxruntime, cpu, threads 2"),),
        (series_of(FIRST, "single-stream", {"batch": 1}, 1.4),),
    )


@functools.cache
def rich() -> Record:
    """Everything there is to show."""
    factors = {FIRST: 1.0, OTHER: 1.83, THIRD: 0.62}
    series: list[Series] = []
    for batch in (1, 2, 4, 8, 16):
        cost = 2.1 * (0.4 + 0.6 * batch)
        middles = {name: cost * factor for name, factor in factors.items()}
        found = side_by_side("single-stream", {"sequence": 128, "batch": batch}, middles, batch)
        series += [_limited(each, batch) for each in found]
    series += side_by_side("offline", {"sequence": 128}, {n: 11.5 * f for n, f in factors.items()}, 8)
    for each, top in zip(
        side_by_side("server", {"sequence": 128}, {n: 3.9 * f for n, f in factors.items()}),
        (310.0, 160.0, 505.0),
        strict=True,
    ):
        series.append(_served(each, top))
    series[4] = replace(series[4], stable=False)
    return Record(
        conditions=replace(CONDITIONS, peaks=(PEAKS,)),
        candidates=(
            Entry(FIRST, "fp32 on onnxruntime, cpu, threads 2"),
            Entry(OTHER, "PyTorch 2.13.0, eager, cpu, threads 2"),
            Entry(THIRD, "int8 on onnxruntime, cpu, threads 2"),
            Entry("broken.onnx", "fp32 on onnxruntime", "last_hidden_state differs: 0.13 > 2e-05"),
        ),
        series=tuple(series),
        cold_starts=(
            ColdStart(FIRST, 96.0, 341.0, 352.0, 1.9, 214 * 2**20),
            ColdStart(THIRD, 97.0, 231.0, 236.0, 1.1, 131 * 2**20),
        ),
        profiles=(
            Profile(FIRST, {"sequence": 128, "batch": 1}, shares(_OPERATORS), shares(_MODULES)),
            Profile(THIRD, {"sequence": 128, "batch": 1}, shares(_OPERATORS[::-1]), ()),
        ),
        waterfalls=tuple(
            Waterfall(name, "a text of 20 words", {**_STAGES, "compute": ms}, 30)
            for name, ms in ((FIRST, 1.9), (THIRD, 1.1))
        ),
    )


_STAGES = {"tokenize": 0.11, "queue": 0.02, "pad": 0.05, "copy": 0.03, "compute": 0.0, "decode": 0.04}
_OPERATORS = (
    *("MatMul", "Attention", "SkipLayerNormalization", "FastGelu", "Gather", "Add", "Cast", "Shape"),
    *("Mul", "Sub", "Unsqueeze", "Tanh"),
)
_MODULES = tuple(
    f"encoder.layer.{i}.{part}"
    for i in range(6)
    for part in ("attention.self", "intermediate.dense", "output.dense")
)


def shares(names: Sequence[str]) -> tuple[Share, ...]:
    """Each takes two thirds of the one before."""
    parts = np.array([(2 / 3) ** i for i in range(len(names))])
    parts /= parts.sum()
    return tuple(
        Share(name, float(2.1 * p), float(p), 1 + i)
        for i, (name, p) in enumerate(zip(names, parts, strict=True))
    )


def _limited(series: Series, batch: int) -> Series:
    gflop, megabytes = 0.085 * batch, 22 + 1.6 * batch
    floors = {"compute": 1e3 * gflop / PEAKS.gflops, "memory": megabytes / PEAKS.gigabytes_per_s}
    bound = max(floors, key=floors.__getitem__)
    fraction = floors[bound] / series.latency_ms["p50"].value
    return replace(series, limit=Limit(bound, floors[bound], fraction, gflop, megabytes, ("Cast",)))


def _served(series: Series, top: float) -> Series:
    """The rates that the search tried, up to `top`, at a bound of 20 ms."""
    p99s = {top / 1.05**2: 11.0, top / 1.05: 14.0, top: 18.5, top * 1.05: 26.0}
    tried = tuple(ServedRate(rate, 0.4 * p99, p99, p99 <= 20) for rate, p99 in p99s.items())
    return replace(series, bound_ms=20.0, throughput=Estimate(top, top / 1.05, top * 1.05), rates=tried)
