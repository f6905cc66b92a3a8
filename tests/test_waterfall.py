"""Each millisecond of an answer belongs to a stage: before the graph runs, in it, or after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
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

ENCODE_MS, DECODE_MS = 20, 10


class Clock:
    """Time that passes only where a test says so, so that a busy machine changes nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = 0
        monkeypatch.setattr(
            "infer.measure.waterfall.time", SimpleNamespace(perf_counter_ns=lambda: self.now_ms * 1_000_000)
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_stages_of_one_input_are_the_whole(net: Path, clock: Clock) -> None:
    """What takes 20 ms before the graph and 10 ms after it is found there, and the sum is the answer's
    own time."""

    def encode(inputs: Sequence[float]) -> dict[str, Array]:
        clock.now_ms += ENCODE_MS
        return {"x": np.full((len(inputs), 10), inputs[0], np.float32)}

    def decode(outputs: Mapping[str, Array], inputs: Sequence[float]) -> Sequence[Array]:
        clock.now_ms += DECODE_MS
        return list(outputs["logits"])

    with infer.load(net, encode=encode, decode=decode) as session:
        found = waterfall(session, 1.0, "net", rounds=9)
        start_ms = clock.now_ms
        session(1.0)
        took_ms = clock.now_ms - start_ms
    assert found.candidate == "net"
    assert found.input == "1.0"
    assert found.rounds == 9
    assert list(found.stages_ms) == ["encode", "copy", "compute", "decode"]
    assert found.stages_ms["encode"] == ENCODE_MS
    assert found.stages_ms["decode"] == DECODE_MS
    assert sum(found.stages_ms.values()) == took_ms


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


def test_a_task_that_runs_several_times_takes_the_sums(clock: Clock) -> None:
    """A recording is cut into windows, and each is run; what is between two runs is not lost."""
    calls: list[int] = []

    class Windows:
        def __init__(self, run: Any) -> None:
            self.run = run

        def parts(self, inputs: Sequence[int]) -> Any:
            for _ in inputs:
                clock.now_ms += 10
                yield {"x": np.ones(1)}

        def __call__(self, count: int) -> None:
            for feeds in self.parts(range(count)):
                self.run(feeds)
                clock.now_ms += 5

    def run(feeds: Mapping[str, object]) -> dict[str, Array]:
        calls.append(1)
        clock.now_ms += 20
        return {}

    task = WatchedTask(Windows, run)  # type: ignore[arg-type]
    found = task(3)
    assert len(calls) == 3
    assert found == {"encode": 3 * 10, "compute": 3 * 20, "decode": 3 * 5}
    assert list(found) == ["encode", "compute", "decode"]
    assert sum(found.values()) == clock.now_ms


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
    with infer.load(net, encode=lambda inputs: 5, decode=lambda outputs, inputs: []) as session:
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
