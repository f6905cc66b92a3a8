"""What was measured, as data: everything a table, a page, a comparison or a gate needs.

Written and read with `schema`, so that a record of another version is refused, not misread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infer import schema
from infer.artifact import reading
from infer.drafts import file_draft
from infer.errors import ArtifactError
from infer.measure.statistics import VERDICTS, Estimate

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Peaks:
    """What the machine reaches with so many threads: float32 matrix products in GFLOP/s, memory read in
    GB/s, and the size of its last cache, 0 if unknown."""

    threads: int
    gflops: float
    gigabytes_per_s: float
    cache_bytes: int


@dataclass(frozen=True)
class Conditions:
    """Where, when and how.

    Attributes:
        harness: "built-in", or "LoadGen 6.0 (unofficial)".
        noise: the spread of a fixed piece of work's times, 0.05 for ±5 %.
        work_ms: its median, which tells how fast the machine was.
        peaks: of the machine, for each number of threads that was used; empty if not measured.
        starts: how often the candidates were started in each scenario but the server's.
    """

    created: str
    harness: str
    seconds: float
    threads: int
    noise: float
    work_ms: float
    interrupted: bool
    cpu: str
    isa: tuple[str, ...]
    cores: int
    memory_bytes: int
    system: str
    versions: dict[str, str]
    peaks: tuple[Peaks, ...] = ()
    starts: int = 1


@dataclass(frozen=True)
class Entry:
    """A candidate; `excluded` says why it was not timed anywhere."""

    name: str
    described: str
    excluded: str | None = None


@dataclass(frozen=True)
class Exclusion:
    """Why a candidate was not timed at a point: it failed there, or its answers differ from the others'."""

    candidate: str
    sizes: dict[str, int]
    reason: str


@dataclass(frozen=True)
class Limit:
    """How close a query comes to the machine's limit.

    Attributes:
        bound: "compute" or "memory", the larger of the two floors.
        floor_ms: no query can take less: FLOPs ÷ peak, or bytes ÷ bandwidth.
        fraction: `floor_ms` ÷ the median latency; 1 is the limit.
        gflop: floating-point operations of a query, in 10⁹: a multiplication and an addition are two.
        megabytes: bytes that must be moved at least once (weights, feeds, outputs), in 10⁶.
        uncounted: operators whose work is not known, and is not in `gflop`.
    """

    bound: str
    floor_ms: float
    fraction: float
    gflop: float
    megabytes: float
    uncounted: tuple[str, ...] = ()

    @property
    def intensity(self) -> float | None:
        """Floating-point operations for each byte that must be moved; None where they were not counted."""
        return 1e3 * self.gflop / self.megabytes if self.gflop > 0 and self.megabytes > 0 else None

    @property
    def gflops(self) -> float | None:
        """GFLOP/s at the median latency, which is `floor_ms` ÷ `fraction`; None where not counted."""
        if self.intensity is None or self.floor_ms <= 0 or self.fraction <= 0:
            return None
        return 1e3 * self.gflop * self.fraction / self.floor_ms


@dataclass(frozen=True)
class ServedRate:
    """A rate that the server scenario tried, in samples a second, and whether its p99 met the bound;
    `queued_ms` is the mean time that queries spent waiting for others."""

    rate: float
    p50_ms: float
    p99_ms: float
    met: bool
    queued_ms: float = 0.0


@dataclass(frozen=True)
class Series:
    """One candidate in one scenario at one point.

    Attributes:
        sizes: of the dims, batch among them; `threads` if these were swept.
        latency_ms: percentiles by name ("p99") of queries of `samples` samples each.
        throughput: samples a second; of the server scenario the highest rate within `bound_ms`.
        quantiles_ms: latencies at 0, 1, …, 100 %.
        medians_ms: of each round; comparable between candidates measured together.
        ratio: time per query over that of the first candidate; below 1 is faster.
        stable: whether warming up came to rest.
        validity: LoadGen's own, "VALID" or "INVALID: why"; None from the built-in harness.
        rates: what the server scenario tried, in that order.
    """

    candidate: str
    scenario: str
    sizes: dict[str, int]
    queries: int
    samples: int
    latency_ms: dict[str, Estimate]
    mean_ms: Estimate
    throughput: Estimate
    quantiles_ms: tuple[float, ...]
    medians_ms: tuple[float, ...]
    stable: bool
    ratio: Estimate | None = None
    verdict: str | None = None
    bound_ms: float | None = None
    limit: Limit | None = None
    validity: str | None = None
    rates: tuple[ServedRate, ...] = ()

    @property
    def per_sample_ms(self) -> list[float]:
        """Of each round, whatever a query holds: what ratios are of."""
        return [median / self.samples for median in self.medians_ms]


