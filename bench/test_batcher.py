"""pytest-benchmark: what the batcher adds to a run, and what choosing a batch takes.

`make bench` and `make bench-save`, as for the hot paths.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import infer
from bench.zoo import minilm
from infer.batching.joining import Layout, layout_of
from infer.batching.pace import Pace
from infer.batching.waiting import Asked, Request, Waiting
from infer.guard import Guard
from infer.signature import Signature, TensorSpec
from infer.tasks import Padding

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKENS = Signature(
    tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in INPUTS),
    (TensorSpec("vectors", "float32", ("batch", 384)),),
)


@pytest.fixture
def layout() -> Layout:
    found = layout_of(TOKENS, Padding(dict.fromkeys(INPUTS, 0)))
    assert isinstance(found, Layout)
    return found


def _requests(layout: Layout, count: int) -> list[Request]:
    """Of 8 to 120 tokens."""
    lengths = np.random.default_rng(0).integers(8, 121, count)
    found = []
    for length in lengths.tolist():
        feeds = Guard(TOKENS).admit({name: np.ones((1, length), np.int64) for name in INPUTS})
        found.append(Request(feeds, ("vectors",), Asked(None, ""), layout.kind(feeds), 1, length))
    return found


def test_a_lone_sentence(benchmark: Any, session: infer.Session) -> None:
    """Through the batcher, beside `test_a_sentence_to_its_vector` of the hot paths."""
    vector = benchmark(session.batcher, minilm.SENTENCES[0])
    np.testing.assert_allclose(vector, session(minilm.SENTENCES[0]), atol=2e-5)


def test_a_lone_future(benchmark: Any, session: infer.Session) -> None:
    """The same by `submit`, which takes another thread."""
    vector = benchmark(lambda: session.submit(minilm.SENTENCES[0]).result())
    np.testing.assert_allclose(vector, session(minilm.SENTENCES[0]), atol=2e-5)


def test_sixteen_callers(benchmark: Any, session: infer.Session) -> None:
    """64 sentences of theirs."""
    texts = minilm.SENTENCES * 16
    expected = np.stack([session(text) for text in texts])
    with ThreadPoolExecutor(16) as pool:
        vectors = benchmark(lambda: list(pool.map(session.batcher, texts)))
    np.testing.assert_allclose(np.stack(vectors), expected, atol=2e-5)


def test_choosing_what_runs_next(benchmark: Any, layout: Layout) -> None:
    """Of 128 requests that wait; what is learned of runs lets a dozen of them run together."""
    pace = Pace()
    for size in range(3, 14):
        for _ in range(4):
            pace.learn(2**size, 0.002 + 2**size * 1e-5)

    def filled() -> tuple[tuple[Waiting], dict[str, Any]]:
        waiting = Waiting(layout, pace, 64)
        for request in _requests(layout, 128):
            waiting.add(request)
        return (waiting,), {}

    together = benchmark.pedantic(lambda waiting: waiting.take(), setup=filled, rounds=50)
    assert 8 < len(together) < 64


def test_joining_and_splitting(benchmark: Any, layout: Layout) -> None:
    """32 sentences of several lengths, without the run."""
    parts = [request.feeds for request in _requests(layout, 32)]
    vectors = np.random.default_rng(0).standard_normal((32, 384)).astype(np.float32)
    answers = benchmark(lambda: (layout.join(parts), layout.split({"vectors": vectors}, parts))[1])
    for row, answer in zip(vectors, answers, strict=True):
        np.testing.assert_array_equal(answer["vectors"][0], row)
