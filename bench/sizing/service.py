"""How long runs take by their rows: measured for ways to use a node's cores, kept as JSON.

A way is so many workers, processes with a session each, times so many threads. All workers of a way run at
once, so that what they take from each other is in the times.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import infer
from bench.sizing.simulation import Service
from infer.feeds import example_feeds, resized
from infer.session import open_artifact

ROWS = (1, 2, 4, 8, 16, 32)
_LONGEST_S = 120


@dataclass(frozen=True)
class Way:
    """`seconds[i]` holds what runs of `rows[i]` rows took, of all workers."""

    workers: int
    threads: int
    rows: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __str__(self) -> str:
        def some(count: int, what: str) -> str:
            return f"{count} {what}{'' if count == 1 else 's'}"

        return f"{some(self.workers, 'worker')} of {some(self.threads, 'thread')}"

    def median_s(self, rows: int) -> float:
        """Of a run of `rows`, between those that were measured in a straight line."""
        medians = [float(np.median(each)) for each in self.seconds]
        if rows <= self.rows[-1]:
            return float(np.interp(rows, self.rows, medians))
        return medians[-1] * rows / self.rows[-1]

    @property
    def most_rows(self) -> int:
        """Rows of the largest run that pays, as infer's batcher judges: the first size whose double takes
        more than 0.95 of two runs."""
        for rows, twice in pairwise(self.rows):
            if self.median_s(twice) / twice > 0.95 * self.median_s(rows) / rows:
                return rows
        return self.rows[-1]

    @property
    def peak(self) -> float:
        """Rows a second of all workers, when there is always enough to do for such runs."""
        return self.workers * self.most_rows / self.median_s(self.most_rows)

    def service(self, rng: np.random.Generator) -> Service:
        """Draws: the median, as much longer or shorter as one of the runs of the nearest size was."""
        medians = [0.0, *(self.median_s(rows) for rows in range(1, self.rows[-1] + 1))]
        ratios = [np.array(each) / np.median(each) for each in self.seconds]
        nearest = [int(np.abs(np.array(self.rows) - rows).argmin()) for rows in range(len(medians))]
        drawn = [iter(_forever(each, rng)) for each in ratios]

        def seconds(rows: int) -> float:
            return medians[rows] * next(drawn[nearest[rows]])

        return seconds


@dataclass(frozen=True)
class Measured:
    """Ways of one model on one machine, and under which conditions they were measured."""

    conditions: dict[str, str]
    ways: tuple[Way, ...]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Measured:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ways = [
            Way(way["workers"], way["threads"], tuple(way["rows"]), tuple(map(tuple, way["seconds"])))
            for way in data["ways"]
        ]
        return Measured(data["conditions"], tuple(ways))


def measure(
    path: Path, ways: Sequence[tuple[int, int]], rounds: int, runs: int, *, processor_time: bool = False
) -> Measured:
    """Time the model at `path`. In each of `rounds`, every way starts its workers anew, in an order drawn
    anew, and each worker does `runs` runs of every size.

    `processor_time`, for workers of one thread only, leaves out the time in which others had the core: what
    is left is about what an idle machine would take. Raises `ValueError` for more threads.
    """
    if processor_time and any(threads > 1 for _, threads in ways):
        raise ValueError("the processor time of several threads is not how long they take together")
    rng = np.random.default_rng(0)
    found: dict[tuple[int, int], list[list[float]]] = {way: [[] for _ in ROWS] for way in ways}
    had = [1.0]
    for _ in range(rounds):
        for place in rng.permutation(len(ways)):
            way = ways[place]
            for times, share in _together(path, *way, runs, processor_time):
                for kept, new in zip(found[way], times, strict=True):
                    kept += new
                if way[1] == 1:  # of several threads, some wait for others
                    had.append(share)
    machine, artifact = infer.this_machine(), open_artifact(path)
    conditions = {
        "model": artifact.manifest.name,
        "feeds": ", ".join(f"{name} {array.shape[1:]}" for name, array in example_feeds(artifact).items()),
        "machine": f"{machine.cores} cores of {machine.cpu}, {platform.system()}",
        "versions": f"Python {platform.python_version()}, onnxruntime {version('onnxruntime')}",
        "runs": f"{rounds} rounds of {runs} runs a worker and size, spinning off; workers of one thread had"
        f" their core {min(had):.0%} of the time, or more"
        f"{', and only that is counted: the machine was busy' if processor_time else ''}",
    }
    return Measured(
        conditions,
        tuple(Way(*way, ROWS, tuple(tuple(each) for each in found[way])) for way in ways),
    )


def _together(
    path: Path, workers: int, threads: int, runs: int, processor_time: bool
) -> Iterator[tuple[list[list[float]], float]]:
    """The times of each worker, by size, and the part of them in which it had a processor."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(workers), context.Queue()
    started = [
        context.Process(target=_work, args=(str(path), threads, runs, processor_time, ready, answers))
        for _ in range(workers)
    ]
    for process in started:
        process.start()
    for _ in started:
        yield answers.get(timeout=_LONGEST_S)  # or a worker has failed, and said why
    for process in started:
        process.join()


def _work(path: str, threads: int, runs: int, processor_time: bool, ready: Any, answers: Any) -> None:
    """A worker: each size begins when all workers are there."""
    found: list[list[float]] = []
    wall_s = busy_s = 0.0
    with infer.load(path, num_threads=threads, spinning=False) as session:
        feeds = example_feeds(session.artifact)
        for rows in ROWS:
            batch = resized(session.signature, feeds, {"batch": rows})
            session.run(batch)
            ready.wait(_LONGEST_S)
            times = []
            for _ in range(runs):
                start, busy = time.perf_counter(), time.process_time()
                session.run(batch)
                wall, busy = time.perf_counter() - start, time.process_time() - busy
                wall_s, busy_s = wall_s + wall, busy_s + busy
                times.append(round(busy if processor_time else wall, 6))
            found.append(times)
            ready.wait(_LONGEST_S)
    answers.put((found, busy_s / wall_s))


def _forever(values: Any, rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.choice(values, 4096).tolist()
