"""How much memory a session keeps and takes: the arena, what a large run leaves, and the largest feeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infer
from infer.backends.ort import _options, _Shrinking
from infer.guard import Feeds
from tests.tiny import identity, write

CHAIN = (
    "g (float[n, 1024] x) => (float[n, 1] y) {"
    " a = Mul(x, x) b = Softmax(a) c = Exp(b) d = Softmax(c) y = ReduceMax<axes = [1]>(d) }"
)
"""Whose values between are as large as its feeds, and whose output is small."""

RETAINED = """
import sys, psutil, numpy as np, infer
for times, options in eval(sys.argv[2]):
    with infer.load(sys.argv[1], num_threads=1, **options) as session:
        session.run({"x": np.ones((1, 1024), np.float32)})
        before = psutil.Process().memory_info().rss
        for _ in range(times):
            session.run({"x": np.ones((16384, 1024), np.float32)})  # 64 MiB
        for _ in range(9):
            session.run({"x": np.ones((1, 1024), np.float32)})
        print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def test_a_large_run_gives_its_memory_back(tmp_path: Path) -> None:
    """Of what it would keep without shrinking hardly anything stays, after one run or several in a row."""
    asked = [(1, {}), (3, {}), (1, {"arena": False}), (1, {"shrink_above_bytes": 2**40})]
    command = [sys.executable, "-c", RETAINED, write(tmp_path, CHAIN), repr(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    one, several, without, kept = map(float, done.stdout.split())
    assert kept > 100  # MiB
    assert max(one, several, without) < kept / 8


def test_large_runs_in_a_row_keep_what_they_need(tmp_path: Path) -> None:
    """Growing again takes time. The first gives back, since no other came before; the last of eight smaller
    ones does so for the others."""
    with infer.load(write(tmp_path, CHAIN)) as session:
        shrinking = _Shrinking(session.plan)
    small, large = ({"x": np.zeros((rows, 1024), np.float32)} for rows in (1, 8192))
    asked = [large, *[small] * 8, large, large, large, *[small] * 9, large]
    shrinks = [shrinking.run_options(Feeds(feeds)) is not None for feeds in asked]
    assert [at for at, shrink in enumerate(shrinks) if shrink] == [0, 9, 19, 21]


def test_all_runs_may_shrink(tmp_path: Path) -> None:
    """Also those whose feeds would be bound; answers are the same."""
    path = write(tmp_path, CHAIN)
    x = np.random.default_rng(0).standard_normal((3, 1024)).astype(np.float32)
    with infer.load(path) as usual, infer.load(path, shrink_above_bytes=0) as shrinking:
        for _ in range(3):
            np.testing.assert_array_equal(shrinking.run({"x": x})["y"], usual.run({"x": x})["y"])
        assert "given back after runs with more than 0 bytes" in str(shrinking.plan)
        assert "more than 16,777,216 bytes" in str(usual.plan)


def test_the_arena_may_be_off(tmp_path: Path) -> None:
    """ONNX Runtime is told so, and the plan says it."""
    path = write(tmp_path, CHAIN)
    with infer.load(path, arena=False) as without, infer.load(path) as usual:
        found = [_options(session.plan).enable_cpu_mem_arena for session in (without, usual)]
        assert found == [False, True]
        assert "arena       off" in str(without.plan)


@pytest.mark.parametrize(
    "options", [{"arena": "no"}, {"shrink_above_bytes": -1}, {"shrink_above_bytes": 1e6}]
)
def test_wishes_that_are_none_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """The error names the option."""
    with pytest.raises(infer.DeviceError, match=next(iter(options))):
        infer.load(write(tmp_path, CHAIN), **options)


def test_feeds_that_are_too_large_are_refused_by_name(tmp_path: Path) -> None:
    """Before they run; as large as may be is fine."""
    graph = "g (float[n, 4] x, float[n, 2] z) => (float[n, 6] y) { y = Concat<axis = 1>(x, z) }"
    with infer.load(write(tmp_path, graph), max_feed_bytes=24 * 10) as session:
        feeds = {"x": np.ones((10, 4), np.float32), "z": np.ones((10, 2), np.float32)}
        assert session.run(feeds)["y"].shape == (10, 6)
        feeds = {"x": np.ones((11, 4), np.float32), "z": np.ones((11, 2), np.float32)}
        said = (
            r"feeds have 264 bytes, of which input 'x' of shape \[11, 4\] has 176, .* takes 240 \(max_feed_"
        )
        for ask in (session.run, session, session.batcher.run, lambda f: session.submit(f).result(20)):
            with pytest.raises(infer.FeedError, match=said):
                ask(feeds)


def test_characters_of_strings_count(tmp_path: Path) -> None:
    """An array of strings is small itself."""
    with infer.load(write(tmp_path, identity("string")), max_feed_bytes=100) as session:
        session.run({"x": np.array([["short"]], object)})
        with pytest.raises(infer.FeedError, match="input 'x'"):
            session.run({"x": np.array([["long" * 100]], object)})


@pytest.mark.parametrize("limit", [-1, 1.5, True, "1 GB"])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, limit: Any) -> None:
    """The error names the option."""
    with pytest.raises(infer.InputError, match="max_feed_bytes must be an int"):
        infer.load(write(tmp_path, CHAIN), max_feed_bytes=limit)
