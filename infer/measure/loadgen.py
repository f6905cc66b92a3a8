"""MLPerf's LoadGen in the place of the built-in scenarios, when `mlcommons-loadgen` is installed.

LoadGen decides when to ask and keeps the time. Its results are unofficial: no rule of a submission is
checked beyond LoadGen's own validity.

Source: MLPerf inference rules, and LoadGen's sources (`loadgen.cc`, `issue_query_controller.cc`,
`results.cc` of version 6.0).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from infer.errors import InputError, missing_package
from infer.measure.loadgen_turns import LoadGenTest, Logs, Run, plain
from infer.measure.scenarios import SCENARIOS, Probe, probed
from infer.signature import Array

MAX_QUERIES = 100_000
"""A test is shortened to about this many queries: LoadGen's trace takes some 800 bytes for each."""

_NAMES = {
    # scenario: LoadGen's name, and where its log has the percentile that the scenario is judged by
    "single-stream": ("SingleStream", "result_90.00_percentile_latency_ns"),
    "multi-stream": ("MultiStream", "result_99.00_percentile_per_query_latency_ns"),
    "server": ("Server", "result_99.00_percentile_latency_ns"),
    "offline": ("Offline", None),
}

_OFFLINE_SLACK = 1.1
"""Samples beyond those that fill the time at the rate of the warm-up: a faster run would be INVALID."""

_WARM_UP_S = 0.1

_LEAST_S = 5e-6
"""What a query takes at least, if `run` does nothing: most of it is spent between LoadGen and Python."""


@dataclass(frozen=True)
class LoadGenResult:
    """What one test of LoadGen found.

    Attributes:
        latencies: in milliseconds, as LoadGen measured them, shape = (queries,), in the order of issue. A
            query of the server scenario counts from its scheduled arrival. Offline they are of samples,
            shape = (samples,), all from the start of the test.
        arrivals_s: when each of them was due, in seconds from the first one.
        samples: in each call: of one query, or of a batch of the offline scenario.
        throughput: samples a second, by LoadGen's definition for the scenario.
        percentile_ms: LoadGen's own p90 (single-stream) or p99 (multi-stream, server); None offline.
        early_stopping_ms: what a submission would report for that percentile, a bound that holds with 99 %
            confidence; None where there were too few queries, and for server and offline.
        validity: "VALID", or "INVALID: why".
        remarks: errors and warnings that LoadGen logged; in a test of less than a second it often takes the
            rounding of its clocks to milliseconds for a difference between them.
        settings: those in effect, by LoadGen's names ("min_duration_ms").
    """

    scenario: str
    latencies: Array
    arrivals_s: Array
    samples: int
    throughput: float
    percentile_ms: float | None
    early_stopping_ms: float | None
    validity: str
    remarks: tuple[str, ...]
    settings: Mapping[str, Any]


def installed() -> bool:
    """Whether LoadGen can be imported, as far as can be told without doing so."""
    try:
        return find_spec("mlperf_loadgen") is not None
    except ValueError:  # what stands in its place is no module
        return False


def check_installed() -> None:
    """Raise `MissingPackageError` if LoadGen cannot be imported."""
    _imported()


def harness() -> str:
    """How results are to be labelled: "LoadGen 6.0.17 (unofficial)"."""
    return f"LoadGen {version('mlcommons-loadgen')} (unofficial)"


def run_test(
    scenario: str,
    run: Run,
    seconds: float,
    *,
    samples: int = 1,
    rate: float | None = None,
    bound_ms: float | None = None,
    min_queries: int = 100,
) -> LoadGenResult:
    """One test of LoadGen, of at least `seconds` and `min_queries` queries (offline: samples).

    `run` answers in a thread of this function, one call at a time: `samples` at once in the multi-stream
    and offline scenarios, else one. The server scenario needs the `rate`, in samples a second, and its
    latency bound, and does not warm up. A process runs one test at a time; others wait for it.

    Raises `InputError` for settings that do not fit the scenario, `MissingPackageError`, `BackendError` if
    results cannot be written, and what `run` raised first, when the test has ended. Ctrl-C ends the call at
    once: what LoadGen still asks is answered in the background, without `run`.
    """
    if scenario not in SCENARIOS:
        raise InputError(f"there is no scenario '{scenario}'; choose from {', '.join(SCENARIOS)}")
    if scenario == "server" and not (rate and bound_ms):
        raise InputError("the scenario 'server' needs a rate and a latency bound above 0")
    if scenario in ("single-stream", "server"):
        samples = 1
    loadgen = _imported()
    call_s = 1 / rate if scenario == "server" and rate else _fastest_s(run, samples)
    seconds = min(seconds, MAX_QUERIES * (call_s / samples if scenario == "offline" else call_s))
    settings = _settings(loadgen, scenario, seconds, samples, call_s, bound_ms or 0.0, min_queries)
    return _result(scenario, samples, LoadGenTest(loadgen, settings, run, samples).result())


