"""MLPerf's LoadGen in the place of the built-in scenarios."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from infer.errors import InputError
from tests.command import infer_command

loadgen = pytest.importorskip("infer.measure.loadgen")
pytest.importorskip("mlperf_loadgen")


def millisecond(_: int) -> None:
    time.sleep(0.001)


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream"])
def test_latencies_are_loadgens_own(scenario: str) -> None:
    """One for each query, each at least what a call takes; LoadGen's percentile is that of them."""
    found = loadgen.run_test(scenario, millisecond, 0.3, samples=4)
    assert len(found.latencies) >= 100
    assert found.latencies.min() >= 1.0
    q = 90 if scenario == "single-stream" else 99
    assert found.percentile_ms == pytest.approx(
        sorted(found.latencies)[int(len(found.latencies) * q / 100)], rel=1e-6
    )
    assert found.validity == "VALID" or found.validity.startswith("INVALID: ")
    assert found.settings["min_query_count"] == 100


def test_the_server_scenario_counts_from_the_scheduled_arrival() -> None:
    """At a rate that cannot be served, every query waits longer than the one before on average."""
    found = loadgen.run_test(
        "server", lambda _: time.sleep(0.004), 0.3, rate=500.0, bound_ms=10.0, min_queries=100
    )
    gaps = np.diff(found.arrivals_s)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.5)
    assert found.latencies[-10:].mean() > found.latencies[:10].mean() + 50
    assert found.validity.startswith("INVALID: ")


def test_offline_asks_for_whole_batches() -> None:
    """Each call gets as many samples as were asked for; throughput is samples over time."""
    asked: list[int] = []

    def run(samples: int) -> None:
        asked.append(samples)
        time.sleep(0.002)

    found = loadgen.run_test("offline", run, 0.2, samples=16)
    assert set(asked) == {16}
    assert found.throughput == pytest.approx(1e3 * len(found.latencies) / found.latencies.max(), rel=1e-6)


def test_what_the_model_raises_comes_out_as_it_was() -> None:
    """No exception can cross LoadGen, which is C++: the test is answered to its end, then it is raised."""
    calls = 0

    def failing(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 80:
            raise ZeroDivisionError("the model's own words")
        time.sleep(0.0015)

    with pytest.raises(ZeroDivisionError, match="own words"):
        loadgen.run_test("single-stream", failing, 0.2)
    assert loadgen.run_test("single-stream", millisecond, 0.1).latencies.size


def test_an_audit_config_in_the_working_folder_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoadGen lets such a file overrule settings; here it is told to look elsewhere."""
    (tmp_path / "audit.config").write_text("*.*.min_query_count = 7777\n*.*.min_duration = 9999\n")
    monkeypatch.chdir(tmp_path)
    found = loadgen.run_test("single-stream", millisecond, 0.1)
    assert found.settings["min_query_count"] == 100
    assert [path.name for path in tmp_path.iterdir()] == ["audit.config"]


def test_settings_that_do_not_fit_are_refused() -> None:
    """A scenario that is none, and a server without rate or bound."""
    with pytest.raises(InputError, match="no scenario 'fastest'"):
        loadgen.run_test("fastest", millisecond, 0.1)
    with pytest.raises(InputError, match="needs a rate and a latency bound"):
        loadgen.run_test("server", millisecond, 0.1)


def test_ctrl_c_ends_a_test_at_once() -> None:
    """The process is gone long before the test would have ended, and did not crash."""
    program = (
        "import threading, time, signal, os\n"
        "from infer.measure import loadgen\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    loadgen.run_test('single-stream', lambda _: time.sleep(0.001), 60.0)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.returncode) == ("interrupted\n", 0), done.stderr
    assert time.monotonic() - start < 30


def test_the_command_labels_what_loadgen_found(net: Path) -> None:
    """Records say who asked, that it is unofficial, and what LoadGen thinks of each."""
    done = infer_command("bench", net, "--harness", "loadgen", "--seconds", "0.1", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["conditions"]["harness"].startswith("LoadGen 6")
    assert found["conditions"]["harness"].endswith("(unofficial)")
    assert found["series"][0]["validity"]
