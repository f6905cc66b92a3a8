"""Requests of many callers, answered together: fairly, and each as if it were alone."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infer
from infer.backends.ort import OrtExecutable
from infer.batching import Batcher
from infer.batching.joining import Layout, layout_of
from infer.batching.pace import Pace
from infer.batching.waiting import Asked, Request, Waiting
from infer.errors import (
    BackendError,
    DeadlineError,
    FeedError,
    InputError,
    OverloadedError,
    SessionClosedError,
)
from infer.guard import Feeds, Guard
from infer.options import BatchOptions
from infer.signature import Array, Range, Signature, TensorSpec
from infer.tasks import Padding, Run
from tests.tiny import edit_manifest, make_artifact
from tests.waiting import WAIT_S, until

PADDING = Padding({"ids": -1})
TOKENS = Signature(
    (TensorSpec("ids", "int64", ("batch", "length")),),
    (
        TensorSpec("each", "int64", ("batch", "length")),
        TensorSpec("sum", "int64", ("batch",)),
    ),
)


class Served:
    """A session that doubles each id, sums those that are no padding, and can be held up."""

    def __init__(self, signature: Signature = TOKENS) -> None:
        self.signature = signature
        self.guard = Guard(signature)
        self.runs: list[Array] = []
        self.threads: list[str] = []
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Semaphore(0)

    def admit(self, feeds: Mapping[str, object]) -> Feeds:
        return self.guard.admit(feeds)

    def wanted(self, outputs: Sequence[str] | None) -> tuple[str, ...]:
        return tuple(outputs or (spec.name for spec in self.signature.outputs))

    def run(self, feeds: Mapping[str, object], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        ids = np.asarray(feeds["ids"])
        self.runs.append(ids)
        self.threads.append(threading.current_thread().name)
        self.begun.release()
        assert self.free.wait(WAIT_S)
        if (ids == 13).any():
            raise BackendError("13 brings bad luck")
        answer = {"each": 2 * ids, "sum": np.where(ids < 0, 0, ids).sum(axis=1)}
        return {name: answer[name] for name in self.wanted(outputs)}

    def task_on(self, run: Run) -> Any:
        return lambda ids: run({"ids": np.array([ids], np.int64)})["sum"].tolist()[0]


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def batcher(served: Served) -> Iterator[Batcher]:
    with _opened(served) as opened:
        yield opened


@contextmanager
def _opened(
    served: Served,
    options: BatchOptions = BatchOptions(),
    seconds: Callable[[int], float] = lambda cost: 900.0,
    streams: int = 1,
) -> Iterator[Batcher]:
    """A batcher that was taught how many seconds runs take: a quarter of an hour, whatever is in them."""
    layout = layout_of(served.signature, PADDING)
    assert isinstance(layout, Layout)
    found = Batcher(served, layout, options, streams=streams)
    for pace in {found._pace, found._crowded_pace}:
        for size in range(14):
            for _ in range(5):
                pace.learn(2**size, seconds(2**size))
    try:
        yield found
    finally:
        served.free.set()
        found.close()


class Held:
    """While it lasts, a first request runs, and what comes after waits."""

    def __init__(self, served: Served, batcher: Batcher) -> None:
        self.served, self.batcher = served, batcher

    def __enter__(self) -> None:
        self.served.free.clear()
        self.first = self.batcher.submit([0])
        assert self.served.begun.acquire(timeout=WAIT_S)

    def __exit__(self, *exc: object) -> None:
        self.served.free.set()
        self.first.result(WAIT_S)


def _queued(batcher: Batcher, count: int) -> None:
    until(lambda: len(batcher._waiting) == count)


def _submit(batcher: Batcher, *inputs: Sequence[int], **options: Any) -> list[Future[Any]]:
    """One after the other, so that they wait in this order."""
    before, futures = len(batcher._waiting), []
    for number, each in enumerate(inputs, 1):
        futures.append(batcher.submit(list(each), **options))
        _queued(batcher, before + number)
    return futures


def test_what_comes_meanwhile_runs_together(served: Served, batcher: Batcher) -> None:
    """Rows of three lengths in one run, each with the answer that it has alone, without padding."""
    with Held(served, batcher):
        futures = _submit(batcher, [1, 2], [3], [4, 5, 6])
    assert [future.result(WAIT_S) for future in futures] == [3, 3, 15]
    assert [ids.tolist() for ids in served.runs[1:]] == [[[1, 2, -1], [3, -1, -1], [4, 5, 6]]]
    stats = batcher.stats()
    assert (stats.runs, stats.rows, stats.cost, stats.padding) == (2, 4, 10, 3)


def test_padding_is_taken_off_the_outputs(served: Served, batcher: Batcher) -> None:
    """`each` has a value for every id of its own request, in an array that nobody shares."""
    with Held(served, batcher), ThreadPoolExecutor(2) as pool:
        rows = [np.array([[1, 2, 3], [4, 5, 6]]), np.array([[7]])]
        futures = [pool.submit(batcher.run, {"ids": row}) for row in rows]
        _queued(batcher, 2)
        served.free.set()
        answers = [future.result(WAIT_S) for future in futures]
    assert len(served.runs) == 2
    for row, answer in zip(rows, answers, strict=True):
        np.testing.assert_array_equal(answer["each"], 2 * row)
        assert answer["each"].base is None


def test_a_lone_request_runs_at_once_in_its_own_thread(served: Served, batcher: Batcher) -> None:
    """No other thread takes part, so it costs next to nothing."""
    assert batcher([1, 2]) == 3
    assert served.threads == [threading.current_thread().name]


def test_a_lone_request_does_without_what_waiting_takes(
    served: Served, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event and no kind, in both ways to ask; what it cost is learned all the same."""

    def refused(*_: object) -> None:
        raise AssertionError("nothing waits, and nothing joins")

    monkeypatch.setattr("infer.batching.Request", refused)
    monkeypatch.setattr(Layout, "kind", refused)
    assert batcher([1, 2]) == 3
    assert batcher.submit([1, 2, 3]).result(WAIT_S) == 6
    assert batcher.run({"ids": np.array([[1], [2]])})["sum"].tolist() == [1, 2]
    stats = batcher.stats()
    assert (stats.runs, stats.rows, stats.cost) == (3, 4, 7)


