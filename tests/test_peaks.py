"""The machine's peaks are real, measured once, and measured again when what was kept is no good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infer.errors import BackendError
from infer.measure import peaks
from infer.measure.peaks import last_cache_bytes, machine_peaks
from infer.measure.record import Peaks

KEPT = Peaks(threads=1, gflops=123.0, gigabytes_per_s=45.0, cache_bytes=67)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "infer"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of threads that were measured; measuring gives `KEPT` at once."""
    found: list[int] = []

    def measure(threads: int) -> Peaks:
        found.append(threads)
        return replace(KEPT, threads=threads)

    monkeypatch.setattr(peaks, "_measure", measure)
    return found


def test_peaks_are_those_of_this_machine(cache: Path) -> None:
    """Within a factor of three of a product and a sum timed here, which catches any wrong unit or count."""
    found = machine_peaks(1)
    a = np.ones((512, 512), np.float32)
    many = np.ones(2**25, np.float32)

    def fastest(call: object) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            call()  # type: ignore[operator]
            times.append(time.perf_counter() - start)
        return min(times)

    gflops = 2 * 512**3 / fastest(lambda: a @ a) / 1e9
    # the product here may have all cores
    assert gflops / 3 / (os.cpu_count() or 1) < found.gflops < 3 * gflops
    gigabytes = many.nbytes / fastest(many.max) / 1e9
    assert gigabytes / 3 < found.gigabytes_per_s < 3 * gigabytes
    assert found.threads == 1
    assert [json.loads(file.read_text())["gflops"] for file in cache.iterdir()] == [found.gflops]


def test_peaks_are_measured_once_for_each_number_of_threads(cache: Path, measured: list[int]) -> None:
    """The second time they are read."""
    assert [machine_peaks(n).threads for n in (1, 2, 1, 2)] == [1, 2, 1, 2]
    assert measured == [1, 2]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x00",
        '{"threads": 1}',
        '{"threads": 2, "gflops": 1, "gigabytes_per_s": 1, "cache_bytes": 1}',
        '{"threads": 1, "gflops": 0, "gigabytes_per_s": 1, "cache_bytes": 1}',
        '{"threads": 1, "gflops": NaN, "gigabytes_per_s": 1, "cache_bytes": 1}',
    ],
)
def test_a_damaged_file_is_measured_again(cache: Path, measured: list[int], text: str) -> None:
    """Empty, cut, of another shape, of other threads, or with numbers no machine has."""
    machine_peaks(1)
    (file,) = cache.iterdir()
    file.write_text(text)
    assert machine_peaks(1) == KEPT
    assert measured == [1, 1]
    assert machine_peaks(1) == KEPT
    assert measured == [1, 1]


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[int]
) -> None:
    """Here it is a file; nothing is kept."""
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert machine_peaks(1) == machine_peaks(1) == KEPT
    assert measured == [1, 1]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_relative_cache_folder_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[int]
) -> None:
    """As the XDG specification says; ~/.cache is."""
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    machine_peaks(1)
    assert len(list((tmp_path / ".cache" / "infer").iterdir())) == 1
    assert not (tmp_path / "here").exists()


def test_a_measurement_that_fails_says_what_was_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps nothing."""
    monkeypatch.setattr(peaks, "_PROGRAM", "raise SystemExit('no memory')")
    with pytest.raises(BackendError, match="no memory"):
        machine_peaks(1)
    assert not cache.exists()


def test_measuring_needs_neither_a_backend_nor_torch() -> None:
    """numpy alone."""
    code = (
        "import sys, infer.measure.peaks\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "import infer" not in peaks._PROGRAM


def test_the_last_cache_is_the_farthest_one_with_data(tmp_path: Path) -> None:
    """Sizes as Linux writes them."""
    for index, (level, kind, size) in enumerate(
        [(1, "Data", "32K"), (1, "Instruction", "64K"), (2, "Unified", "512K"), (3, "Unified", "32768K")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    assert last_cache_bytes(tmp_path) == 32 * 2**20
    (tmp_path / "index3" / "size").write_text("unknown\n")
    assert last_cache_bytes(tmp_path) == 512 * 2**10
    assert last_cache_bytes(tmp_path / "absent") == 0
