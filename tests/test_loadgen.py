"""LoadGen in the place of the built-in scenarios: what it is told, what it says, and how it ends.

Times are compared with those that the work itself kept of the very same calls, so that a busy machine,
which makes calls longer, does not make a harness wrong. `python -m bench.loadgen_agreement` compares the
metrics of both.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import infer
from bench.loadgen_agreement import Work, lindley, oracle
from infer.errors import InputError, MissingPackageError
from infer.measure import loadgen
from infer.measure.loadgen import LoadGenResult, harness, installed, loadgen_probe, run_test
from infer.measure.queries import Call
from infer.measure.scenarios import SCENARIOS, waited
from infer.signature import Array
from tests.command import infer_command

needs_loadgen = pytest.mark.skipif(not installed(), reason="there is no LoadGen for this Python or machine")

TIMES_S = np.random.default_rng(0).uniform(0.01, 0.025, 101).tolist()

# the least numbers of queries for LoadGen's early stopping, from its documentation and the rules: with all
# but one (p90, p99), or all, within the percentile
ENOUGH = {"single-stream": 64, "multi-stream": 662, "server": 459}


def sleep(number: int, _samples: int) -> None:
    """Some 17 ms that leave the cores to others."""
    time.sleep(TIMES_S[number % len(TIMES_S)])


def brief(_samples: int) -> None:
    """So short that `min_queries` decides on the length of a test that is to last no time."""
    time.sleep(0.0003)


def percentile(latencies: Array, share: float) -> float:
    """LoadGen's: of n latencies in order, the one at n × share, counted from 0."""
    return float(np.sort(latencies)[int(len(latencies) * share)])


def median_excess(found: Array, expected_ms: Sequence[float]) -> float:
    """How much longer than expected the query in the middle took, relative; none may be shorter."""
    excess = found / np.asarray(expected_ms)
    # the harness's clock starts before the work's, and stops after it; LoadGen's arrivals are in whole ns
    assert excess.min() > 1 - 1e-5
    return float(np.median(excess)) - 1


@needs_loadgen
@pytest.mark.parametrize(
    ("scenario", "samples", "share"),
    [
        ("single-stream", 1, 0.9),
        ("multi-stream", 5, 0.99),
        ("server", 1, 0.99),
        ("offline", 6, None),
    ],
)
def test_what_is_asked_and_what_is_said(scenario: str, samples: int, share: float | None) -> None:
    """Samples come in the sizes wanted, each is counted once, and LoadGen's figures are those of the
    latencies that it wrote."""
    asked: list[int] = []

    def run(count: int) -> None:
        asked.append(count)
        time.sleep(0.0005)

    found = run_test(scenario, run, 0.3, samples=samples, rate=300, bound_ms=40, min_queries=30)
    assert set(asked) == {samples}
    count = len(found.latencies)
    calls = count // samples if scenario == "offline" else count
    assert calls >= 30 / samples
    if scenario == "server":
        assert calls == len(asked)
    else:
        assert calls <= len(asked) - 3  # the rest is the warm-up
    assert count == len(found.arrivals_s)
    assert np.all(found.latencies >= 0.5)
    assert found.samples == samples
    assert found.settings["scenario"] == scenario.title().replace("-", "")
    assert found.settings["min_duration_ms"] == 300
    if share is not None:
        assert found.percentile_ms == percentile(found.latencies, share)
        assert found.settings["target_latency_percentile"] == share
    if scenario == "offline":
        assert found.percentile_ms is None
        assert count == found.settings["samples_per_query"]
        assert not found.arrivals_s.any()
        assert found.throughput == pytest.approx(1e3 * count / found.latencies.max())
    else:
        assert found.settings["samples_per_query"] == samples
        assert found.settings["min_query_count"] == 30
        assert np.all(np.diff(found.arrivals_s) > 0)
    if scenario == "server":
        assert found.settings["target_qps"] == 300
        assert found.settings["target_latency_ns"] == 40_000_000


