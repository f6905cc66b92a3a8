"""pytest-benchmark: what stands between a caller and the graph, piece by piece.

    make bench         # measure, and compare with the newest saved run
    make bench-save    # measure, and save the run in bench/results/hot-paths

Each benchmark asserts the answer it timed. A saved run is of one machine; compare on the same one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import infer
from bench.zoo import efficientnet_lite0, minilm
from infer import schema
from infer.guard import Guard
from infer.measure.queries import Call
from infer.signature import Signature, TensorSpec
from infer.tasks.pictures import open_picture
from infer.tasks.pixels import Step, apply_steps

TOKENS = tuple(
    TensorSpec(name, "int64", ("batch", "sequence"))
    for name in ("input_ids", "attention_mask", "token_type_ids")
)
PICTURES = (TensorSpec("pixel_values", "float32", ("batch", 3, 224, 224)),)


@pytest.mark.parametrize(("specs", "shape"), [(TOKENS, (8, 128)), (PICTURES, (1, 3, 224, 224))])
def test_guard(benchmark: Any, specs: tuple[TensorSpec, ...], shape: tuple[int, ...]) -> None:
    """Feeds that need no change, of shapes seen before."""
    feeds = {spec.name: np.ones(shape, spec.numpy_dtype) for spec in specs}
    admitted = benchmark(Guard(Signature(specs, ())).admit, feeds)
    assert all(admitted[name] is array for name, array in feeds.items())


def test_harness(benchmark: Any) -> None:
    """500 queries that do nothing: what measuring itself takes, and how much of it a latency holds."""
    latencies_ms = benchmark(Call(lambda: None).turn, 500)
    assert latencies_ms.shape == (500,)
    benchmark.extra_info["charged_ns"] = float(np.median(latencies_ms)) * 1e6


def test_guard_of_fortran_order(benchmark: Any) -> None:
    """A picture that must be copied to be contiguous."""
    picture = np.asfortranarray(np.ones((1, 3, 224, 224), np.float32))
    admitted = benchmark(Guard(Signature(PICTURES, ())).admit, {"pixel_values": picture})
    np.testing.assert_array_equal(admitted["pixel_values"], picture)


@pytest.mark.parametrize("count", [1, 64])
def test_tokenization(benchmark: Any, session: infer.Session, count: int) -> None:
    """Sentences to feeds, sorted by length and padded."""
    sentences = [minilm.SENTENCES[i % len(minilm.SENTENCES)] for i in range(count)]
    task: Any = session.task
    parts = benchmark(lambda: list(task.parts(sentences)))
    assert sum(len(part.places) for part in parts) == count


def test_preprocessing_of_a_photo(benchmark: Any) -> None:
    """Resize, crop and normalize, as EfficientNet's own preprocessing says."""
    steps = [schema.decode(Step, step, "a step") for step in efficientnet_lite0.task().spec["steps"]]
    picture = open_picture(efficientnet_lite0.samples()[0])
    pixels = benchmark(apply_steps, picture, steps)
    assert pixels.shape == (3, 224, 224)
    assert -1.1 < pixels.min() < pixels.max() < 1.1


def test_a_sentence_to_its_vector(benchmark: Any, session: infer.Session) -> None:
    """The whole task, graph included."""
    vector = benchmark(session, minilm.SENTENCES[0])
    np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-5)
