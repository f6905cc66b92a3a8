"""Where the time of one input's answer goes: what it takes to make feeds of it, and a result of outputs.

A task is made anew around a run, a tokenizer and an iterator of feeds that say when they begin and end.
Sessions and tasks that are not watched have nothing of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from infer.measure.record import Waterfall
from infer.session import Session
from infer.signature import Array
from infer.tasks import Run, Task

ROUNDS = 15
_WARM_UP = 3  # buffers are bound to a shape when it comes for the third time


class Stages:
    """A clock that runs for one stage at a time."""

    def __init__(self) -> None:
        self._spent_ns: dict[str, int] = {}
        self._stage = ""
        self._since_ns = 0

    def start(self, stage: str) -> None:
        """Begin anew, with `stage`."""
        self._spent_ns = {}
        self._stage = stage
        self._since_ns = time.perf_counter_ns()

    def switch(self, stage: str) -> str:
        """From now on the time is that of `stage`; gives the stage before."""
        now = time.perf_counter_ns()
        before = self._stage
        self._spent_ns[before] = self._spent_ns.get(before, 0) + now - self._since_ns
        self._stage, self._since_ns = stage, now
        return before

    def stop(self) -> dict[str, float]:
        """Milliseconds by stage, in the order in which they first ended."""
        self.switch("")
        return {stage: spent / 1e6 for stage, spent in self._spent_ns.items()}


class WatchedTask:
    """A task whose time is kept by stage.

    `load` makes the task on the run it is given, which is `run` with its time kept: "compute", unless `run`
    itself says to `stages` what it does. What comes before it is "encode", or "tokenize" and "pad" where
    there is a tokenizer; what comes after it "decode". A task that runs several times takes the sums.
    """

    def __init__(
        self, load: Callable[[Run], Task], run: Run, stages: Stages | None = None, first: str = "compute"
    ) -> None:
        self._stages = stages or Stages()
        self._run, self._first = run, first
        self._task = cast(Any, load(self._watched_run))
        self._before = "encode"
        if (encoder := getattr(self._task, "encoder", None)) is not None:
            encoder.tokenizer = _Tokenizer(encoder.tokenizer, self._stages)
            self._before = "pad"
        if (parts := getattr(self._task, "parts", None)) is not None:
            self._task.parts = lambda inputs: self._watched_parts(parts(inputs))

    def __call__(self, input: Any) -> dict[str, float]:
        """Milliseconds by stage of the answer to one input. Raises as the task does."""
        self._stages.start(self._before)
        self._task(input)
        return self._stages.stop()

    def _watched_run(self, feeds: Mapping[str, object]) -> dict[str, Array]:
        self._stages.switch(self._first)
        try:
            return self._run(feeds)
        finally:
            self._stages.switch("decode")

    def _watched_parts(self, parts: Iterator[Any]) -> Iterator[Any]:
        """They are made while they are asked for, between runs."""
        while True:
            after = self._stages.switch(self._before)
            try:
                part = next(parts, None)
            finally:
                self._stages.switch(after)
            if part is None:
                return
            yield part


class _Tokenizer:
    """The calls of a tokenizer that a `TextEncoder` makes once it is ready."""

    def __init__(self, tokenizer: Any, stages: Stages) -> None:
        def told(call: Callable[..., Any]) -> Callable[..., Any]:
            def tell(*arguments: Any, **options: Any) -> Any:
                before = stages.switch("tokenize")
                try:
                    return call(*arguments, **options)
                finally:
                    stages.switch(before)

            return tell

        self.encode = told(tokenizer.encode)
        self.encode_batch = told(tokenizer.encode_batch)
        self.encode_batch_fast = told(tokenizer.encode_batch_fast)


_ORDER = ("tokenize", "pad", "encode", "copy", "compute", "decode")


def waterfall(session: Session, input: Any, candidate: str, rounds: int = ROUNDS) -> Waterfall:
    """Answer one input of the session's task, `rounds` times, and say where the time went.

    "copy" is the guard of the feeds, and copies into and out of buffers that stay bound to the graph;
    "compute" is the backend. Raises `InputError` and what `session.run` raises.
    """
    stages = Stages()
    run = session.watched(stages.switch).run
    task = WatchedTask(session.task_on, run, stages, "copy")
    for _ in range(_WARM_UP):
        task(input)
    found = [task(input) for _ in range(rounds)]
    stages_ms = {
        stage: statistics.median(spent.get(stage, 0.0) for spent in found)
        for stage in _ORDER
        if any(stage in spent for spent in found)
    }
    return Waterfall(candidate, " ".join(repr(input).split())[:60], stages_ms, rounds)