def loadgen_probe(
    run: Run, bound_ms: float, seconds: float, min_queries: int = 100
) -> Callable[[float], Probe]:
    """Serves one rate for `seconds`, with the same arrivals each time, scaled: for `highest_rate`."""

    def probe(rate: float) -> Probe:
        found = run_test("server", run, seconds, rate=rate, bound_ms=bound_ms, min_queries=min_queries)
        assert found.percentile_ms is not None
        served = probed(rate, found.arrivals_s, found.latencies, bound_ms)
        # LoadGen's own percentile, which is at most one query beyond ours
        return replace(served, p99_ms=found.percentile_ms, met=found.percentile_ms <= bound_ms)

    return probe


class Tested:
    """A query that LoadGen asks: every turn is a test of its own, of at least `seconds`.

    `run` answers a query, or a batch of the offline scenario, of `samples` samples. `validities` are
    LoadGen's own, one a turn.
    """

    def __init__(self, scenario: str, run: Run, samples: int, seconds: float) -> None:
        self._scenario, self._run, self._samples, self._seconds = scenario, run, samples, seconds
        self.validities: list[str] = []

    def turn(self, count: int) -> Array:
        found = run_test(self._scenario, self._run, self._seconds, samples=self._samples, min_queries=count)
        self.validities.append(found.validity)
        if self._scenario == "offline":  # one query of LoadGen's; what is counted are batches
            return np.array([1e3 * self._samples / found.throughput])
        return found.latencies

    def serve(self, due_s: Array) -> Array:
        raise InputError("LoadGen draws arrivals itself; ask `loadgen_probe` for a rate")

    @property
    def validity(self) -> str:
        """That of all turns: VALID, or the first reason why one is not, and of how many."""
        invalid = [text for text in self.validities if text != "VALID"]
        if not invalid:
            return "VALID"
        return f"{invalid[0]} ({len(invalid)} of {len(self.validities)} tests)"


def _imported() -> ModuleType:
    try:
        import mlperf_loadgen
    except (ImportError, OSError) as error:
        raise missing_package("mlcommons-loadgen", "bench", error) from error
    module: ModuleType = mlperf_loadgen
    return module


def _fastest_s(run: Run, samples: int) -> float:
    """The shortest of some calls: LoadGen wants to know how many queries may fit into the time."""
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - start < _WARM_UP_S:
        began = time.perf_counter()
        run(samples)
        taken.append(time.perf_counter() - began)
    return max(_LEAST_S, min(taken))


def _settings(
    loadgen: ModuleType,
    scenario: str,
    seconds: float,
    samples: int,
    call_s: float,
    bound_ms: float,
    min_queries: int,
) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, _NAMES[scenario][0])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, round(1e3 * seconds))
    settings.min_query_count = max(1, min_queries)
    settings.single_stream_expected_latency_ns = 1e9 * call_s
    settings.multi_stream_expected_latency_ns = 1e9 * call_s
    settings.multi_stream_samples_per_query = samples
    settings.server_target_qps = 1 / call_s
    settings.server_target_latency_ns = round(1e6 * bound_ms)
    settings.offline_expected_qps = samples / call_s
    if scenario == "offline":
        # LoadGen takes the larger of this and 1.1 × time × rate, all as one query; whole batches only
        wanted = max(min_queries, _OFFLINE_SLACK * 1.1 * seconds * samples / call_s)
        settings.min_query_count = samples * math.ceil(wanted / samples)
    return settings


def _result(scenario: str, samples: int, logs: Logs) -> LoadGenResult:
    query, due_us, latency_ns = logs.trace.T
    latencies = latency_ns / 1e6
    arrivals_s = (due_us - due_us[0]) / 1e6
    if scenario == "multi-stream":  # a query ends with its last sample
        starts = np.flatnonzero(np.diff(query, prepend=-1))
        latencies, arrivals_s = np.maximum.reduceat(latencies, starts), arrivals_s[starts]
    if scenario == "offline":
        throughput = 1e3 * len(latencies) / latencies.max()
    elif scenario == "server":  # the last one's arrival is the open end of the time
        throughput = (len(latencies) - 1) / (arrivals_s[-1] + latencies[-1] / 1e3)
    else:
        throughput = 1e3 * samples / latencies.mean()
    detail = logs.detail
    percentile = _NAMES[scenario][1]
    early = detail.get(
        "early_stopping_latency_ss" if scenario == "single-stream" else "early_stopping_latency_ms"
    )
    return LoadGenResult(
        scenario=scenario,
        latencies=latencies,
        arrivals_s=arrivals_s,
        samples=samples,
        throughput=float(throughput),
        percentile_ms=None if percentile is None else detail[percentile] / 1e6,
        early_stopping_ms=early / 1e6 if early else None,  # 0 stands for too few
        validity=_validity(detail),
        remarks=logs.remarks,
        settings={
            name.removeprefix("effective_"): value
            for name, value in detail.items()
            if name.startswith("effective_")
        },
    )


def _validity(detail: Mapping[str, Any]) -> str:
    if detail["result_validity"] == "VALID":
        return "VALID"
    reasons = [str(detail.get("result_invalid_reason", ""))]
    if not detail.get("early_stopping_met", True):
        reasons.append(str(detail.get("early_stopping_result", "")))
    return f"INVALID: {plain(' '.join(reasons))}"
