"""Answers of `Session.run`: whose they are, and that repeated shapes change nothing about them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import infer
from infer.errors import FeedError
from tests.tiny import classifier, classify, identity, write

RUNS = 3
"""The first run is plain, the second binds buffers to the shapes, the third uses them."""


def test_an_answer_belongs_to_its_caller(tmp_path: Path) -> None:
    """Later runs change no earlier answer, and writing into an answer or a feed changes no later one."""
    session = infer.load(write(tmp_path, identity("float32")))
    kept, feeds = [], []
    for i in range(6):
        feed = np.full((2, 2), i, np.float32)
        answer = session.run({"x": feed})["y"]
        assert answer.flags.writeable
        assert not np.shares_memory(answer, feed)
        kept.append(answer)
        feeds.append(feed)
    assert [answer[0, 0] for answer in kept] == [0, 1, 2, 3, 4, 5]
    kept[5][...] = -1
    feeds[5][...] = -2
    assert session.run({"x": np.full((2, 2), 9, np.float32)})["y"].tolist() == [[9, 9], [9, 9]]
    assert [answer[0, 0] for answer in kept] == [0, 1, 2, 3, 4, -1]


def test_threads_share_a_session_without_a_bit_of_difference(tmp_path: Path) -> None:
    """8 threads × 200 runs, each with its own feeds of two shapes, answer as a lone thread does."""
    model = classifier()
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    rng = np.random.default_rng(1)
    feeds = [rng.standard_normal((1 + i % 2, 10)).astype(np.float32) for i in range(8)]
    with infer.load(path, num_threads=1) as session:
        alone = [session.run({"x": x})["logits"].tobytes() for x in feeds]
        for x, answer in zip(feeds, alone, strict=True):
            shown = np.frombuffer(answer, np.float32).reshape(len(x), 2)
            np.testing.assert_allclose(shown, classify(model, x), rtol=1e-5, atol=1e-5)

        def work(i: int) -> int:
            return sum(session.run({"x": feeds[i]})["logits"].tobytes() != alone[i] for _ in range(200))

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(8))) == [0] * 8


@pytest.mark.parametrize("dims", ["1, K", "1, N", "R, C"])
def test_output_shapes_that_follow_from_the_data_are_right_on_every_run(tmp_path: Path, dims: str) -> None:
    """NonZero answers as numpy does, run after run, even where the graph declares a wrong size."""
    graph = f"g (float[N] x) => (int64[{dims}] y) {{ y = NonZero(x) }}"
    rows = ([1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [1, 1])
    with infer.load(write(tmp_path, graph)) as session:
        for row in rows * 2:
            x = np.array(row, np.float32)
            assert session.run({"x": x})["y"].tolist() == np.array(np.nonzero(x)).tolist()


def test_values_the_graph_refuses_do_not_spoil_later_runs(tmp_path: Path) -> None:
    """An index out of range is a `BackendError` on every run, and good ones keep their answers."""
    graph = "g (int64[N] i) => (float[N] y) <float[3] t = {10.0, 20.0, 30.0}> { y = Gather(t, i) }"
    with infer.load(write(tmp_path, graph)) as session:
        for _ in range(4):
            assert session.run({"i": np.array([2, 0])})["y"].tolist() == [30.0, 10.0]
            with pytest.raises(infer.BackendError, match="out of data bounds"):
                session.run({"i": np.array([0, 3])})


def test_wanted_outputs_are_the_named_ones(tmp_path: Path) -> None:
    """Names, one name, or a repeated name select outputs; none and unknown ones are refused."""
    graph = "g (float[N] x) => (float[N] a, float[N] b) { a = Neg(x) b = Abs(x) }"
    x = np.array([-1.0, 2.0], np.float32)
    with infer.load(write(tmp_path, graph)) as session:
        for _ in range(RUNS):
            assert list(session.run({"x": x})) == ["a", "b"]
            assert {k: v.tolist() for k, v in session.run({"x": x}, ["b"]).items()} == {"b": [1, 2]}
            assert {k: v.tolist() for k, v in session.run({"x": x}, "a").items()} == {"a": [1, -2]}
            assert list(session.run({"x": x}, ["b", "a", "b"])) == ["b", "a"]
            with pytest.raises(FeedError, match="no output 'c'; the outputs are a, b"):
                session.run({"x": x}, ["a", "c"])
            with pytest.raises(FeedError, match="name some of a, b"):
                session.run({"x": x}, [])
