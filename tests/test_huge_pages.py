"""Memory in huge pages: the same contents, at the same addresses, and nobody else's."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import infer
from infer import huge_pages
from infer.errors import DeviceError
from infer.huge_pages import HugePages, huge_pages_work
from tests.tiny import make_artifact
from tests.waiting import until

MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SIZE = 8 * 2**20


def huge_bytes() -> int:
    """What this process has in them."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages"))


def test_what_was_mapped_since_is_gathered_and_keeps_its_contents() -> None:
    """Where the system has none, nothing happens."""
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as before:
        before[:] = bytes(SIZE)
        pages = HugePages()
        with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as after:
            after[:] = values = np.random.default_rng(0).bytes(SIZE)
            had = huge_bytes()
            gathered = pages.gather()
            assert after[:] == values
            assert pages.gather() == gathered
            if not huge_pages_work():
                assert gathered == 0
                return
            # all of it but its ends, unless memory is in too many pieces; and what others mapped meanwhile
            assert gathered > 0
            if "always [" in MODE.read_text(encoding="ascii"):  # else it may be in them from the start
                assert 0 < huge_bytes() - had <= gathered


RANGES = st.lists(st.integers(0, 40), max_size=8, unique=True).map(
    lambda found: list(zip(*[iter(sorted(found))] * 2, strict=False))
)


@given(RANGES, RANGES)
def test_parts_that_were_there_before_are_left_out(
    ranges: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    """Address by address."""

    def addresses(each: list[tuple[int, int]]) -> set[int]:
        return {address for start, end in each for address in range(start, end)}

    found = list(huge_pages._without(ranges, others))
    assert addresses(found) == addresses(ranges) - addresses(others)
    assert all(start < end for start, end in found)


def test_a_session_answers_alike_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ready at once, and its thread ends by itself."""
    gather, gathered = HugePages.gather, []
    monkeypatch.setattr(HugePages, "gather", lambda self: gathered.append(gather(self)))
    path = make_artifact(tmp_path / "net.infer")
    x = {"x": np.ones((3, 10), np.float32)}
    with infer.load(path) as plain, infer.load(path, huge_pages=True) as session:
        assert session.plan.huge_pages == huge_pages_work()
        assert not plain.plan.huge_pages
        assert session.run(x)["logits"].tobytes() == plain.run(x)["logits"].tobytes()
        until(lambda: len(gathered) == huge_pages_work())
        until(lambda: not any(t.name == "infer-huge-pages" for t in threading.enumerate()))
        assert session.run(x)["logits"].tobytes() == plain.run(x)["logits"].tobytes()
        assert session.recipe().source.huge_pages is True


def test_where_there_are_none_the_plan_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer.planner.huge_pages_work", lambda: False)
    with infer.load(make_artifact(tmp_path / "net.infer"), huge_pages=True) as session:
        assert not session.plan.huge_pages
        assert "huge pages  off" in str(session.plan)
        assert any("no huge pages: this system gives none" in reason for reason in session.plan.reasons)
    monkeypatch.setattr(huge_pages, "huge_pages_work", lambda: False)
    assert HugePages().gather() == 0


def test_pages_of_many_mebibytes_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where small pages have 64 KiB, a huge one has 512 MiB: too much for a few weights."""
    size = tmp_path / "hpage_pmd_size"
    size.write_text(f"{512 * 2**20}\n", encoding="ascii")
    monkeypatch.setattr(huge_pages, "_SIZE_FILE", size)
    assert not huge_pages.huge_pages_work.__wrapped__()
    monkeypatch.setattr(huge_pages, "_SIZE_FILE", tmp_path / "absent")
    assert not huge_pages.huge_pages_work.__wrapped__()


def test_a_wish_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="huge_pages must be True, False or None"):
        infer.load(make_artifact(tmp_path / "net.infer"), huge_pages=1)