@needs_loadgen
@pytest.mark.parametrize("scenario", ENOUGH)
def test_validity_is_loadgens_own(scenario: str) -> None:
    """One query less than early stopping needs is INVALID, and why; as many as it needs are VALID."""
    enough = ENOUGH[scenario]
    # a duration of next to nothing leaves the number of queries to `min_queries`
    few, all_ = (
        run_test(scenario, brief, 1e-4, rate=5000, bound_ms=5000, samples=2, min_queries=count)
        for count in (enough - 1, enough)
    )
    assert (len(few.latencies), len(all_.latencies)) == (enough - 1, enough)
    assert few.validity.startswith("INVALID: ")
    need = "at least 1 more queries" if scenario == "server" else f"at least {enough} queries"
    assert need in few.validity
    assert "*" not in few.validity
    assert all_.validity == "VALID"
    if scenario == "server":
        assert all_.early_stopping_ms is None
    else:
        assert few.early_stopping_ms is None
        assert all_.early_stopping_ms == pytest.approx(all_.latencies.max())  # all but none are left out


@needs_loadgen
def test_a_bound_that_is_broken_is_invalid() -> None:
    """The reason is LoadGen's, and the probe of the rate says that the bound was not met."""

    def run(_samples: int) -> None:
        time.sleep(0.004)

    found = run_test("server", run, 0.2, rate=100, bound_ms=2, min_queries=20)
    assert found.validity.startswith("INVALID: Reduce target QPS to improve latency. Run unsuccessful.")
    tight, wide = loadgen_probe(run, 2, 0.2)(100.0), loadgen_probe(run, 2000, 0.2)(100.0)
    assert (tight.rate, tight.met, wide.met) == (100.0, False, True)
    assert len(tight.latencies) >= 100
    assert tight.p99_ms == percentile(tight.latencies, 0.99) > 2


@needs_loadgen
def test_work_that_becomes_faster_is_invalid() -> None:
    """LoadGen prepares queries by how long one took first; without any left it ends early, and says so."""
    start = time.perf_counter()

    def run(_samples: int) -> None:
        # the warm-up takes 0.1 s, and is all slow
        time.sleep(0.01 if time.perf_counter() - start < 0.15 else 0.0002)

    found = run_test("single-stream", run, 1)
    assert len(found.latencies) < 220  # twice what fits into a second
    assert found.validity.startswith("INVALID: Decrease the expected latency")
    assert any("Ran out of generated queries" in remark for remark in found.remarks)


@needs_loadgen
def test_arrivals_are_random_and_the_same_each_time() -> None:
    """Gaps between arrivals are those of a Poisson process at the rate wanted, and the same at others."""
    fast, slow = (
        run_test("server", brief, 1e-4, rate=rate, bound_ms=1000, min_queries=400)
        for rate in (4000.0, 2000.0)
    )
    assert slow.arrivals_s == pytest.approx(2 * fast.arrivals_s, abs=1e-6)
    gaps = np.sort(np.diff(fast.arrivals_s)) * 4000
    # Kolmogorov and Smirnov's distance to 1 - exp(-x); at 1 % significance 1.63 / √n
    distance = np.abs(1 - np.exp(-gaps) - (np.arange(len(gaps)) + 0.5) / len(gaps)).max()
    assert distance < 1.63 / math.sqrt(len(gaps))


