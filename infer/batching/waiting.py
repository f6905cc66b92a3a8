"""Requests that wait for a run, and which of them go next."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from infer.batching.joining import Layout
from infer.batching.pace import Pace
from infer.errors import DeadlineError, InputError
from infer.guard import Feeds, size_bytes
from infer.signature import Array

_PADDED = 0.2
"""The part of a run's cost that may be padding, while it is not known what runs take."""


class Asked:
    """Who asks, until when, and whether they still do.

    Attributes:
        deadline: when an answer is of no use any more, by `time.monotonic`; None: never.
        caller: callers get equal shares.
    """

    def __init__(self, timeout_s: float | None, caller: str, future: Future[Any] | None = None) -> None:
        """Raises `InputError` for a time that is none."""
        if timeout_s is not None and (not isinstance(timeout_s, (int, float)) or not timeout_s > 0):
            raise InputError(f"timeout_s must be a number of seconds above 0, but is {timeout_s!r:.60}")
        limit_s = math.inf if timeout_s is None else timeout_s
        # no wait takes longer
        self.deadline = time.monotonic() + limit_s if limit_s < threading.TIMEOUT_MAX else None
        self.caller = caller
        self._future = future
        self._begun: bool | None = True if future is None else None

    def left_s(self) -> float | None:
        """The time until its deadline, None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether nobody waits any more: its deadline is past, or it was cancelled."""
        return self.left_s() == 0.0 or (self._future is not None and self._future.cancelled())

    def begin(self) -> bool:
        """Say that its turn has come; False if it was cancelled before."""
        if self._begun is None:
            assert self._future is not None
            self._begun = self._future.set_running_or_notify_cancel()
        return self._begun


@dataclass(eq=False)
class Request:
    """Feeds of one caller, and in the end their outputs, or an error.

    Attributes:
        outputs: names of those that are wanted.
        kind: what must be the same of requests that run together.
        rows, length: how many rows there are, and how long they are.
        row_cost: the work of a row for each unit of length.
        turn: when it is due, in work that was done before.
    """

    feeds: Feeds
    outputs: tuple[str, ...]
    asked: Asked
    kind: object = None
    rows: int = 1
    length: int = 1
    row_cost: int = 1
    turn: float = 0.0
    arrived: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    answer: dict[str, Array] | None = None
    error: BaseException | None = None

    @property
    def cost(self) -> int:
        """The work of a run of nothing else."""
        return max(1, self.rows * self.length * self.row_cost)

    @property
    def bytes_of_cost(self) -> float:
        """The bytes of its feeds for each unit of work."""
        return sum(map(size_bytes, self.feeds.values())) / self.cost

    def finish(self, answer: dict[str, Array] | None, error: BaseException | None = None) -> None:
        """Wake who waits for it."""
        self.answer, self.error = answer, error
        self.done.set()


