"""Tests of LoadGen in turn: it asks, a test answers, and what LoadGen wrote about it is read.

Source: LoadGen's sources (`loadgen.cc`, `logging.cc`, `bindings/python_api.cc` of version 6.0).
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from infer.errors import BackendError
from infer.signature import Array

Run = Callable[[int], object]
"""Answers so many samples at once."""

_PATIENCE_S = 2.0
"""How long the end of the process waits for a call of `run`, or for LoadGen's next query."""


@dataclass(frozen=True)
class Logs:
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
        self._waiting: queue.SimpleQueue[LoadGenTest] = queue.SimpleQueue()
        self.running: LoadGenTest | None = None

    def ask(self, test: LoadGenTest) -> None:
        """Let the test be run when those before it have ended."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class LoadGenTest:
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
        self._logs: Logs | None = None
        self._given_up = False
        self._parked = False

    def result(self) -> Logs:
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
        """Run it in the thread that calls LoadGen, unless it was given up while it waited."""
        try:
            if not (self._given_up or _leaving):
                self._logs = self._test()
        except BaseException as error:
            self._error = self._error or error
        finally:
            self._ended.set()

    def _test(self) -> Logs | None:
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


def _read_logs(folder: Path) -> Logs:
    detail: dict[str, Any] = {}
    remarks: list[str] = []
    with (folder / "mlperf_log_detail.txt").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith(":::MLLOG "):
                entry = json.loads(line.removeprefix(":::MLLOG "))
                detail[entry["key"]] = entry["value"]
                if entry["metadata"]["is_error"] or entry["metadata"]["is_warning"]:
                    remarks.append(plain(str(entry["value"])))
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
    return Logs(detail, tuple(remarks), np.array(sorted(rows), np.float64)[:, 1:])


def plain(text: str) -> str:
    """Without the marks and breaks of a list."""
    return " ".join(word for word in text.split() if word != "*")
