"""What the machine can do at best: measured once, kept, and never an obstacle."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer.measure import peaks
from infer.measure.peaks import last_cache_bytes, machine_peaks
from infer.measure.record import Peaks


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "infer"


def measured(monkeypatch: pytest.MonkeyPatch, steady: float) -> list[int]:
    """Figures of a machine that is so steady, in the place of this one's; the list of what was asked."""
    asked: list[int] = []

    def measure(threads: int) -> tuple[Peaks, float]:
        asked.append(threads)
        return Peaks(threads, 100.0, 10.0, 2**25), steady

    monkeypatch.setattr(peaks, "_measure", measure)
    return asked


def test_figures_are_those_of_a_machine() -> None:
    """In the range that a machine of today can have, busy or not."""
    found, steady = peaks._measure(1)
    assert found.threads == 1
    assert 0.5 < found.gflops < 5_000
    assert 0.5 < found.gigabytes_per_s < 2_000
    assert 0 < steady <= 1


def test_peaks_are_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each number of threads; a damaged file is measured again."""
    asked = measured(monkeypatch, 0.95)
    assert machine_peaks(1) == machine_peaks(1) == Peaks(1, 100.0, 10.0, 2**25)
    assert machine_peaks(2).threads == 2
    assert asked == [1, 2]
    for file in cache.iterdir():
        file.write_text("{")
    machine_peaks(1)
    assert asked == [1, 2, 1]


def test_what_a_busy_machine_does_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used once, and measured again the next time."""
    asked = measured(monkeypatch, 0.5)
    machine_peaks(2)
    machine_peaks(2)
    assert asked == [2, 2]
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are given all the same."""
    (tmp_path / "infer").write_text("a file in the folder's place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = measured(monkeypatch, 0.95)
    assert machine_peaks(2) == machine_peaks(2)
    assert asked == [2, 2]


def test_the_last_cache_is_the_one_of_the_highest_level(tmp_path: Path) -> None:
    """As Linux lists them: two of the first level, one each of the second and third."""
    for index, (level, size) in enumerate([("1", "32K"), ("1", "32K"), ("2", "512K"), ("3", "32M")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert last_cache_bytes(tmp_path) == 32 * 2**20
    (tmp_path / "index3/size").write_text("unknown\n")
    assert last_cache_bytes(tmp_path) == 512 * 2**10
    assert last_cache_bytes(tmp_path / "missing") == 0
