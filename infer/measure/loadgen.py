"""MLPerf's LoadGen in the place of the built-in scenarios, when `mlcommons-loadgen` is installed.

LoadGen decides when to ask and keeps the time; this file answers it, and reads what it wrote. Its results
are unofficial: no rule of a submission is checked beyond LoadGen's own validity.

Source: MLPerf inference rules, and LoadGen's sources (`loadgen.cc`, `issue_query_controller.cc`,
`results.cc` of version 6.0).
"""

from __future__ import annotations

import atexit
import ctypes
import json
import math
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from infer.errors import BackendError, InputError, missing_package
from infer.measure.scenarios import SCENARIOS, Probe, probed
from infer.signature import Array

Run = Callable[[int], object]
"""Answers so many samples at once."""

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

_PATIENCE_S = 2.0
"""How long the end of the process waits for a call of `run`, or for LoadGen's next query."""


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
    return _result(scenario, samples, _Test(loadgen, settings, run, samples).result())


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


@dataclass(frozen=True)
class _Logs:
    """What LoadGen wrote: results and settings by name, errors and warnings, and its trace.

    The trace has a row for each sample, in the order of issue: the number of its query, when it was due in
    microseconds, its latency in nanoseconds; shape = (samples, 3).
    """

    detail: Mapping[str, Any]
    remarks: tuple[str, ...]
    trace: Array


class _Turns:
    """The one thread that calls LoadGen, for all tests of the process, one after the other.

    LoadGen keeps its state in globals, so tests take turns. A thread of its own lets Ctrl-C reach whoever
    waits for a test. It never ends: the log of a thread that ends is freed by the next test while the
    thread still writes to it (`TlsLogger::Log` of version 6.0, called by `UnRegisterTlsLogger`).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._waiting: queue.SimpleQueue[_Test] = queue.SimpleQueue()
        self.running: _Test | None = None

    def ask(self, test: _Test) -> None:
        """Let the test be run when those before it have ended."""
        with self._lock:
            if self._thread is None:
                # a daemon, or the end of the process would wait for the end of the test
                self._thread = threading.Thread(target=self._work, name="LoadGen", daemon=True)
                self._thread.start()
        self._waiting.put(test)

    def _work(self) -> None:
        while True:
            self.running = self._waiting.get()
            self.running.take_turn()
            self.running = None


_turns = _Turns()
_leaving = False


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _turns
    _turns = _Turns()


os.register_at_fork(after_in_child=_forget)


class _Test:
    """One test, in the thread that calls LoadGen.

    Queries are answered where LoadGen asks, one at a time in the order of arrival. In the server scenario
    LoadGen then asks late, but it counts from the arrival that it had scheduled: time in the queue is in.

    LoadGen can neither be stopped nor be left by an exception: after Ctrl-C, or an error of `run`, it is
    answered without work until it ends.
    """

    def __init__(self, loadgen: ModuleType, settings: Any, run: Run, samples: int) -> None:
        self._loadgen = loadgen
        self._settings = settings
        self._run = run
        self._samples = samples
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._logs: _Logs | None = None
        self._given_up = False
        self._parked = False

    def result(self) -> _Logs:
        """Wait for the end of the test. Raises what `run` raised."""
        try:
            _turns.ask(self)
            self._ended.wait()
        except BaseException:
            self._given_up = True
            raise
        if self._error is not None:
            raise self._error
        assert self._logs is not None
        return self._logs

    def leave(self) -> bool:
        """Wait, but not for long, until the thread will not come back from LoadGen; whether it ended."""
        self._given_up = True
        deadline = time.monotonic() + _PATIENCE_S
        while not (self._ended.is_set() or self._parked) and time.monotonic() < deadline:
            time.sleep(0.005)
        return self._ended.is_set()

    def take_turn(self) -> None:
        try:
            if not (self._given_up or _leaving):
                self._logs = self._test()
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._ended.set()

    def _test(self) -> _Logs | None:
        loadgen = self._loadgen
        system = loadgen.ConstructFastSUT(self._answer, lambda: None)
        library = loadgen.ConstructQSL(1, 1, lambda _: None, lambda _: None)
        try:
            with tempfile.TemporaryDirectory(prefix="infer-") as folder:
                logs = loadgen.LogSettings()
                logs.enable_trace = True
                logs.log_output.outdir = folder
                # a file of this name overrules the settings, by default one in the working folder
                nowhere = str(Path(folder) / "audit.config")
                loadgen.StartTestWithLogSettings(system, library, self._settings, logs, nowhere)
                if self._given_up or self._error:
                    return None
                try:
                    return _read_logs(Path(folder))
                except (ValueError, LookupError) as error:  # LoadGen does not say what it could not write
                    raise BackendError(
                        f"LoadGen's results are not whole; is there space in '{Path(folder).parent}'?"
                    ) from error
        finally:
            loadgen.DestroyQSL(library)
            loadgen.DestroyFastSUT(system)

    def _answer(self, ids: list[int], _indices: list[int]) -> None:
        """LoadGen asks for these samples."""
        if _leaving:
            self._parked = True
            threading.Event().wait()  # for good
        response, complete = self._loadgen.QuerySampleResponse, self._loadgen.QuerySamplesComplete
        for start in range(0, len(ids), self._samples):
            part = ids[start : start + self._samples]
            try:
                if not (self._given_up or self._error):
                    self._run(len(part))
            except BaseException as error:  # which must not reach LoadGen
                self._error = error
            complete([response(sample, 0, 0) for sample in part])


@atexit.register
def _leave() -> None:
    """Let the process end in the middle of a test that was given up.

    A thread that comes back from LoadGen while Python ends is aborted, with the process; so it is held.
    LoadGen's own thread would then work on with what the C library destroys at exit, and crash: the process
    ends just before, with the exit code it was to have.
    """
    global _leaving
    _leaving = True
    test = _turns.running
    if test is None or test.leave():
        return
    libc = ctypes.CDLL(None)  # glibc: LoadGen is built for no other
    libc.on_exit.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


def _read_logs(folder: Path) -> _Logs:
    detail: dict[str, Any] = {}
    remarks: list[str] = []
    with (folder / "mlperf_log_detail.txt").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith(":::MLLOG "):
                entry = json.loads(line.removeprefix(":::MLLOG "))
                detail[entry["key"]] = entry["value"]
                if entry["metadata"]["is_error"] or entry["metadata"]["is_warning"]:
                    remarks.append(_plain(str(entry["value"])))
    rows: list[tuple[int, int, float, int]] = []
    # not JSON as a whole: it quotes some names twice
    with (folder / "mlperf_log_trace.json").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith('{"name":"Sample",'):
                event = json.loads(line.rstrip().rstrip(","))
                if event["ph"] == "b":
                    args = event["args"]
                    rows.append((args["sample_seq"], args["query_seq"], event["ts"], args["complete_ns"]))
    if len(rows) < detail["result_query_count"]:
        raise ValueError("the trace is cut off")
    return _Logs(detail, tuple(remarks), np.array(sorted(rows), np.float64)[:, 1:])


def _result(scenario: str, samples: int, logs: _Logs) -> LoadGenResult:
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
    return f"INVALID: {_plain(' '.join(reasons))}"


def _plain(text: str) -> str:
    """Without the marks and breaks of a list."""
    return " ".join(word for word in text.split() if word != "*")
