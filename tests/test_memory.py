"""How much memory a session keeps and takes: the arena, what a large run leaves, and the largest feeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infer
from infer.backends.ort import _options
from infer.batching.joining import Layout
from infer.options import BatchOptions
from tests.tiny import identity, make_artifact, write

CHAIN = (
    "g (float[n, 1024] x) => (float[n, 1] y) {"
    " a = Mul(x, x) b = Softmax(a) c = Exp(b) d = Softmax(c) y = ReduceMax<axes = [1]>(d) }"
)
"""Whose values between are as large as its feeds, and whose output is small."""

RETAINED = """
import sys, psutil, numpy as np, infer
path, options = sys.argv[1], eval(sys.argv[2])
with infer.load(path, num_threads=1, **options) as session:
    session.run({"x": np.ones((1, 1024), np.float32)})
    before = psutil.Process().memory_info().rss
    session.run({"x": np.ones((16384, 1024), np.float32)})  # 64 MiB
    session.run({"x": np.ones((1, 1024), np.float32)})
    print(psutil.Process().memory_info().rss - before)
"""


def retained_mib(path: Path, **options: Any) -> float:
    """What a process of its own still holds after one run on 64 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", RETAINED, path, repr(options)], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 2**20


def test_a_large_run_gives_its_memory_back(tmp_path: Path) -> None:
    """By default, of what it took without shrinking, hardly anything stays."""
    path = write(tmp_path, CHAIN)
    kept = retained_mib(path, shrink_above_bytes=2**40)
    assert kept > 100
    assert retained_mib(path) < kept / 8
    assert retained_mib(path, arena=False) < kept / 8


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


def test_batches_keep_to_the_limit(tmp_path: Path) -> None:
    """Requests that fit alone, but not together, run one after the other; none is refused."""
    row = {"x": np.ones((1, 10), np.float32)}
    path = make_artifact(tmp_path / "net.infer")
    sizes: dict[int | None, set[int]] = {}
    for limit in (None, 4 * 40):  # four rows
        with infer.load(path, max_feed_bytes=limit, batching=BatchOptions(max_delay_s=0.05)) as session:
            assert isinstance(session.batcher.layout, Layout)
            seen = sizes[limit] = set()
            run = session.run

            def noted(feeds: Any, outputs: Any = None, run: Any = run, seen: set[int] = seen) -> Any:
                seen.add(len(feeds["x"]))
                return run(feeds, outputs)

            session.run = noted  # type: ignore[method-assign]
            for _ in range(5):
                for future in [session.submit(row) for _ in range(16)]:
                    assert future.result(20)["logits"].shape == (1, 2)
            assert session.batcher.stats().alone == 0
    assert max(sizes[None]) > 4
    assert max(sizes[160]) == 4