@needs_loadgen
def test_a_long_test_of_something_fast_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace of every query is kept, so there is a limit to their number."""
    monkeypatch.setattr(loadgen, "MAX_QUERIES", 500)
    found = run_test("server", brief, 3600, rate=1000, bound_ms=1000, min_queries=1)
    assert found.settings["min_duration_ms"] == 500
    found = run_test("offline", brief, 3600, samples=4, min_queries=1)
    assert 500 <= len(found.latencies) <= 1.25 * 500  # some more, lest a faster run be too short


class BrokenError(Exception):
    """What a candidate raises."""


@needs_loadgen
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_error_is_raised_as_it_was(scenario: str) -> None:
    """The first one; the candidate is not asked again, and LoadGen works afterwards."""
    error, calls = BrokenError("of the 50th query"), 0

    def run(_samples: int) -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.003)
        if calls >= 50:
            raise error

    with pytest.raises(BrokenError) as raised:
        run_test(scenario, run, 0.5, samples=2, rate=200, bound_ms=50)
    assert raised.value is error
    assert calls == 50
    assert len(run_test("single-stream", brief, 1e-4, min_queries=70).latencies) == 70


@needs_loadgen
def test_an_audit_config_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoadGen reads a file of this name in the working folder, which would overrule the settings."""
    (tmp_path / "audit.config").write_text("*.SingleStream.min_query_count = 7\n*.*.min_duration = 900\n")
    monkeypatch.chdir(tmp_path)
    found = run_test("single-stream", brief, 1e-4, min_queries=70)
    assert found.settings["min_query_count"] == 70
    assert found.settings["min_duration_ms"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["audit.config"]


@needs_loadgen
def test_nothing_is_printed_and_no_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither from Python nor from C++."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for scenario in SCENARIOS:
        run_test(scenario, brief, 1e-4, rate=5000, bound_ms=100, min_queries=10)
    assert tuple(capfd.readouterr()) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_settings_that_do_not_fit_are_refused() -> None:
    """Before anything is asked."""
    with pytest.raises(InputError, match=r"no scenario 'burst'; choose from single-stream, multi-stream"):
        run_test("burst", brief, 1)
    for rate, bound_ms in ((None, 10.0), (100.0, None), (0.0, 10.0)):
        with pytest.raises(InputError, match=r"'server' needs a rate and a latency bound"):
            run_test("server", brief, 1, rate=rate, bound_ms=bound_ms)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """That can be asked, and the error ends with the command that installs it."""
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    assert not installed()
    with pytest.raises(MissingPackageError) as raised:
        run_test("single-stream", brief, 1)
    assert "'mlcommons-loadgen', which is not installed; install it with" in str(raised.value)
    assert str(raised.value).endswith('pip install "infer-onnx[bench]"')


@needs_loadgen
def test_asking_for_it_does_not_import_it() -> None:
    """Nor does importing the module that uses it."""
    program = (
        "import sys; from infer.measure.loadgen import harness, installed; print(installed(), harness(),"
        " 'mlperf_loadgen' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == f"True {harness()} False\n", done.stderr
    assert harness().startswith("LoadGen ")
    assert harness().endswith(" (unofficial)")


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(infer.__file__).parents[1])}

INTERRUPTED = """
import sys, threading, time
from infer.measure.loadgen import run_test
scenario, again = sys.argv[1:]
calls = 0
def run(samples):
    global calls
    calls += 1
    if calls == 60:
        print("asking", flush=True)
    time.sleep(0.003)
seconds = 2 if again == "again" else 60
try:
    run_test(scenario, run, seconds, samples=2, rate=50, bound_ms=50)
except KeyboardInterrupt:
    before = calls
    print("interrupted", flush=True)
if again == "again":
    found = run_test("single-stream", lambda _: time.sleep(0.0003), 1e-4, min_queries=70)
    print(len(found.latencies), calls - before <= 1)
sys.exit(130)
"""


FULL = """
import sys, time
from infer.errors import BackendError
from infer.measure.loadgen import run_test
try:
    run_test("single-stream", lambda _: time.sleep(0.0003), 1e-4, min_queries=200)
except BackendError as error:
    print(error)
"""


@needs_loadgen
def test_one_thread_serves_all_tests() -> None:
    """One that ends is what LoadGen cannot bear: the next test frees its log while it writes the last."""
    threads = set()
    for scenario in SCENARIOS:
        run_test(scenario, lambda _: threads.add(threading.current_thread()), 1e-4, rate=900, bound_ms=50)
    [thread] = threads - {threading.current_thread()}  # which warms up
    assert thread.is_alive()


FORKED = """
import multiprocessing
from infer.measure.loadgen import run_test
def ask():
    print(len(run_test("single-stream", lambda _: None, 1e-4, min_queries=70).latencies) >= 70, flush=True)
ask()
child = multiprocessing.get_context("fork").Process(target=ask)
child.start()
child.join(30)
print(child.exitcode)
"""


@needs_loadgen
def test_a_forked_process_has_a_thread_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True\nTrue\n0\n", done.stderr


