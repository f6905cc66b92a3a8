"""Many callers of one session, answered together.

Rows of several requests run as one batch where that takes less time than one after the other, and only if
a row's answer does not depend on its neighbours. Several runs may go on at once; a request that comes while
fewer do is run at once, by its own thread, and batches form of those that come meanwhile.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from infer.batching.joining import Layout
from infer.batching.pace import Pace
from infer.batching.waiting import Asked, Request, Waiting
from infer.errors import DeadlineError, InputError, OverloadedError, SessionClosedError
from infer.guard import Feeds
from infer.options import BatchOptions
from infer.signature import Array, Signature
from infer.tasks import Run, Task

_CLOSED = "the session is closed; open the artifact again"
_LATE = "there was no answer in the time that the caller gave"
_SURELY = 10
"""A run ends in time, as far as one can tell, if its caller waits so many times as long as it takes."""
_PORTION_S = 0.02
"""Of a large request, twice as many rows run together as are known to take less than this."""
_LONGEST_S, _MOST_ROWS, _MOST_WAITING = 60, 65536, 4096


T = TypeVar("T")

Work = Callable[[Task, Callable[..., dict[str, Array]]], T]
"""What a caller wants of a task and of `run(feeds, outputs)`, called where it may wait."""


@dataclass
class BatchStats:
    """What was done since the batcher was made; counts, but for seconds.

    Attributes:
        runs: of the session, which took `seconds` together; `rows` were in them.
        waited_s: how long requests that ran had waited for their turn, all together.
        cost: the work in them, of which `padding` was for no request.
        refused: requests, because too many waited.
        dropped: requests that were never run, because their deadline was past or their caller gone.
        alone: requests that ran again by themselves, because a run with others failed.
    """

    runs: int = 0
    rows: int = 0
    cost: int = 0
    padding: int = 0
    refused: int = 0
    dropped: int = 0
    alone: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0


class Served(Protocol):
    """What a batcher asks of a session."""

    signature: Signature

    def admit(self, feeds: Mapping[str, object]) -> Feeds:
        """Feeds that may run. Raises `FeedError`."""
        ...

    def wanted(self, outputs: Sequence[str] | None) -> tuple[str, ...]:
        """Names of outputs. Raises `FeedError`."""
        ...

    def run(self, feeds: Mapping[str, object], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs. Raises as `Session.run`."""
        ...

    def task_on(self, run: Run) -> Task:
        """The artifact's task, on `run`."""
        ...


