"""infer bench, as its users call it. What times are is not tested here, only what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infer.measure.record import Record, read_record
from infer.measure.statistics import Estimate
from tests.command import infer_command

QUICK = ("--seconds", "0.1", "--no-limits")


def test_candidates_stand_beside_each_other(net: Path) -> None:
    """An artifact and its own graph: a table for people, with names, percentiles and the ratio."""
    done = infer_command("bench", net, net / "graphs/fp32.onnx", *QUICK)
    assert done.code == 0
    assert "single-stream" in done.out
    assert "p50 ms" in done.out
    assert "net.infer: fp32 on onnxruntime, cpu" in done.out
    assert "fp32.onnx: onnx on onnxruntime, cpu" in done.out
    assert "×" in done.out
    assert "s left" in done.err


def test_the_record_is_one_json_document(net: Path, tmp_path: Path) -> None:
    """On stdout with --json, in a file with -o, the same; every point of a sweep is in it."""
    path = tmp_path / "record.json"
    done = infer_command("bench", net, "--sweep", "batch=1,3", "--json", "-o", path, *QUICK)
    assert done.code == 0
    assert done.err == ""
    printed = json.loads(done.out)
    assert printed["schema_version"] == 1
    record = read_record(path)
    assert [series.sizes for series in record.series] == [{"batch": 1}, {"batch": 3}]
    assert [series["samples"] for series in printed["series"]] == [1, 3]
    assert record.conditions.threads >= 1
    assert record.conditions.work_ms > 0
    assert {"infer-onnx", "onnxruntime", "numpy"} <= set(record.conditions.versions)


def test_a_sweep_of_threads_opens_candidates_again(net: Path) -> None:
    """Each number of threads is a point."""
    done = infer_command("bench", net, "--sweep", "threads=1,2", "--json", *QUICK)
    assert [series["sizes"] for series in json.loads(done.out)["series"]] == [
        {"threads": 1},
        {"threads": 2},
    ]


def test_the_original_can_be_a_candidate(source_file: Callable[[str], Path]) -> None:
    """A source is run in PyTorch, eagerly, as it would be converted, and must answer alike."""
    path = source_file(
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.layer = nn.Linear(10, 3)\n"
        "    def forward(self, x):\n"
        "        return {'y': self.layer(x)}\n"
        "def build():\n"
        "    return Net(), {'x': torch.ones(2, 10)}\n"
        "def other():\n"
        "    net = Net()\n"
        "    nn.init.zeros_(net.layer.weight)\n"
        "    return net, {'x': torch.ones(2, 10)}\n"
    )
    artifact = path.parent / "net.infer"
    assert infer_command("convert", f"{path}:build", "-o", artifact).code == 0
    done = infer_command("bench", artifact, f"{path}:build", "--json", *QUICK)
    assert done.code == 0
    found = json.loads(done.out)
    assert [entry["name"] for entry in found["candidates"]] == ["net.infer", "source.py:build"]
    assert found["candidates"][1]["described"].startswith("PyTorch 2")
    done = infer_command("bench", artifact, f"{path}:other", *QUICK)
    assert done.code == 1
    assert "left out: output 'y'" in done.out
    done = infer_command("bench", f"{path}:build", *QUICK)
    assert done.code == 0


def test_a_candidate_that_cannot_be_opened_is_left_out(net: Path, tmp_path: Path) -> None:
    """The others are measured, and the exit code says that not all were; if none opens, it is an error."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    done = infer_command("bench", net, broken, *QUICK)
    assert done.code == 1
    assert "broken.onnx" in done.out
    assert "is not an ONNX model" in done.out
    assert "p50 ms" in done.out
    done = infer_command("bench", broken, *QUICK)
    assert done.code == 1
    assert "Error: 'broken" not in done.err
    assert "is not an ONNX model" in done.err
    assert done.out == ""


def scaled(record: Record, factor: float) -> Record:
    """As if it had been so much slower."""

    def times(estimate: Estimate, by: float) -> Estimate:
        return Estimate(estimate.value * by, estimate.low * by, estimate.high * by)

    series = tuple(
        replace(
            each,
            latency_ms={name: times(value, factor) for name, value in each.latency_ms.items()},
            throughput=times(each.throughput, 1 / factor),
            medians_ms=tuple(factor * median for median in each.medians_ms),
        )
        for each in record.series
    )
    return replace(record, series=series)


def test_a_baseline_is_a_gate(net: Path, tmp_path: Path) -> None:
    """What was a hundred times faster once fails, what was a hundred times slower holds."""
    path = tmp_path / "record.json"
    assert infer_command("bench", net, "-o", path, *QUICK).code == 0
    record = read_record(path)
    scaled(record, 0.01).write(path)
    done = infer_command("bench", net, "--baseline", path, "--fail-if", "p50 > +10%", *QUICK)
    assert done.code == 1
    assert "p50 > +10%: net.infer, single-stream: +" in done.out
    assert "fails" in done.out
    scaled(record, 100).write(path)
    done = infer_command("bench", net, "--baseline", path, "--fail-if", "p50 > +10%", "--json", *QUICK)
    assert done.code == 0
    (change,) = json.loads(done.out)["changes"]
    assert (change["failed"], change["undecided"]) == (False, False)