@needs_loadgen
@pytest.mark.parametrize("size_bytes", [300, 50_000])
def test_a_full_disk_is_an_error(tmp_path: Path, size_bytes: int) -> None:
    """Whether the results are cut off, or the trace."""
    done = subprocess.run(
        [sys.executable, "-c", FULL],
        env={**ENVIRONMENT, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes)),
    )
    assert done.stdout == f"LoadGen's results are not whole; is there space in '{tmp_path}'?\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def interrupted(scenario: str, again: str, folder: Path) -> tuple[int, str, float]:
    """Exit code, output, and how many seconds after Ctrl-C in the middle of a test the process ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, scenario, again],
        env={**ENVIRONMENT, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said, time.monotonic() - start


@needs_loadgen
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ctrl_c_ends_the_test_and_the_process(scenario: str, tmp_path: Path) -> None:
    """At once, with a minute of the test to go; with the exit code that was meant, and nothing left."""
    code, said, seconds = interrupted(scenario, "", tmp_path)
    assert (code, said) == (130, "interrupted\n")
    assert seconds < 10  # 0.1 to 0.5 s where no one else computes
    assert list(tmp_path.iterdir()) == []


@needs_loadgen
@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_another_test_waits_for_the_one_that_was_interrupted(scenario: str, tmp_path: Path) -> None:
    """Its candidate is not asked any more."""
    assert interrupted(scenario, "again", tmp_path)[:2] == (130, "interrupted\n70 True\n")


@needs_loadgen
@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream"])
def test_latencies_are_those_of_the_calls(scenario: str) -> None:
    """LoadGen's and the built-in harness's, to 5 %, for the very calls that each made."""
    work, again = Work(sleep), Work(sleep)
    found = run_test(scenario, work, 2, samples=8)
    count = len(found.latencies)
    assert median_excess(found.latencies, 1e3 * np.array(work.took_s[-count:])) < 0.05
    latencies = Call(lambda: again(8)).turn(100)
    assert median_excess(latencies, 1e3 * np.array(again.took_s)) < 0.05


@needs_loadgen
@pytest.mark.slow
def test_throughput_is_that_of_the_calls() -> None:
    """Offline: samples over the time of all batches, to 5 %, in both harnesses."""
    work, again = Work(sleep), Work(sleep)
    found = run_test("offline", work, 2, samples=8)
    count = len(found.latencies) // 8
    expected = oracle("offline", work.took_s[-count:], found.arrivals_s, 8)
    assert 0.95 * expected < found.throughput < expected
    latencies = Call(lambda: again(8)).turn(100)
    expected = oracle("offline", again.took_s, latencies, 8)
    assert 0.95 * expected < 8e3 / latencies.mean() < expected


@needs_loadgen
@pytest.mark.slow
def test_queueing_counts_from_the_scheduled_arrival() -> None:
    """Server: Lindley's recursion gives the same of the calls' own times and LoadGen's arrivals, to 5 %, in
    both harnesses; and in the form with which the search for a rate simulates."""
    work = Work(sleep)
    found = served(work)
    service = work.took_s[-len(found.latencies) :]
    expected = 1e3 * np.array(list(lindley(found.arrivals_s, service)))
    assert np.mean(expected > 1.001e3 * np.array(service)) > 0.3  # so many had to wait
    assert median_excess(found.latencies, expected) < 0.05
    gaps = np.diff(found.arrivals_s, prepend=0.0)
    assert 1e3 * waited(gaps, np.array(service)) == pytest.approx(expected)
    again = Work(sleep)
    latencies = Call(lambda: again(1)).serve(found.arrivals_s)
    expected = 1e3 * np.array(list(lindley(found.arrivals_s, again.took_s)))
    assert median_excess(latencies, expected) < 0.05


def served(work: Work) -> LoadGenResult:
    """At 35 samples a second, of some 57 that could be served."""
    return run_test("server", work, 4, rate=35, bound_ms=200)


@needs_loadgen
def test_the_command_labels_what_loadgen_found(net: Path) -> None:
    """Records say who asked, that it is unofficial, and what LoadGen thinks of each."""
    arguments = ("--harness", "loadgen", "--seconds", "0.1", "--no-limits", "--json")
    found = json.loads(infer_command("bench", net, *arguments).out)
    assert found["conditions"]["harness"] == harness()
    assert found["series"][0]["validity"]