class Batcher:
    """Answers many callers of one session. Threads may share it; the session closes it.

    Attributes:
        options: as it was made.
        layout: how rows of several requests run together, or why each request runs by itself.
    """

    def __init__(
        self,
        session: Served,
        layout: Layout | str,
        options: BatchOptions = BatchOptions(),
        max_feed_bytes: int | None = None,
        streams: int = 1,
    ) -> None:
        """`max_feed_bytes`: the most that one run may be fed with; `streams`: how many may go on at once.
        Raises `InputError`."""
        _check(options)
        self.options, self.layout = options, layout
        self._session = session
        self._joins = layout if isinstance(layout, Layout) else None
        self._streams = streams
        self._pace = Pace()  # of runs that have the threads to themselves
        self._crowded_pace = Pace() if streams > 1 else self._pace
        self._waiting = Waiting(self._joins, self._pace, options.max_rows, max_feed_bytes)
        self._stats = BatchStats()
        self._running = 0
        self._inside: set[Asked] = set()
        self._closed = ""  # why, once it is
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._asking = threading.local()
        self._task = session.task_on(self._run_asked)
        self._callers = ThreadPoolExecutor(options.max_waiting, thread_name_prefix="infer-caller")
        self._threads = [
            threading.Thread(target=self._serve, name="infer-batcher", daemon=True) for _ in range(streams)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, inputs: Any, *, timeout_s: float | None = None, caller: str = "") -> Future[Any]:
        """A future of what `session(inputs)` gives, answered together with other callers' requests. Inputs
        that are arrays are not copied: leave them as they are until then.

        Cancelling it drops what does not run yet. After `timeout_s` it fails with `DeadlineError`: what the
        task does before and after the graph is not cut off, but an answer that comes too late is none.
        Callers of different names get equal shares. Raises `OverloadedError` and `SessionClosedError`.
        """
        return self.submit_work(lambda task, _: task(inputs), timeout_s=timeout_s, caller=caller)

    def submit_work(self, work: Work[T], *, timeout_s: float | None = None, caller: str = "") -> Future[T]:
        """A future of `work(task, run)`, which is called in a thread of the batcher's; what it asks of the
        session's task, or of `run(feeds, outputs)`, is answered together with other callers' requests. Else
        as `submit`."""
        future: Future[T] = Future()
        asked = Asked(timeout_s, caller, future)
        self._enter(asked)
        try:
            self._callers.submit(self._answer, asked, future, work)
        except BaseException as error:
            future.cancel()  # if no thread starts, the pool keeps it for the next one that does
            self._leave(asked)
            if not isinstance(error, RuntimeError):
                raise
            if self._closed:
                raise SessionClosedError(self._closed) from error
            raise OverloadedError(f"there is no thread for it ({error}); try again later") from error
        return future

    async def arun(self, inputs: Any, *, timeout_s: float | None = None, caller: str = "") -> Any:
        """`submit`, awaited. Cancelling what awaits it drops what does not run yet."""
        import asyncio  # takes as long to import as all of infer

        return await asyncio.wrap_future(self.submit(inputs, timeout_s=timeout_s, caller=caller))

    def __call__(self, inputs: Any, *, timeout_s: float | None = None, caller: str = "") -> Any:
        """What `session(inputs)` gives, answered together with other callers' requests, for a caller that
        waits in a thread of its own. Raises as the session and as `submit`, and `DeadlineError`."""
        asked = Asked(timeout_s, caller)
        self._enter(asked)
        try:
            return self._ask(asked, lambda task, _: task(inputs))
        finally:
            self._leave(asked)

    def run(
        self,
        feeds: Mapping[str, object],
        outputs: Sequence[str] | None = None,
        *,
        timeout_s: float | None = None,
        caller: str = "",
    ) -> dict[str, Array]:
        """What `session.run` gives, of a run that may hold rows of other callers. Raises as `__call__`."""
        asked = Asked(timeout_s, caller)
        self._enter(asked)
        try:
            return self._run(asked, feeds, outputs)
        finally:
            self._leave(asked)

    def stats(self) -> BatchStats:
        """What was done so far."""
        with self._changed:
            return replace(self._stats)

    def close(self) -> None:
        """Fail what waits, and wait for what runs. Safe to call again."""
        if os.getpid() != self._pid:
            return  # threads and locks are the parent's
        with self._changed:
            self._closed = self._closed or _CLOSED
            for request in self._waiting.clear():
                request.finish(None, SessionClosedError(_CLOSED))
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._callers.shutdown()

    def _enter(self, asked: Asked) -> None:
        if os.getpid() != self._pid:
            raise SessionClosedError(
                f"this batcher was made in process {self._pid}, and its threads did not come along into the"
                f" forked process {os.getpid()}; call infer.load after the fork"
            )
        with self._changed:
            if self._closed:
                raise SessionClosedError(self._closed)
            if (waiting := len(self._inside)) >= self.options.max_waiting:
                self._stats.refused += 1
                raise OverloadedError(
                    f"{waiting} requests wait already, all that may (max_waiting); try again later"
                )
            self._inside.add(asked)

    def _leave(self, asked: Asked) -> None:
        with self._changed:
            self._inside.discard(asked)

    def _answer(self, asked: Asked, future: Future[Any], work: Work[Any]) -> None:
        """`future`'s result, in a thread of the pool."""
        result, error = None, None
        try:
            if not future.cancelled():
                result = self._ask(asked, work)
        except BaseException as raised:
            error = raised
        finally:
            self._leave(asked)
        if not asked.begin():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _ask(self, asked: Asked, work: Work[T]) -> T:
        """The result of `work`, if it comes in time; its runs are those of `asked`."""
        self._asking.now = asked
        try:
            result = work(self._task, self._run_asked)
        finally:
            del self._asking.now
        if asked.left_s() == 0.0:
            raise DeadlineError(_LATE)
        return result

    def _run_asked(
        self, feeds: Mapping[str, object], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        asked: Asked = self._asking.now
        return self._run(asked, feeds, outputs)

    def _run(
        self, asked: Asked, feeds: Mapping[str, object], outputs: Sequence[str] | None
    ) -> dict[str, Array]:
        names, admitted = self._session.wanted(outputs), self._session.admit(feeds)
        layout = self._joins
        if layout is None:
            return self._answered(asked, admitted, names, 1, 1)
        rows, cost = layout.work(admitted)
        if rows <= self.options.max_rows:
            return self._answered(asked, admitted, names, rows, cost)
        answers = [
            self._answered(asked, portion, names, *layout.work(portion))
            for portion in self._portions(layout, admitted, rows, cost // rows)
        ]
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in names}

    def _portions(self, layout: Layout, feeds: Feeds, rows: int, row_cost: int) -> Iterator[Feeds]:
        """Many rows cut for several runs, each of which is cut when the one before it has ended: so others
        get their turn in between, and its size is as runs turn out."""
        start = 0
        while start < rows:
            pace, count = self._next_pace, self.options.max_rows
            while count < rows - start and (pace.seconds(count * row_cost) or math.inf) < _PORTION_S:
                count *= 2
            yield layout.cut(feeds, start, start + count)
            start += count

    def _answered(
        self, asked: Asked, feeds: Feeds, names: tuple[str, ...], rows: int, cost: int
    ) -> dict[str, Array]:
        """The outputs of one run: at once if a stream is free, else when its turn comes."""
        if self._may_run_at_once(asked, cost):
            return self._run_at_once(asked, feeds, names, rows, cost)
        request, layout = Request(feeds, names, asked), self._joins
        if layout is not None:
            request.kind, request.rows = layout.kind(feeds), rows
            request.length, request.row_cost = layout.length_of(feeds), layout.row_cost(feeds)
        with self._changed:
            if self._closed:
                raise SessionClosedError(self._closed)
            self._waiting.add(request)
            self._changed.notify()
        return self._awaited(request)

    def _may_run_at_once(self, asked: Asked, cost: int) -> bool:
        """Whether a stream is free and nothing waits, and it will surely end in time; then it is this
        request that runs from now on."""
        if self.options.max_delay_s:
            return False
        if (left_s := asked.left_s()) is not None:
            expected_s = self._next_pace.seconds(cost) or self._pace.seconds(cost)
            if expected_s is None or left_s < _SURELY * expected_s:
                return False
        with self._changed:
            if self._closed:
                raise SessionClosedError(self._closed)
            if self._running >= self._streams or len(self._waiting):
                return False
            self._running += 1
            return True

    @property
    def _next_pace(self) -> Pace:
        """That of a run which begins now."""
        return self._crowded_pace if self._running else self._pace

    def _run_at_once(
        self, asked: Asked, feeds: Feeds, names: tuple[str, ...], rows: int, cost: int
    ) -> dict[str, Array]:
        """The answer of a lone caller; nothing joins it and no thread is woken, so it is no `Request`."""
        try:
            if not asked.begin():
                raise CancelledError
            answer = self._timed(feeds, names, rows, cost, 0)
            if asked.left_s() == 0.0:
                raise DeadlineError(_LATE)
            return answer
        finally:
            with self._changed:
                self._running -= 1
                if len(self._waiting):
                    self._changed.notify()

    def _awaited(self, request: Request) -> dict[str, Array]:
        """The answer, when it is there. Raises `DeadlineError`, and what running it raised."""
        try:
            if not request.done.wait(request.asked.left_s()):
                raise DeadlineError(_LATE)
        except BaseException:
            with self._changed:
                self._stats.dropped += self._waiting.remove(request)
            raise
        if request.error is not None:
            raise request.error
        assert request.answer is not None
        return request.answer

    def _serve(self) -> None:
        """A thread of the batcher's: run what waits, whatever happens to it."""
        while True:
            with self._changed:
                while not self._closed:
                    self._waiting.pace = self._next_pace
                    pause_s = 0.0 if self._running >= self._streams else self._pause_s()
                    if pause_s is None:
                        break
                    self._changed.wait(pause_s or None)
                if self._closed:
                    return
                waiting = len(self._waiting)
                try:
                    together = self._waiting.take()
                except BaseException as error:  # they hear of it, and the thread goes on
                    for request in self._waiting.clear():
                        request.finish(None, error)
                    continue
                self._stats.dropped += waiting - len(self._waiting) - len(together)
                now = time.monotonic()
                self._stats.waited_s += sum(now - request.arrived for request in together)
                self._running += 1
                if len(self._waiting):
                    self._changed.notify()  # another thread may have a stream for them
            try:
                self._run_together(together)
            except BaseException as error:
                for request in together:
                    if not request.done.is_set():
                        request.finish(None, error)
            finally:
                with self._changed:
                    self._running -= 1

    def _pause_s(self) -> float | None:
        """How long to wait for more before the next run: 0.0 without an end, None not at all."""
        if not len(self._waiting):
            return 0.0
        left = self._waiting.oldest + self.options.max_delay_s - time.monotonic()
        return None if left <= 0 or self._waiting.full else left

    def _run_together(self, together: Sequence[Request]) -> None:
        if not together:
            return
        first, layout = together[0], self._joins
        parts = [request.feeds for request in together]
        try:
            if len(together) == 1 or layout is None:
                answers = [self._timed(first.feeds, first.outputs, first.rows, first.cost, 0)]
            else:
                rows = sum(request.rows for request in together)
                cost = rows * max(request.length for request in together) * first.row_cost
                padding = cost - sum(request.cost for request in together)
                answers = layout.split(
                    self._timed(layout.join(parts), first.outputs, rows, cost, padding), parts
                )
        except Exception as error:
            if len(together) == 1:
                first.finish(None, error)
                return
            # one of them is the cause, and the others shall not suffer for it
            with self._changed:
                self._stats.alone += len(together)
            for request in together:
                self._run_together([request])
            return
        for request, answer in zip(together, answers, strict=True):
            request.finish(answer)

    def _timed(
        self, feeds: Mapping[str, object], outputs: tuple[str, ...], rows: int, cost: int, padding: int
    ) -> dict[str, Array]:
        start, others = time.perf_counter(), self._running > 1
        answer = self._session.run(feeds, outputs)
        taken = time.perf_counter() - start
        with self._changed:
            pace = self._crowded_pace if others or self._running > 1 else self._pace
            pace.learn(cost, taken)
            stats = self._stats
            stats.runs, stats.rows, stats.cost = stats.runs + 1, stats.rows + rows, stats.cost + cost
            stats.padding, stats.seconds = stats.padding + padding, stats.seconds + taken
        return answer


def _check(options: BatchOptions) -> None:
    """What types alone say, for callers who have none."""
    if not isinstance(options.max_delay_s, (int, float)) or not 0 <= options.max_delay_s <= _LONGEST_S:
        raise InputError(
            f"max_delay_s must be 0 to {_LONGEST_S} seconds, but is {options.max_delay_s!r:.60}"
        )
    for name, most in (("max_rows", _MOST_ROWS), ("max_waiting", _MOST_WAITING)):
        value = getattr(options, name)
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(f"{name} must be an int from 1 to {most}, but is {value!r:.60}")
