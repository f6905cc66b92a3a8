"""Many callers with sentences of mixed lengths: the batcher beside what services do without one.

    python -m bench.batching [ARTIFACT] [--callers N] [--texts N] [--rounds N]

Each caller asks its next sentence when the last one is answered. In every round the ways below take turns,
in an order drawn anew, on the same sentences:

    one by one     each request runs by itself, one after the other
    in threads     each request runs by itself, in its caller's thread, beside the others
    by count       what waits, at most `--count` requests in the order they came, padded to the longest, as
                   serving frameworks do
    by count, 5 ms the same, and a run waits up to 5 ms for more
    infer          `session.batcher`

Answers are held to those of one by one. The table says how many sentences a second were answered, over
"one by one" in the same round, the latency of single requests, and how much of the work was padding.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np

import converters
import infer
from bench.zoo import minilm
from infer.options import BatchOptions
from infer.session import Session

Ask = Callable[[str], Any]


@dataclass
class Way:
    """A way to answer, and what it took so far: sentences a second and latencies, by round."""

    name: str
    opened: Callable[[Session], Any]
    rates: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    cost: int = 0
    padding: int = 0


class ByCount:
    """Batches of what waits, in the order it came, as long as the longest."""

    def __init__(self, session: Session, most: int, delay_s: float) -> None:
        self._session, self._most, self._delay_s = session, most, delay_s
        self._queue: SimpleQueue[tuple[str, Future[Any]] | None] = SimpleQueue()
        self.cost, self.padding = 0, 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __call__(self, text: str) -> Any:
        future: Future[Any] = Future()
        self._queue.put((text, future))
        return future.result()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            taken, end = [first], time.monotonic() + self._delay_s
            while len(taken) < self._most:
                try:
                    left = end - time.monotonic()
                    found = self._queue.get(block=left > 0, timeout=max(left, 0))
                except Exception:
                    break
                if found is None:
                    self._queue.put(None)
                    break
                taken.append(found)
            for (_, future), vector in zip(taken, self._vectors([text for text, _ in taken]), strict=True):
                future.set_result(vector)

    def _vectors(self, texts: Sequence[str]) -> Any:
        task: Any = self._session.task
        encodings = [task.encoder.tokenizer.encode(text) for text in texts]
        longest = max(len(encoding.ids) for encoding in encodings)
        feeds = {}
        for name, kind in task.spec.tokenizer.inputs.items():
            array = np.zeros((len(texts), longest), np.int64)
            for row, encoding in zip(array, encodings, strict=True):
                row[: len(encoding.ids)] = getattr(encoding, kind)
            feeds[name] = array
        self.cost += len(texts) * longest
        self.padding += len(texts) * longest - sum(len(encoding.ids) for encoding in encodings)
        return self._session.run(feeds)[task.spec.output]


@contextmanager
def _one_by_one(session: Session) -> Iterator[tuple[Ask, Any]]:
    turn = threading.Lock()

    def ask(text: str) -> Any:
        with turn:
            return session(text)

    yield ask, None


@contextmanager
def _in_threads(session: Session) -> Iterator[tuple[Ask, Any]]:
    yield session, None


def _by_count(most: int, delay_s: float) -> Callable[[Session], Any]:
    @contextmanager
    def opened(session: Session) -> Iterator[tuple[Ask, Any]]:
        batches = ByCount(session, most, delay_s)
        try:
            yield batches, batches
        finally:
            batches.close()

    return opened


@contextmanager
def _ours(session: Session) -> Iterator[tuple[Ask, Any]]:
    before = session.batcher.stats()

    class Since:
        cost, padding = 0, 0

    since = Since()
    yield session.batcher, since
    after = session.batcher.stats()
    since.cost, since.padding = after.cost - before.cost, after.padding - before.padding


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("artifact", nargs="?", type=Path)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=32)
    arguments = parser.parse_args()
    texts = list(minilm.calibration())
    random.Random(0).shuffle(texts)
    texts = texts[: arguments.texts]
    ways = [
        Way("one by one", _one_by_one),
        Way("in threads", _in_threads),
        Way("by count", _by_count(arguments.count, 0.0)),
        Way("by count, 5 ms", _by_count(arguments.count, 0.005)),
        Way("infer", _ours),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.artifact or Path(folder) / "minilm.infer"
        if arguments.artifact is None:
            converters.convert(minilm.folder(), path)
        options = BatchOptions(max_waiting=max(arguments.callers, 128))
        with infer.load(path, spinning=False, batching=options) as session:
            expected = np.stack([session(text) for text in texts])
            for number in range(arguments.rounds + 1):
                for way in random.sample(ways, len(ways)):
                    _round(way, session, texts, expected, arguments.callers, counts=number > 0)
            encoder = cast(Any, session.task).encoder
            tokens = [len(encoder.tokenizer.encode(text).ids) for text in texts]
    print(f"{len(texts)} sentences of {min(tokens)} to {max(tokens)} tokens, {arguments.callers} callers")
    print(f"{'':<16}{'sentences/s':>12}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}{'padding':>9}")
    for way in ways:
        ratio = np.median(np.array(way.rates) / np.array(ways[0].rates))
        p50, p99 = np.percentile(way.latencies_ms, [50, 99])
        padding = way.padding / way.cost if way.cost else 0.0
        print(
            f"{way.name:<16}{np.median(way.rates):>12.1f}{ratio:>7.2f}×{p50:>9.1f}{p99:>9.1f}{padding:>9.1%}"
        )


def _round(
    way: Way, session: Session, texts: list[str], expected: Any, callers: int, *, counts: bool
) -> None:
    """All sentences once. Raises if an answer differs."""
    latencies: list[float] = []

    def asked(text: str) -> Any:
        start = time.perf_counter()
        vector = ask(text)
        latencies.append(1e3 * (time.perf_counter() - start))
        return vector

    with way.opened(session) as (ask, counted):
        with ThreadPoolExecutor(callers) as pool:
            start = time.perf_counter()
            vectors = list(pool.map(asked, texts))
            taken = time.perf_counter() - start
    np.testing.assert_allclose(np.stack(vectors), expected, atol=2e-5)
    if counts:
        way.rates.append(len(texts) / taken)
        way.latencies_ms += latencies
        if counted is not None:
            way.cost, way.padding = way.cost + counted.cost, way.padding + counted.padding


if __name__ == "__main__":
    main()