@dataclass(frozen=True)
class Share:
    """Time of all nodes of one kind, or of one module, in a query: milliseconds, part of the whole, and
    how many nodes there are."""

    name: str
    ms: float
    share: float
    nodes: int


@dataclass(frozen=True)
class Profile:
    """Where one query's time goes, by operator and by the module of the original that asked for it."""

    candidate: str
    sizes: dict[str, int]
    operators: tuple[Share, ...]
    modules: tuple[Share, ...]


@dataclass(frozen=True)
class Waterfall:
    """Where the time of one input's answer goes, from what a person has to what they want: milliseconds
    by stage, in order, medians of `rounds`."""

    candidate: str
    input: str
    stages_ms: dict[str, float]
    rounds: int


@dataclass(frozen=True)
class ColdStart:
    """Milliseconds from the start of a new process, and its peak memory."""

    candidate: str
    imported_ms: float
    loaded_ms: float
    first_answer_ms: float
    steady_ms: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Record:
    """A whole measurement."""

    conditions: Conditions
    candidates: tuple[Entry, ...]
    series: tuple[Series, ...]
    exclusions: tuple[Exclusion, ...] = ()
    cold_starts: tuple[ColdStart, ...] = ()
    profiles: tuple[Profile, ...] = ()
    waterfalls: tuple[Waterfall, ...] = ()
    schema_version: int = field(default=SCHEMA_VERSION)

    def to_data(self) -> dict[str, Any]:
        """As plain JSON data."""
        data: dict[str, Any] = schema.encode(self)
        return data

    def write(self, path: Path) -> None:
        """Write it whole or not at all."""
        with file_draft(path) as draft:
            draft.write_text(json.dumps(self.to_data(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_record(path: Path) -> Record:
    """The record in a file. Raises `ArtifactError`."""
    with reading(path):
        text = path.read_bytes()
    try:
        data = schema.parse(text)
        version = data.get("schema_version") if isinstance(data, Mapping) else None
        if version != SCHEMA_VERSION:
            raise schema.SchemaError(
                f"its schema_version is {version!r:.20}, and this release reads {SCHEMA_VERSION}"
            )
        record = schema.decode(Record, data, "the record")
        _check(record)
        return record
    except schema.SchemaError as error:
        raise ArtifactError(f"'{path}' is not a record of infer bench: {error}; measure again") from error


def _check(record: Record) -> None:
    """Refuse what no measurement gives: ratios and logarithms are taken of these numbers. Raises
    `SchemaError`."""
    for name, sound in _soundness(record):
        if not sound:
            raise schema.SchemaError(f"{name} holds values that no measurement gives")


def _soundness(record: Record) -> Iterator[tuple[str, bool]]:
    for s in record.series:
        estimates = [*s.latency_ms.values(), s.mean_ms, s.throughput, *([s.ratio] if s.ratio else [])]
        positive = [*s.quantiles_ms, *s.medians_ms, *s.sizes.values(), s.queries, s.samples]
        positive += [number for rate in s.rates for number in (rate.rate, rate.p50_ms, rate.p99_ms)]
        positive += [] if s.bound_ms is None else [s.bound_ms]
        limit = s.limit
        yield (
            f"the series of '{s.candidate}'",
            all(0 < e.low <= e.value <= e.high for e in estimates)
            and min(positive) > 0
            and len(s.quantiles_ms) == 101
            and len(s.medians_ms) > 0
            and s.verdict in (None, *VERDICTS)
            and (limit is None or limit.bound in ("compute", "memory"))
            and (limit is None or min(limit.floor_ms, limit.fraction, limit.gflop, limit.megabytes) >= 0),
        )
    for peaks in record.conditions.peaks:
        yield "peaks", min(peaks.threads, peaks.gflops, peaks.gigabytes_per_s) > 0
    for start in record.cold_starts:
        ascending = 0 < start.imported_ms <= start.loaded_ms <= start.first_answer_ms
        yield f"the cold start of '{start.candidate}'", ascending and start.peak_memory_bytes > 0
    for profile in record.profiles:
        shares = (*profile.operators, *profile.modules)
        yield f"the profile of '{profile.candidate}'", all(min(s.ms, s.share) >= 0 for s in shares)
    for waterfall in record.waterfalls:
        sound = all(ms >= 0 for ms in waterfall.stages_ms.values())
        yield f"the waterfall of '{waterfall.candidate}'", sound
