"""pytest-benchmark: what `Session.run` costs on a net too small to hide it, beside raw ONNX Runtime.

python -m bench.test_session_overhead       # the two in turns, prints the ratio
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import converters
import infer
from bench.zoo.feed_forward import FeedForward
from infer.measure.queries import Call
from infer.measure.rounds import take_turns
from infer.measure.statistics import paired_ratio

X = np.random.default_rng(0).standard_normal((1, 10)).astype(np.float32)


def make(folder: Path) -> tuple[infer.Session, Any]:
    """The 10-5-2 net as a session, and as a raw ONNX Runtime session with the same threads."""
    torch.manual_seed(0)
    path = folder / "net.infer"
    converters.convert(FeedForward().eval(), path, example_inputs={"x": torch.randn(4, 10)})
    session = infer.load(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = session.plan.num_threads
    raw = onnxruntime.InferenceSession(
        path / "graphs/fp32.onnx", options, providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run({"x": X})["logits"], raw.run(None, {"x": X})[0])
    return session, raw


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[infer.Session, Any]]:
    session, raw = make(tmp_path_factory.mktemp("overhead"))
    with session:
        yield session, raw


def test_session_run(benchmark: Any, sessions: tuple[infer.Session, Any]) -> None:
    """All guards on."""
    result = benchmark(sessions[0].run, {"x": X})
    np.testing.assert_array_equal(result["logits"], sessions[1].run(None, {"x": X})[0])


def test_raw_onnxruntime(benchmark: Any, sessions: tuple[infer.Session, Any]) -> None:
    """What a user would call instead."""
    result = benchmark(sessions[1].run, None, {"x": X})
    np.testing.assert_array_equal(result[0], sessions[0].run({"x": X})["logits"])


def main() -> None:
    """Interleaved, because a machine drifts."""
    with tempfile.TemporaryDirectory() as folder:
        session, raw = make(Path(folder))
        with session:
            measured = take_turns(
                {
                    "raw": Call(lambda: raw.run(None, {"x": X})),
                    "infer": Call(lambda: session.run({"x": X})),
                },
                10.0,
            )
    medians = {name: times.medians for name, times in measured.times.items()}
    for name, each in medians.items():
        ratio = paired_ratio(each, medians["raw"])
        interval = f"{ratio.low:.3f}–{ratio.high:.3f}"
        print(f"{name:<6} {np.median(each) * 1e3:6.2f} µs  ×{ratio.value:.3f} ({interval})")


if __name__ == "__main__":
    main()