class Waiting:
    """The queue. Not safe for threads: its owner has the lock.

    Attributes:
        pace: of what runs next.

    Callers take turns by the work they ask for, so that one with much of it does not hold up the others
    (weighted fair queueing, Demers et al. 1989, with equal weights). A request whose deadline would pass
    during the next run goes first: before others of its caller, and before other callers' if its caller is
    at most a run ahead of them, so that short deadlines buy nobody a larger share.
    """

    def __init__(
        self, layout: Layout | None, pace: Pace, most_rows: int, most_bytes: int | None = None
    ) -> None:
        self._layout, self.pace = layout, pace
        most = layout.most_rows if layout else None
        self._most_rows = most_rows if most is None else min(most_rows, most)
        self._most_bytes = math.inf if most_bytes is None else most_bytes
        self._requests: list[Request] = []
        self._now = 0.0  # the turn of what runs
        self._next: dict[str, float] = {}  # the turn of a caller's next request

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def oldest(self) -> float:
        """When the first of those that wait arrived."""
        return min(request.arrived for request in self._requests)

    @property
    def full(self) -> bool:
        """Whether waiting for more would not fill a run any better."""
        if sum(request.rows for request in self._requests) >= self._most_rows:
            return True
        return sum(request.cost for request in self._requests) >= self.pace.enough

    def add(self, request: Request) -> None:
        """Queue it."""
        caller = request.asked.caller
        request.turn = max(self._now, self._next.get(caller, 0.0))
        self._next[caller] = request.turn + request.cost
        self._requests.append(request)

    def remove(self, request: Request) -> bool:
        """Take it back; False if it is not here any more."""
        try:
            self._requests.remove(request)
        except ValueError:
            return False
        return True

    def clear(self) -> list[Request]:
        """All of them, none of which will run."""
        requests, self._requests = self._requests, []
        return requests

    def take(self) -> list[Request]:
        """What runs next: the request whose turn it is, and others that take less time together with it
        than apart. Those that nobody waits for any more are finished on the way, unexecuted."""
        first = self._first()
        if first is None:
            return []
        together = [first]
        if self._layout is not None and first.cost < self.pace.enough:
            fitting = [r for r in self._requests if r.kind == first.kind and r.outputs == first.outputs]
            fitting.sort(key=lambda request: (abs(request.length - first.length), request.turn))
            rows, longest = first.rows, first.length
            for request in fitting:
                if self._fits(rows, longest, request) and self._claimed(request):
                    together.append(request)
                    rows, longest = rows + request.rows, max(longest, request.length)
        self._pass_on(together)
        return together

    def _pass_on(self, together: Sequence[Request]) -> None:
        """Let the turns go on by each caller's share of the work."""
        callers = {request.asked.caller for request in (*together, *self._requests)}
        work = sum(request.cost for request in together)
        self._now = max(self._now + work / len(callers), together[0].turn)
        # whose next turn is past has no other claim than who never came
        self._next = {caller: turn for caller, turn in self._next.items() if turn > self._now}

    def _first(self) -> Request | None:
        """The one whose turn it is, taken out of the queue."""
        self._drop_over()
        while self._requests:
            in_turn: dict[str, list[Request]] = {}
            for request in sorted(self._requests, key=lambda request: request.turn):
                in_turn.setdefault(request.asked.caller, []).append(request)
            chosen = next(iter(in_turn.values()))[0]
            run = self._most_rows * chosen.length * chosen.row_cost
            ahead = chosen.turn + min(self.pace.enough, run)
            due = [requests for requests in in_turn.values() if requests[0].turn <= ahead]
            urgent = [request for requests in due for request in requests if self._is_urgent(request)]
            if urgent:
                chosen = min(urgent, key=lambda request: request.asked.left_s() or 0.0)
                _put_first(chosen, in_turn[chosen.asked.caller])
            if self._claimed(chosen):
                return chosen
        return None

    def _is_urgent(self, request: Request) -> bool:
        left = request.asked.left_s()
        if left is None:
            return False
        run, longest = (self.pace.seconds(cost) or 0.0 for cost in (request.cost, self.pace.enough))
        return left < run + longest

    def _claimed(self, request: Request) -> bool:
        """Take it out of the queue; whether somebody still waits for it. If not, it is finished."""
        self._requests.remove(request)
        if not request.asked.over and request.asked.begin():
            return True
        _drop(request)
        return False

    def _drop_over(self) -> None:
        """Finish those that nobody waits for any more."""
        requests, self._requests = self._requests, []
        for request in requests:
            if request.asked.over:
                _drop(request)
            else:
                self._requests.append(request)

    def _fits(self, rows: int, longest: int, request: Request) -> bool:
        """Whether it takes less time in a run with so many rows than after it."""
        before = rows * longest * request.row_cost
        after = (rows + request.rows) * max(longest, request.length) * request.row_cost
        if rows + request.rows > self._most_rows or after > self.pace.enough:
            return False
        if after * request.bytes_of_cost > self._most_bytes:
            return False
        run, without, apart = map(self.pace.seconds, (after, before, request.cost))
        if run is None or without is None or apart is None:
            return after - before - request.cost <= _PADDED * after
        return run <= without + apart


def _drop(request: Request) -> None:
    """Finish it, unexecuted."""
    late = request.asked.left_s() == 0.0
    said = "the deadline passed while the request waited for its turn"
    request.finish(None, DeadlineError(said) if late else CancelledError())


def _put_first(chosen: Request, in_turn: Sequence[Request]) -> None:
    """Before the others of its caller, who take their turns in the order they had."""
    turns = [request.turn for request in in_turn]
    others = [request for request in in_turn if request is not chosen]
    for request, turn in zip((chosen, *others), turns, strict=True):
        request.turn = turn
