"""Each millisecond of an answer belongs to a stage: before the graph runs, in it, or after it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import converters
import infer
from infer.errors import FeedError, InputError
from infer.measure.waterfall import Stages, WatchedTask, waterfall
from infer.signature import Array
from tests.text_models import LONG, bert_folder

ENCODE_S, DECODE_S = 0.02, 0.01


def encode(inputs: Sequence[float]) -> dict[str, Array]:
    time.sleep(ENCODE_S)
    return {"x": np.full((len(inputs), 10), inputs[0], np.float32)}


def decode(outputs: Mapping[str, Array], inputs: Sequence[float]) -> Sequence[Array]:
    time.sleep(DECODE_S)
    return list(outputs["logits"])


def test_the_stages_of_one_input_are_the_whole(net: Path) -> None:
    """What takes 20 ms before the graph and 10 ms after it is found there, and the sum is the answer's
    own time."""
    with infer.load(net, encode=encode, decode=decode) as session:
        found = waterfall(session, 1.0, "net", rounds=9)
        took = []
        for _ in range(9):
            start = time.perf_counter()
            session(1.0)
            took.append(1e3 * (time.perf_counter() - start))
    assert found.candidate == "net"
    assert found.input == "1.0"
    assert found.rounds == 9
    assert list(found.stages_ms) == ["encode", "copy", "compute", "decode"]
    assert found.stages_ms["encode"] >= 1e3 * ENCODE_S
    assert found.stages_ms["decode"] >= 1e3 * DECODE_S
    assert sum(found.stages_ms.values()) == pytest.approx(statistics.median(took), rel=0.05)


def test_text_is_tokenized_and_padded(tmp_path: Path) -> None:
    """A text has a tokenizer; it takes longer for a longer one."""
    folder = bert_folder(tmp_path / "bert", "SequenceClassification")
    converters.convert(folder, tmp_path / "bert.infer")
    with infer.load(tmp_path / "bert.infer") as session:
        expected = session(LONG)
        long = waterfall(session, LONG * 20, "bert")
        short = waterfall(session, "ok", "bert")
        assert session(LONG) == expected
    assert list(long.stages_ms) == ["tokenize", "pad", "copy", "compute", "decode"]
    assert all(spent > 0 for spent in long.stages_ms.values())
    assert long.stages_ms["tokenize"] > 3 * short.stages_ms["tokenize"]
    assert len(long.input) <= 60


class Slow(nn.Module):
    """Some milliseconds of products."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_the_graph_s_time_is_compute(tmp_path: Path) -> None:
    """With large feeds, which are not bound, and with small ones, which are."""
    converters.convert(Slow().eval(), tmp_path / "net.infer", example_inputs={"x": torch.randn(2, 512)})
    with infer.load(tmp_path / "net.infer") as session:
        for rows in (512, 8):
            found = waterfall(session, {"x": np.ones((rows, 512), np.float32)}, "net").stages_ms
            assert found["compute"] > 0.5 * sum(found.values())


def test_a_task_that_runs_several_times_takes_the_sums() -> None:
    """A recording is cut into windows, and each is run; what is between two runs is not lost."""
    calls: list[int] = []

    class Windows:
        def __init__(self, run: Any) -> None:
            self.run = run

        def parts(self, inputs: Sequence[int]) -> Any:
            for _ in inputs:
                time.sleep(0.01)
                yield {"x": np.ones(1)}

        def __call__(self, count: int) -> None:
            for feeds in self.parts(range(count)):
                self.run(feeds)
                time.sleep(0.005)

    def run(feeds: Mapping[str, object]) -> dict[str, Array]:
        calls.append(1)
        time.sleep(0.02)
        return {}

    task = WatchedTask(Windows, run)  # type: ignore[arg-type]
    start = time.perf_counter()
    found = task(3)
    took_ms = 1e3 * (time.perf_counter() - start)
    assert len(calls) == 3
    assert list(found) == ["encode", "compute", "decode"]
    for stage, once_ms in (("encode", 10), ("compute", 20), ("decode", 5)):
        assert found[stage] >= 3 * once_ms
    assert sum(found.values()) == pytest.approx(took_ms, rel=0.01)


def test_a_session_that_was_watched_is_as_it_was(net: Path) -> None:
    """Watching makes a task and an executable of its own; closing the session ends both."""
    with infer.load(net) as session:
        feeds = {"x": np.ones((2, 10), np.float32)}
        expected = session.run(feeds)["logits"]
        executable, task = session._executable, session.task
        stages = Stages()
        watched = session.watched(stages.switch)
        for _ in range(4):  # bound from the third on
            np.testing.assert_array_equal(watched.run(feeds)["logits"], expected)
        waterfall(session, feeds, "net")
        assert session._executable is executable
        assert session.task is task
        np.testing.assert_array_equal(session.run(feeds)["logits"], expected)


def test_what_the_task_or_the_guard_refuses_is_refused(net: Path) -> None:
    """With the errors of the session itself."""
    with infer.load(net) as session:
        with pytest.raises(FeedError, match="x"):
            waterfall(session, {"x": np.ones((2, 9), np.float32)}, "net")
    with infer.load(net, encode=lambda inputs: 5, decode=decode) as session:
        with pytest.raises(InputError, match="encode"):
            waterfall(session, 1.0, "net")


def test_pictures_are_encoded(tmp_path: Path) -> None:
    """Decoding, resizing and scaling come before the graph."""
    from PIL import Image

    from bench.zoo.random_weights import imagenet_task

    class Net(nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": pixel_values.mean((2, 3)) @ torch.ones(3, 1000)}

    Image.new("RGB", (1200, 900), "red").save(tmp_path / "red.png")
    converters.convert(
        Net().eval(),
        tmp_path / "net.infer",
        example_inputs={"pixel_values": torch.randn(2, 3, 32, 32)},
        task=imagenet_task(32),
    )
    with infer.load(tmp_path / "net.infer") as session:
        found = waterfall(session, tmp_path / "red.png", "net").stages_ms
    assert list(found) == ["encode", "copy", "compute", "decode"]
    assert found["encode"] > 0.5 * sum(found.values())