def test_time_in_the_queue_is_counted(served: Served, batcher: Batcher) -> None:
    """That of both requests that wait while another runs, and none of a lone one."""
    assert batcher([1]) == 1
    assert batcher.stats().waited_s == 0
    start = time.monotonic()
    with Held(served, batcher):
        futures = _submit(batcher, [1], [2])
        time.sleep(0.05)
    assert [future.result(WAIT_S) for future in futures] == [1, 2]
    assert 0.1 <= batcher.stats().waited_s <= 2 * (time.monotonic() - start)


def test_a_bad_request_fails_alone(served: Served, batcher: Batcher) -> None:
    """Of a batch of eight with one that the graph refuses, seven are answered."""
    with Held(served, batcher):
        futures = _submit(batcher, *([[n, n] for n in (10, 11, 12, 13, 14, 15, 16, 17)]))
    for number, future in zip(range(10, 18), futures, strict=True):
        if number == 13:
            with pytest.raises(BackendError, match="bad luck"):
                future.result(WAIT_S)
        else:
            assert future.result(WAIT_S) == 2 * number
    assert batcher.stats().alone == 8


@pytest.mark.parametrize("method", ["join", "split"])
def test_the_loop_survives_any_fault(
    served: Served, batcher: Batcher, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Rows that cannot be joined or split run by themselves, and the next ones are served."""

    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Layout, method, broken)
    with Held(served, batcher):
        futures = _submit(batcher, [1], [2])
    assert [future.result(WAIT_S) for future in futures] == [1, 2]
    monkeypatch.undo()
    with Held(served, batcher):
        futures = _submit(batcher, [3], [4])
    assert [future.result(WAIT_S) for future in futures] == [3, 4]


def test_a_queue_that_fails_is_emptied(
    served: Served, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait hear what happened, none of them for ever, and the next ones are served."""

    def broken(_: Waiting) -> list[Request]:
        raise RuntimeError("a fault of ours")

    with Held(served, batcher):
        monkeypatch.setattr(Waiting, "take", broken)
        futures = _submit(batcher, [1], [2])
    for future in futures:
        with pytest.raises(RuntimeError, match="a fault of ours"):
            future.result(WAIT_S)
    monkeypatch.undo()
    with Held(served, batcher):
        futures = _submit(batcher, [3])
    assert futures[0].result(WAIT_S) == 3


def test_an_input_that_is_none_is_refused_before_it_waits(served: Served, batcher: Batcher) -> None:
    """Feeds are looked at when they come: no batch ever has them."""
    with Held(served, batcher), pytest.raises(FeedError, match="ids"):
        batcher.run({"ids": np.zeros((1, 2), np.float32)})
    assert len(served.runs) == 1


def test_too_many_are_refused_at_once() -> None:
    """Of 64 that come while one runs, 15 may wait; the others hear so without waiting."""
    served = Served()
    with _opened(served, BatchOptions(max_waiting=16)) as batcher:
        with Held(served, batcher):
            start, refused, futures = time.monotonic(), 0, []
            for _ in range(64):
                try:
                    futures.append(batcher.submit([1]))
                except OverloadedError:
                    refused += 1
            assert (refused, len(futures)) == (49, 15)
            assert time.monotonic() - start < WAIT_S  # none of them waited for the one that runs
        assert [future.result(WAIT_S) for future in futures] == [1] * 15
        assert batcher.stats().refused == 49
        assert batcher.submit([2]).result(WAIT_S) == 2


def test_work_for_which_no_thread_starts_is_refused(
    served: Served, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not run later either, though the pool keeps it, and its place is free again, once."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Held(served, batcher):
        monkeypatch.setattr(threading.Thread, "start", refused)
        for _ in range(3):
            with pytest.raises(OverloadedError, match="can't start new thread"):
                batcher.submit([5])
        monkeypatch.undo()
    assert batcher.submit([6]).result(WAIT_S) == 6
    assert [ids.tolist() for ids in served.runs] == [[[0]], [[6]]]
    until(lambda: not batcher._callers._work_queue.qsize())
    assert not batcher._inside


def test_work_that_comes_while_the_batcher_closes_is_told(
    served: Served, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was open when it was asked."""
    entered = Batcher._enter

    def enter(self: Batcher, asked: Asked) -> None:
        entered(self, asked)
        self.close()

    monkeypatch.setattr(Batcher, "_enter", enter)
    with pytest.raises(SessionClosedError, match="the session is closed"):
        batcher.submit([1])


def test_what_is_late_is_never_run(served: Served, batcher: Batcher) -> None:
    """Its caller hears so at the deadline, while another's run still goes on."""
    with Held(served, batcher):
        late = batcher.submit([5], timeout_s=0.05)
        with pytest.raises(DeadlineError):
            late.result(WAIT_S)
        with pytest.raises(DeadlineError):
            batcher([6], timeout_s=0.05)
        _queued(batcher, 0)
    assert batcher.submit([7]).result(WAIT_S) == 7
    assert [ids.tolist() for ids in served.runs] == [[[0]], [[7]]]
    assert batcher.stats().dropped == 2


def test_a_caller_is_answered_at_the_deadline_while_its_run_goes_on(
    served: Served, batcher: Batcher
) -> None:
    """The run cannot be stopped; its caller need not wait for it, and nothing else runs meanwhile."""
    served.free.clear()
    late = batcher.submit([5], timeout_s=0.05)
    with pytest.raises(DeadlineError):
        late.result(WAIT_S)
    other = batcher.submit([6])
    _queued(batcher, 1)
    assert len(served.runs) == 1
    served.free.set()
    assert other.result(WAIT_S) == 6


def test_a_lone_caller_with_time_to_spare_runs_in_its_own_thread(served: Served) -> None:
    """Waking another one takes longer than a small run. One in a hurry has it, so as to hear in time."""
    with _opened(served, seconds=lambda cost: 1.0) as batcher:
        assert batcher.submit([5], timeout_s=60).result(WAIT_S) == 5
        assert batcher.submit([6], timeout_s=9).result(WAIT_S) == 6
        assert [name.partition("_")[0] for name in served.threads] == ["infer-caller", "infer-batcher"]


def test_a_run_that_takes_longer_than_any_before_is_late_all_the_same(served: Served) -> None:
    """Where it runs in its caller's thread: the answer is of no use any more."""
    with _opened(served, seconds=lambda cost: 0.001) as batcher:
        served.free.clear()
        late = batcher.submit([5], timeout_s=0.05)
        assert served.begun.acquire(timeout=WAIT_S)
        time.sleep(0.1)
        served.free.set()
        with pytest.raises(DeadlineError):
            late.result(WAIT_S)


def test_an_answer_that_comes_too_late_is_none(served: Served, batcher: Batcher) -> None:
    """Whatever it was that took so long: reading results from outputs, for instance."""

    def work(task: Any, run: Any) -> object:
        result = task([1, 2])
        time.sleep(0.2)
        return result

    with pytest.raises(DeadlineError):
        batcher.submit_work(work, timeout_s=0.1).result(WAIT_S)
    assert batcher.submit_work(work, timeout_s=WAIT_S).result(WAIT_S) == 3


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e12, 10**400], ids=["inf", "1e12", "no float"])
def test_any_time_may_be_given(served: Served, batcher: Batcher, timeout_s: float) -> None:
    """More than a wait can take is no limit, in a lone run and in the queue."""
    assert batcher([1], timeout_s=timeout_s) == 1
    with Held(served, batcher):
        futures = _submit(batcher, [2], [3], timeout_s=timeout_s)
    assert [future.result(WAIT_S) for future in futures] == [2, 3]


def test_what_is_cancelled_is_never_run(served: Served, batcher: Batcher) -> None:
    """A future that waits can be cancelled, and its row is in no run."""
    with Held(served, batcher):
        gone, stays = _submit(batcher, [5], [6])
        assert gone.cancel()
    assert stays.result(WAIT_S) == 6
    with pytest.raises(CancelledError):
        gone.result(WAIT_S)
    assert [ids.tolist() for ids in served.runs] == [[[0]], [[6]]]
    assert batcher.stats().dropped == 1


def test_a_callers_own_work_is_batched_and_cancelled(served: Served, batcher: Batcher) -> None:
    """Its runs, which name their outputs, join others'; a result is what it returns, an error its own."""

    def own(number: int) -> Callable[..., object]:
        def work(task: Any, run: Any) -> object:
            return number, run({"ids": np.array([[number]])}, ["sum"])

        return work

    with Held(served, batcher):
        futures = []
        for waiting, number in enumerate((1, 2, 3), 1):
            futures.append(batcher.submit_work(own(number)))
            _queued(batcher, waiting)
        assert futures[1].cancel()
    assert futures[0].result(WAIT_S) == (1, {"sum": np.array([1])})
    assert futures[2].result(WAIT_S) == (3, {"sum": np.array([3])})
    assert [ids.tolist() for ids in served.runs[1:]] == [[[1], [3]]]
    assert batcher.submit_work(lambda task, run: task([4, 5])).result(WAIT_S) == 9
    with pytest.raises(ZeroDivisionError):
        batcher.submit_work(lambda task, run: 1 // 0).result(WAIT_S)


def test_asyncio_callers_wait_without_blocking_the_loop(served: Served, batcher: Batcher) -> None:
    """Many at once, of which one is cancelled and one has too little time."""

    async def ask() -> list[Any]:
        held = asyncio.create_task(batcher.arun([0]))
        await asyncio.to_thread(served.begun.acquire, timeout=WAIT_S)
        asked = [asyncio.create_task(batcher.arun([n])) for n in (1, 2, 3)]
        asked.append(asyncio.create_task(batcher.arun([4], timeout_s=0.05)))
        await asyncio.sleep(0.2)
        asked[1].cancel()
        await asyncio.sleep(0)
        served.free.set()
        return [await held, *await asyncio.gather(*asked, return_exceptions=True)]

    served.free.clear()
    held, one, two, three, four = asyncio.run(ask())
    assert (held, one, three) == (0, 1, 3)
    assert isinstance(two, asyncio.CancelledError)
    assert isinstance(four, DeadlineError)
    assert sorted(np.concatenate([ids.ravel() for ids in served.runs]).tolist()) == [0, 1, 3]


def test_callers_get_equal_shares(served: Served) -> None:
    """One with fifty requests in the queue does not hold up one that comes with its first."""
    with _opened(served, BatchOptions(max_rows=5)) as batcher:
        with Held(served, batcher):
            many = _submit(batcher, *[[n] for n in range(100, 150)], caller="greedy")
            (one,) = _submit(batcher, [1], caller="modest")
        one.result(WAIT_S)
        for future in many:
            future.result(WAIT_S)
        runs = [ids.ravel().tolist() for ids in served.runs]
        assert next(number for number, run in enumerate(runs) if 1 in run) <= 2
        assert [n for run in runs[1:] for n in run if n >= 100] == list(range(100, 150))


def test_callers_that_are_gone_are_forgotten() -> None:
    """A service may have any number of them, and its queue may never be empty."""
    pace = Pace()
    waiting = Waiting(None, pace, 8)
    feeds = Guard(TOKENS).admit({"ids": np.ones((1, 1), np.int64)})
    for number in range(1000):
        waiting.add(Request(feeds, ("sum",), Asked(None, f"{number}")))
        if number > 3:
            waiting.take()
    assert len(waiting) == 4
    assert len(waiting._next) < 20


@pytest.mark.parametrize(("lengths", "expected"), [([2] * 8, 4), ([4, 2, 2, 2], 2), ([9, 2], 1)])
def test_a_batch_has_no_more_bytes_than_a_run_may(lengths: list[int], expected: int) -> None:
    """64 of them: four rows of two ids, or two of four, padding too; one that is larger runs alone."""
    pace = Pace()
    for size in range(14):
        for _ in range(5):
            pace.learn(2**size, 900.0)
    layout = layout_of(TOKENS, PADDING)
    assert isinstance(layout, Layout)
    for most_bytes, count in ((None, len(lengths)), (64, expected)):
        waiting = Waiting(layout, pace, 64, most_bytes)
        for length in lengths:
            feeds = Guard(TOKENS).admit({"ids": np.ones((1, length), np.int64)})
            waiting.add(Request(feeds, ("sum",), Asked(None, ""), layout.kind(feeds), 1, length))
        assert len(waiting.take()) == count


def test_no_more_rows_run_together_than_the_graph_takes() -> None:
    """Four, for instance: else each run of several requests would fail, and they would run again alone."""
    served = Served(Signature(TOKENS.inputs, TOKENS.outputs, {"batch": Range(1, 4)}))
    with _opened(served) as batcher, ThreadPoolExecutor(3) as pool:
        with Held(served, batcher):
            rows = [np.full((count, 1), count) for count in (3, 3, 1)]
            futures = [pool.submit(batcher.run, {"ids": row}) for row in rows]
            _queued(batcher, 3)
        answers = [future.result(WAIT_S)["sum"] for future in futures]
    for row, answer in zip(rows, answers, strict=True):
        np.testing.assert_array_equal(answer, row[:, 0])
    assert sorted(len(run) for run in served.runs[1:]) == [3, 4]


def test_who_has_little_time_goes_first(served: Served) -> None:
    """A request whose deadline would pass during the next run is part of it."""
    with _opened(served, BatchOptions(max_rows=1)) as batcher:
        with Held(served, batcher):
            _submit(batcher, [1], [2], [3])
            (urgent,) = _submit(batcher, [4], timeout_s=600)
            (patient,) = _submit(batcher, [5], timeout_s=7200)
        assert urgent.result(WAIT_S) == 4
        patient.result(WAIT_S)
        assert [ids.tolist() for ids in served.runs[1:]] == [[[4]], [[1]], [[2]], [[3]], [[5]]]


def test_short_deadlines_buy_no_larger_share(served: Served) -> None:
    """One whose every request is urgent does not hold up one who waits without a deadline."""
    with _opened(served, BatchOptions(max_rows=1)) as batcher:
        with Held(served, batcher):
            hasty = _submit(batcher, *[[n] for n in range(100, 120)], caller="hasty", timeout_s=600)
            patient = _submit(batcher, [1], [2], caller="patient")
        for future in (*hasty, *patient):
            future.result(WAIT_S)
        ran = [ids.ravel().tolist() for ids in served.runs[1:]]
        assert ran.index([1]) <= 3
        assert ran.index([2]) <= 5


@pytest.mark.parametrize(
    ("seconds", "runs"),
    [(lambda cost: 0.03, [4, 4, 4]), (lambda cost: 0.004 * cost, [8, 4]), (lambda cost: 0.01, [12])],
)
def test_many_rows_run_in_portions_that_take_little_time(
    served: Served, seconds: Callable[[int], float], runs: list[int]
) -> None:
    """Where four rows take 30 ms no more run together; where they take 16 ms, twice as many do."""
    with _opened(served, BatchOptions(max_rows=4), seconds) as batcher:
        ids = np.arange(12)[:, None]
        np.testing.assert_array_equal(batcher.run({"ids": ids})["sum"], ids[:, 0])
    assert [len(run) for run in served.runs] == runs


def test_portions_grow_while_it_is_not_known_what_they_take(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each size is tried before twice as many rows run together."""
    monkeypatch.setattr("infer.batching._PORTION_S", WAIT_S)  # tests share cores
    batcher = Batcher(served, layout_of(served.signature, PADDING), BatchOptions(max_rows=4))
    try:
        ids = np.arange(20, 120)[:, None]
        np.testing.assert_array_equal(batcher.run({"ids": ids})["sum"], ids[:, 0])
        assert [len(run) for run in served.runs] == [4, 4, 8, 8, 16, 16, 32, 12]
    finally:
        batcher.close()


def test_others_get_their_turn_between_portions(served: Served) -> None:
    """Of a large request one portion waits at a time, behind those who came before it."""
    with _opened(served, BatchOptions(max_rows=4)) as batcher, ThreadPoolExecutor(1) as pool:
        with Held(served, batcher):
            large = pool.submit(batcher.run, {"ids": np.arange(1, 11)[:, None]}, caller="large")
            _queued(batcher, 1)
            _submit(batcher, [20, 20], [30, 30], caller="small")
        assert large.result(WAIT_S)["sum"].tolist() == list(range(1, 11))
    assert [len(run) for run in served.runs] == [1, 4, 2, 4, 2]


def test_a_portion_waits_for_no_others(served: Served) -> None:
    """It fills a run, so a delay would gather nothing."""
    options = BatchOptions(max_delay_s=60, max_rows=4)
    with _opened(served, options) as batcher, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(batcher.run, {"ids": np.ones((8, 1), np.int64)})
        assert answer.result(WAIT_S)["sum"].tolist() == [1] * 8


def test_no_portion_runs_when_the_time_is_over(served: Served) -> None:
    """The one that runs then is the last."""
    with _opened(served, BatchOptions(max_rows=4)) as batcher:
        served.free.clear()
        with pytest.raises(DeadlineError):
            batcher.run({"ids": np.ones((8, 1), np.int64)}, timeout_s=0.1)
        served.free.set()
        assert batcher([5]) == 5
    assert [len(run) for run in served.runs] == [4, 1]


def test_a_short_deadline_buys_no_more_than_a_run() -> None:
    """However much larger requests gain by running together."""
    pace = Pace()
    for size in range(14):
        for _ in range(5):
            pace.learn(2**size, 900.0)
    waiting = Waiting(None, pace, 2)
    for number in range(20):
        waiting.add(Request(Feeds(), ("sum",), Asked(600, "hasty" if number < 18 else "patient")))
    callers = [waiting.take()[0].asked.caller for _ in range(20)]
    assert callers.index("patient") <= 3


@pytest.mark.parametrize("cancelled", [False, True])
def test_requests_that_nobody_waits_for_are_dropped_together(cancelled: bool) -> None:
    """Thousands of them hold up the one that somebody waits for by no more than a look at each."""
    waiting, futures = Waiting(None, Pace(), 64), [Future[Any]() for _ in range(4000)]
    for future in futures:
        waiting.add(Request(Feeds(), ("sum",), Asked(None if cancelled else 1e-9, "", future)))
        assert not cancelled or future.cancel()
    waiting.add(wanted := Request(Feeds(), ("sum",), Asked(None, "")))
    late = waiting._requests[0]
    start = time.monotonic()
    assert waiting.take() == [wanted]
    assert time.monotonic() - start < 1.0
    assert len(waiting) == 0
    assert isinstance(late.error, CancelledError if cancelled else DeadlineError)


def test_rows_that_gain_nothing_together_run_apart(served: Served) -> None:
    """Where a run takes as long as its rows do one by one, batches would only make some of them wait."""
    with _opened(served, seconds=lambda cost: 1.0 * cost) as batcher:
        with Held(served, batcher):
            futures = _submit(batcher, [1, 1], [2, 2], [3, 3, 3, 3, 3, 3, 3])
        assert [future.result(WAIT_S) for future in futures] == [2, 4, 21]
        assert [len(ids) for ids in served.runs] == [1, 1, 1, 1]


def test_a_short_text_does_not_join_a_long_one(served: Served) -> None:
    """Padding it to 20 would take longer than a run of its own, which takes as much as ten ids before its
    first."""
    with _opened(served, seconds=lambda cost: 10.0 + cost) as batcher:
        with Held(served, batcher):
            futures = _submit(batcher, [1] * 20, [2, 2], [3] * 19, [4])
        assert [future.result(WAIT_S) for future in futures] == [20, 4, 57, 4]
        assert sorted(ids.shape for ids in served.runs[1:]) == [(2, 2), (2, 20)]


def test_a_delay_gathers_requests_while_nothing_runs(served: Served) -> None:
    """Two that come within it run together; it ends early when a run is full."""
    with _opened(served, BatchOptions(max_delay_s=0.5)) as batcher:
        futures = [batcher.submit([1]), batcher.submit([2])]
        assert [future.result(WAIT_S) for future in futures] == [1, 2]
        assert len(served.runs) == 1
        start = time.monotonic()
        assert batcher.submit([3] * 10_000).result(WAIT_S) == 30_000
        assert len(served.runs) == 2
        assert time.monotonic() - start < WAIT_S


def test_without_a_layout_each_request_runs_by_itself(served: Served) -> None:
    """One after the other, never two at once."""
    batcher = Batcher(served, "its rows depend on each other")
    try:
        with Held(served, batcher):
            futures = _submit(batcher, [1], [2, 3])
        assert [future.result(WAIT_S) for future in futures] == [1, 5]
        assert [ids.tolist() for ids in served.runs] == [[[0]], [[1]], [[2, 3]]]
    finally:
        batcher.close()


@pytest.mark.parametrize("streams", [1, 2])
def test_closing_fails_what_waits(served: Served, streams: int) -> None:
    """Nobody waits for an answer that never comes, what runs ends well, and what comes later is told."""
    with _opened(served, streams=streams) as batcher:
        served.free.clear()
        running = [batcher.submit([n]) for n in range(streams)]
        for _ in running:
            assert served.begun.acquire(timeout=WAIT_S)
        (waits,) = _submit(batcher, [9])
        closing = threading.Thread(target=batcher.close)
        closing.start()
        with pytest.raises(SessionClosedError):
            waits.result(WAIT_S)
        served.free.set()
        closing.join(WAIT_S)
        assert not closing.is_alive()
        assert [future.result(WAIT_S) for future in running] == list(range(streams))
        with pytest.raises(SessionClosedError):
            batcher.submit([2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (BatchOptions(max_delay_s=-1), "max_delay_s must be 0 to 60 seconds, but is -1"),
        (BatchOptions(max_delay_s=float("nan")), "max_delay_s"),
        (BatchOptions(max_rows=0), "max_rows must be an int from 1 to 65536, but is 0"),
        (BatchOptions(max_waiting=True), "max_waiting must be an int"),
    ],
)
def test_options_that_cannot_be_are_refused(served: Served, options: BatchOptions, said: str) -> None:
    """With the field, what it may be, and what it is."""
    with pytest.raises(InputError, match=said):
        Batcher(served, "alone", options)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), "soon"])
def test_a_time_that_is_none_is_refused(batcher: Batcher, timeout_s: Any) -> None:
    """Before anything waits."""
    with pytest.raises(InputError, match="timeout_s must be a number of seconds above 0"):
        batcher.submit([1], timeout_s=timeout_s)


@given(
    st.lists(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=3)),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_rows_come_back_as_they_went_in(parts: list[list[list[int]]], left: bool) -> None:
    """Joined, padded at either end, and split again."""
    layout = layout_of(TOKENS, Padding({"ids": -1}, left=left))
    assert isinstance(layout, Layout)
    feeds = [{"ids": np.array([(row * 6)[: len(part[0])] for row in part])} for part in parts]
    if not feeds:
        return
    joined = layout.join(feeds)["ids"]
    assert joined.shape == (sum(map(len, parts)), max(len(part[0]) for part in parts))
    outputs = {"each": joined, "sum": np.where(joined < 0, 0, joined).sum(axis=1)}
    for one, answer in zip(feeds, layout.split(outputs, feeds), strict=True):
        np.testing.assert_array_equal(answer["each"], one["ids"])
        np.testing.assert_array_equal(answer["sum"], one["ids"].sum(axis=1))


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ([("x", (1, 3))], [("y", ("n",))], "its batch is fixed at 1"),
        ([("x", ())], [("y", ())], "its inputs have no batch"),
        ([("x", ("n", 3)), ("t", ())], [("y", ("n",))], "'t: int64"),
        ([("x", ("n", 3))], [("y", (3,))], "'y: int64"),
        ([("x", ("n", "n"))], [("y", ("n",))], "'x: int64"),
    ],
)
def test_graphs_without_a_row_for_each_request_are_told(
    inputs: list[Any], outputs: list[Any], said: str
) -> None:
    """Their requests are never mixed."""
    found = layout_of(
        Signature(
            tuple(TensorSpec(name, "int64", dims) for name, dims in inputs),
            tuple(TensorSpec(name, "int64", dims) for name, dims in outputs),
        ),
        None,
    )
    assert isinstance(found, str)
    assert said in found


def test_an_output_that_varies_in_an_unknown_way_forbids_padding() -> None:
    """Its padding could not be taken off."""
    outputs = (TensorSpec("y", "int64", ("batch", "halves")),)
    found = layout_of(Signature(TOKENS.inputs, outputs), PADDING)
    assert isinstance(found, Layout)
    assert found.length == ""


def test_a_pace_stops_where_more_gains_nothing() -> None:
    """Runs take 10 ms and 1 ms for each row, up to 32 rows; beyond that twice as long."""
    pace = Pace()
    rows = 1
    for _ in range(200):
        pace.learn(rows, 0.010 + rows * (0.001 if rows <= 32 else 0.002))
        rows = max(1, pace.enough)
    assert 31 <= pace.enough <= 63
    assert pace.seconds(16) == pytest.approx(0.026, rel=0.5)


# --- several runs at once


def test_as_many_runs_as_streams_go_on_at_once(served: Served) -> None:
    """Each in its caller's own thread; what comes then waits, and runs together."""
    with _opened(served, streams=2) as batcher, ThreadPoolExecutor(2) as pool:
        served.free.clear()
        lone = [pool.submit(batcher, [n]) for n in (1, 2)]
        for _ in lone:
            assert served.begun.acquire(timeout=WAIT_S)
        futures = _submit(batcher, [3], [4], [5])
        assert len(served.runs) == 2
        served.free.set()
        assert [future.result(WAIT_S) for future in (*lone, *futures)] == [1, 2, 3, 4, 5]
    assert [len(ids) for ids in served.runs] == [1, 1, 3]
    assert "infer-batcher" not in served.threads[:2]


def test_what_waits_takes_every_stream(served: Served) -> None:
    """Rows that may not run together, because more of them gain nothing, run beside each other."""
    with _opened(served, seconds=float, streams=3) as batcher:
        served.free.clear()
        futures = [batcher.submit([n]) for n in range(3)]
        for _ in futures:
            assert served.begun.acquire(timeout=WAIT_S)
        more = _submit(batcher, *([n] for n in range(3, 9)))
        served.free.set()
        assert [future.result(WAIT_S) for future in (*futures, *more)] == list(range(9))
    assert len(served.runs) == 9


def test_what_runs_take_beside_others_is_learned_apart(served: Served) -> None:
    """Else a run that had all threads to itself would make larger ones look dear."""
    layout = layout_of(served.signature, PADDING)
    batcher = Batcher(served, layout, streams=2)
    try:
        for _ in range(3):
            batcher([1])
        assert batcher._pace.seconds(1) is not None
        assert batcher._crowded_pace.seconds(1) is None
        for _ in range(3):
            served.free.clear()
            both = [batcher.submit([n]) for n in (1, 2)]
            until(lambda: batcher._running == 2)
            served.free.set()
            assert [future.result(WAIT_S) for future in both] == [1, 2]
        assert batcher._crowded_pace.seconds(1) is not None
        assert batcher.stats().runs == batcher.stats().rows == 9
    finally:
        batcher.close()


@pytest.mark.parametrize("streams", [1, 2])
def test_lone_callers_are_served_as_with_one_stream(served: Served, streams: int) -> None:
    """What their runs take is known, so those with time to spare run in their own thread, and a delay is
    kept until a run would be full."""
    batcher = Batcher(served, layout_of(served.signature, PADDING), streams=streams)
    try:
        for _ in range(8):
            batcher([1], timeout_s=60.0)
        assert served.threads[-3:] == [threading.current_thread().name] * 3
    finally:
        batcher.close()
    options = BatchOptions(max_delay_s=0.05)
    batcher = Batcher(served, layout_of(served.signature, PADDING), options, streams=streams)
    try:
        for _ in range(8):
            batcher([1])
        start = time.monotonic()
        batcher([1])
        assert time.monotonic() - start >= 0.05
    finally:
        batcher.close()


def test_pictures_cost_their_pixels() -> None:
    """Of any height and width, those of one size run together, and a large one counts for as many small
    ones as have its pixels."""
    dims = ("batch", 3, "height", "width")
    signature = Signature((TensorSpec("x", "float32", dims),), (TensorSpec("y", "float32", ("batch",)),))
    layout = layout_of(signature, Padding({}))
    assert isinstance(layout, Layout)
    small, large = (np.zeros((2, 3, *size), np.float32) for size in ((4, 5), (40, 50)))
    assert layout.work({"x": small}) == (2, 2 * 4 * 5)
    assert layout.work({"x": large}) == (2, 2 * 40 * 50)
    assert layout.kind({"x": small}) == layout.kind({"x": small[:1]}) != layout.kind({"x": large})


# --- on real sessions


@pytest.mark.parametrize("streams", [1, 3])
def test_many_threads_get_the_answers_of_one(net: Path, streams: int) -> None:
    """8 threads, 200 requests each, of one to three rows."""
    with infer.load(net, streams=streams) as session:
        rng = np.random.default_rng(0)
        asked = [rng.standard_normal((int(n), 10)).astype(np.float32) for n in rng.integers(1, 4, 200)]
        alone = [session.run({"x": x})["logits"] for x in asked]
        batcher = session.batcher
        assert isinstance(batcher.layout, Layout)

        def ask(_: int) -> float:
            answers = [batcher.run({"x": x})["logits"] for x in asked]
            return max(float(np.abs(a - b).max()) for a, b in zip(answers, alone, strict=True))

        with ThreadPoolExecutor(8) as pool:
            worst = max(pool.map(ask, range(8)))
        assert worst <= 1e-6
        assert batcher.stats().rows == 8 * sum(map(len, asked))


def test_a_session_answers_futures_and_coroutines(net: Path) -> None:
    """`submit` and `arun` give what calling the session gives."""
    x = {"x": np.ones((1, 10), np.float32)}
    with infer.load(net, batching=BatchOptions(max_waiting=4)) as session:
        expected = session(x)["logits"]
        np.testing.assert_array_equal(session.submit(x).result(WAIT_S)["logits"], expected)
        np.testing.assert_array_equal(asyncio.run(session.arun(x))["logits"], expected)
        assert session.batcher.options.max_waiting == 4
    with pytest.raises(SessionClosedError):
        session.submit(x)


def test_a_first_coroutine_does_not_hold_up_the_loop(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers is made meanwhile, which counts: who has less time hears so at once."""
    free, made, loop_thread = threading.Event(), infer.Session._new_batcher, threading.get_ident()

    def held(self: infer.Session) -> Batcher:
        assert threading.get_ident() != loop_thread
        assert free.wait(WAIT_S)
        return made(self)

    monkeypatch.setattr(infer.Session, "_new_batcher", held)
    x = {"x": np.ones((1, 10), np.float32)}

    async def ask(session: infer.Session) -> Any:
        patient = asyncio.create_task(session.arun(x, timeout_s=WAIT_S))
        with pytest.raises(DeadlineError):
            await session.arun(x, timeout_s=0.05)
        with pytest.raises(InputError):
            await session.arun(x, timeout_s=0)
        free.set()
        return await patient

    with infer.load(net) as session:
        np.testing.assert_array_equal(asyncio.run(ask(session))["logits"], session(x)["logits"])


def test_futures_of_a_session_have_deadlines_and_can_be_cancelled(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a run of the backend goes on: who is late hears so meanwhile, who waits can go, and when the
    session is closed, the run ends well and what waits is told. None of them reaches the backend."""
    begun, free, runs = threading.Event(), threading.Event(), []
    original = OrtExecutable.run

    def held(self: OrtExecutable, *args: Any) -> Any:
        runs.append(args)
        begun.set()
        assert free.wait(WAIT_S)
        return original(self, *args)

    x = {"x": np.ones((1, 10), np.float32)}
    session = infer.load(net)
    expected = session.submit(x).result(WAIT_S)["logits"]
    monkeypatch.setattr(OrtExecutable, "run", held)
    under_way = session.submit(x)
    assert begun.wait(WAIT_S)
    with pytest.raises(DeadlineError):
        session.submit(x, timeout_s=0.05).result(WAIT_S)
    gone, waits = session.submit(x), session.submit(x)
    _queued(session.batcher, 2)
    assert gone.cancel()
    closing = threading.Thread(target=session.close)
    closing.start()
    with pytest.raises(SessionClosedError):
        waits.result(WAIT_S)
    assert closing.is_alive()
    free.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    np.testing.assert_array_equal(under_way.result(WAIT_S)["logits"], expected)
    assert len(runs) == 1


def test_a_variant_whose_answers_depend_on_neighbours_is_not_batched(tmp_path: Path) -> None:
    """Its evidence says so, and the batcher holds to it."""
    path = make_artifact(tmp_path / "net.infer")
    with infer.load(path) as session:
        assert isinstance(session.batcher.layout, Layout)
    evidence = {
        "changes": {},
        "budget": "cosine>=0.99",
        "figures": {},
        "data": "",
        "speed": {"against": "reference", "ratio": 0.9, "low": 0.8, "high": 0.95, "machine": "x"},
        "neighbours": 0.03,
        "tolerances": {},
    }
    edit_manifest(path, lambda data: data["variants"][0].update(evidence=evidence))
    with infer.load(path) as session:
        assert session.batcher.layout == "an answer of onnx moves by up to 3.0% with its neighbours"


def test_a_graph_that_mixes_rows_is_found_out(tmp_path: Path) -> None:
    """Its dims look like one row for each request, but the mean of the batch is taken off."""
    import converters
    from tests.tiny import write

    graph = write(
        tmp_path,
        "g (float[n, 3] x) => (float[n, 3] y) { m = ReduceMean<axes = [0]>(x) y = Sub(x, m) }",
    )
    converters.convert(graph, tmp_path / "mean.infer")
    with infer.load(tmp_path / "mean.infer") as session:
        assert session.batcher.layout == "golden rows answer otherwise beside others than alone"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a POSIX thing")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told(net: Path) -> None:
    """A batcher used in a forked child is an error that says what to do, instead of a wait without end."""
    with infer.load(net) as session:
        batcher = session.batcher
        read, write = os.pipe()
        if not (pid := os.fork()):
            try:
                batcher.submit({"x": np.ones((1, 10), np.float32)})
            except SessionClosedError as error:
                os.write(write, str(error).encode())
            finally:
                session.close()
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert "call infer.load after the fork" in pipe.read()
        os.waitpid(pid, 0)
