"""Plans timed beside each other, each in processes of its own.

What a plan does to memory stays with a process: allocators give a session what another one left, in huge
pages or not, so in one process two sessions soon have the same.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from infer.artifact import Artifact
from infer.errors import BackendError, InferError
from infer.feeds import Feeds
from infer.huge_pages import HugePages
from infer.measure.rounds import Progress, take_turns
from infer.measure.statistics import Estimate, paired_ratio
from infer.optimizer.gates import Asked, Contender, even_shares
from infer.options import SessionOptions
from infer.plan import Plan
from infer.session import Session, open_session
from infer.signature import Array

_PROGRAM = """
import os
replies = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what libraries print is no reply
from infer.optimizer.apart import answer
answer(replies)
"""
_WARM_UP_S, _LAST_WORDS_S = 1.0, 5.0


@dataclass(frozen=True)
class Planned:
    """An artifact and how it is run, by a name."""

    name: str
    artifact: Artifact
    plan: Plan


def ratio_apart(
    ours: Planned,
    theirs: Planned,
    timed: Sequence[Feeds],
    seconds: float,
    progress: Progress,
    starts: int,
) -> Estimate:
    """How many times as long `ours` takes as `theirs` for all of `timed`, or for all of it as often as each
    caller of either has the same share, asked in turns.

    They are in processes that are started `starts` times; fewer times, but twice, if starting would take
    longer than timing. Raises `BackendError` if one of them fails.
    """
    timed = even_shares(timed, ours.plan.streams, theirs.plan.streams)
    with ExitStack() as stack:
        queries = {name: _Process(each, timed, stack) for name, each in (("a", ours), ("b", theirs))}

        def restart() -> None:
            for query in queries.values():
                query.start()

        start = time.perf_counter()
        restart()
        starts = min(starts, max(2, int(seconds / (time.perf_counter() - start))))
        measured = take_turns(
            queries, seconds, progress, starts=starts, restart=restart, warm_up_s=_WARM_UP_S
        )
    if measured.interrupted:  # some starts alone say little
        raise KeyboardInterrupt
    times = measured.times
    return paired_ratio(times["a"].medians, times["b"].medians, measured.starts)


class _Process:
    """A process that answers, as a query; it keeps the time."""

    def __init__(self, planned: Planned, timed: Sequence[Feeds], stack: ExitStack) -> None:
        self._planned, self._request = planned, pickle.dumps((planned, list(timed)))
        self._stack, self._own = stack, ExitStack()
        stack.callback(lambda: self._own.close())

    def start(self) -> None:
        """Start it, or start it anew."""
        self._own.close()
        self._own = own = ExitStack()
        self._printed = own.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 -- the stack's
        # Ctrl-C ends the measurement, and that ends the process
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )
        except OSError as error:
            raise BackendError(
                f"no process can be started to time {self._planned.name}: {error}"
            ) from error
        own.enter_context(self._process)
        own.callback(self._close_input)
        own.callback(self._process.kill)
        self._send(self._request)
        self._receive()

    def turn(self, count: int) -> Array:
        self._send(pickle.dumps(count))
        found: Array = self._receive()
        return found

    def serve(self, due_s: Array) -> Array:
        raise NotImplementedError  # nothing here is timed by arrivals

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError as error:
            raise self._failed() from error

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except Exception as error:  # what is no reply can fail in many ways
            raise self._failed() from error

    def _close_input(self) -> None:
        """What a process that has died did not take would be sent again."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def _failed(self) -> BackendError:
        try:
            self._process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._printed.seek(0)
        said = self._printed.read().decode("utf-8", "replace").strip()
        return BackendError(f"{self._planned.name} failed in a process of its own: {said[-500:]}")


def answer(replies: IO[bytes]) -> None:
    """What such a process does: it opens what it is sent, and then asks it as often as it is told."""
    requests = sys.stdin.buffer
    try:
        planned, timed = pickle.load(requests)
        with ExitStack() as stack:
            asked = Asked(Contender(planned.name, lambda: _settled(planned, timed)), timed, stack)
            _reply(replies, None)
            while True:
                _reply(replies, asked.turn(pickle.load(requests)))
    except EOFError:
        return
    except InferError as error:
        sys.exit(f"{error}")


@contextmanager
def _settled(planned: Planned, timed: Sequence[Feeds]) -> Iterator[Session]:
    """The session as it is once it has answered for a while: what is to be in huge pages is."""
    pages = HugePages() if planned.plan.gathers else None
    options = SessionOptions(verify=False, warm_up=False)
    with open_session(planned.artifact, options=options, plan=planned.plan) as session:
        if pages is not None:
            for feeds in timed:
                session.run(feeds)
            pages.gather()
        yield session


def _reply(replies: IO[bytes], value: Any) -> None:
    pickle.dump(value, replies)
    replies.flush()