def test_records_are_shown_and_compared(net: Path, tmp_path: Path) -> None:
    """Two records: each, and how the second differs from the first."""
    path, slower = tmp_path / "a.json", tmp_path / "b.json"
    infer_command("bench", net, "-o", path, *QUICK)
    scaled(read_record(path), 3).write(slower)
    done = infer_command("bench", path, slower)
    assert done.code == 0
    assert "time, now to then" in done.out
    assert "×3.00" in done.out
    assert "slower" in done.out
    assert len(json.loads(infer_command("bench", path, slower, "--json").out)["records"]) == 2
    assert infer_command("bench", path, net).code == 2


def test_limits_are_counted_from_the_graph(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work of 10-5-2 at each batch: two operations for each weight, and one for each number that is
    added or rectified; beside it the machine's peaks, and the part of the limit that was reached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ("--sweep", "batch=1,4", "--seconds", "0.1")
    found = json.loads(infer_command("bench", net, *arguments, "--json").out)
    peaks = found["conditions"]["peaks"][0]
    for series, batch in zip(found["series"], (1, 4), strict=True):
        limit = series["limit"]
        assert limit["uncounted"] == []
        assert 1e9 * limit["gflop"] >= batch * 2 * (10 * 5 + 5 * 2)
        assert 1e9 * limit["gflop"] <= batch * (2 * (10 * 5 + 5 * 2) + 3 * 7)
        assert limit["floor_ms"] == pytest.approx(1e3 * limit["gflop"] / peaks["gflops"])
        assert limit["fraction"] == pytest.approx(limit["floor_ms"] / series["latency_ms"]["p50"]["value"])
    assert "of the limit" in infer_command("bench", net, *arguments).out


def test_profiles_and_waterfalls_say_where_time_goes(net: Path) -> None:
    """By operator and module, which are those of the net; and by stage, for one input of the task."""
    done = infer_command("bench", net, "--profile", "--json", *QUICK)
    (profile,) = json.loads(done.out)["profiles"]
    assert sum(share["share"] for share in profile["operators"]) == pytest.approx(1.0)
    assert {"Gemm", "FusedGemm", "MatMul"} & {share["name"] for share in profile["operators"]}
    done = infer_command("bench", net, "--profile", *QUICK)
    assert "net.infer, time by operator" in done.out
    feeds = net.parent / "one.npz"
    np.savez(feeds, x=np.zeros((2, 10), np.float32))
    done = infer_command("bench", net, "--input", feeds, "--json", *QUICK)
    (fall,) = json.loads(done.out)["waterfalls"]
    assert {"copy", "compute"} <= set(fall["stages_ms"])


def test_cold_starts_are_processes_of_their_own(net: Path) -> None:
    """Import, load and first answer come in this order, and memory is that of a process."""
    found = json.loads(infer_command("bench", net, "--cold-start", "--json", *QUICK).out)
    (start,) = found["cold_starts"]
    assert 0 < start["imported_ms"] < start["loaded_ms"] < start["first_answer_ms"]
    assert start["steady_ms"] > 0
    assert 2**24 < start["peak_memory_bytes"] < 2**31


def test_feeds_may_be_given(net: Path, tmp_path: Path) -> None:
    """Arrays of the caller's own are what is asked."""
    feeds = tmp_path / "feeds.npz"
    np.savez(feeds, x=np.zeros((2, 10), np.float32))
    done = infer_command("bench", net, "--feeds", feeds, "--size", "batch=5", "--json", *QUICK)
    assert json.loads(done.out)["series"][0]["samples"] == 5
    np.savez(feeds, wrong=np.zeros((2, 10), np.float32))
    done = infer_command("bench", net, "--feeds", feeds, *QUICK)
    assert done.code == 1
    assert "wrong" in done.err + done.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--scenario", "fastest"), 1, "no scenario 'fastest'; choose from single-stream"),
        (("--scenario", "server"), 1, "needs a latency bound"),
        (("--scenario", "server", "--latency-bound", "0.00001"), 1, "the best reachable is"),
        (("--sweep", "batch"), 2, "is not DIM=N,N"),
        (("--sweep", "batch=0,1"), 2, "is not DIM=N,N"),
        (("--size", "batch=0"), 2, "is not DIM=N"),
        (("--size", "depth=3"), 1, "no dim 'depth' that may vary; there is batch"),
        (("--fail-if", "p99 > +10%"), 2, "add --baseline"),
        (("--fail-if", "p99 > 10", "--baseline", "x.json"), 1, "is not METRIC"),
        (("--baseline", "missing.json"), 1, "missing.json"),
        (("--feeds", "missing.npz"), 1, "missing.npz"),
        (("--device", "cuda:7"), 1, "this machine has only"),
    ],
)
def test_bad_input(net: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    """Each is refused with what was wrong and what there is."""
    done = infer_command("bench", net, *arguments, *QUICK)
    assert done.code == code
    assert said in " ".join((done.err + done.out).split())
    assert "Traceback" not in done.err
