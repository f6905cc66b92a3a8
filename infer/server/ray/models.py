"""A model of a replica: its version is replaced while it is asked, and it is let go of while it is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import islice

from infer.errors import ParityError
from infer.golden import GoldenPoint, prove
from infer.live import LiveSession
from infer.options import BatchOptions
from infer.server.ray.allotment import allotted_device, allotted_threads
from infer.session import Session


class Model:
    """A live session, which is closed when it was let go of and nothing uses it.

    Ray's multiplexer lets go of a model by calling its `__del__`, in a thread beside the event loop, while
    requests still use it. All else is for the event loop, but for `swap` and `check`, which take long.

    Attributes:
        path: of the version that serves.
    """

    def __init__(self, live: LiveSession, path: str) -> None:
        self.live, self.path = live, path
        self._points = _first_points(live)
        self._uses, self._let_go = 0, False

    @asynccontextmanager
    async def used(self) -> AsyncIterator[Session]:
        """The session that serves now; it stays open in the block."""
        self._uses += 1
        try:
            with self.live.hold() as session:
                yield session
        finally:
            self._uses -= 1
            if self._let_go and not self._uses:
                await asyncio.to_thread(self.live.close)

    def swap(self, path: str) -> None:
        """Let the artifact at `path` serve from now on; see `LiveSession.swap`."""
        self.live.swap(path)
        self._points, self.path = _first_points(self.live), path

    def check(self) -> None:
        """Ask a golden point again. Raises `ParityError`, and what `Session.run` raises."""
        # read when the version was opened: one that serves well does so after its folder is gone, too
        with self.live.hold() as session:
            _require(session, self.path, self._points)

    def __del__(self) -> None:
        self._let_go = True
        if not self._uses:
            self.live.close()


def open_model(path: str, max_waiting: int) -> Model:
    """Open what is at `path` as far as Ray's allotment goes, if it answers as it was recorded to.

    Raises what `infer.load` raises, and `ParityError`.
    """
    live = LiveSession(
        path,
        device=allotted_device(),
        num_threads=allotted_threads(),
        spinning=False,
        batching=BatchOptions(max_waiting=max_waiting),
    )
    try:
        with live.hold() as session:
            _require(session, path)
            session.batcher  # noqa: B018 -- made now, not while the event loop waits for it
        return Model(live, path)
    except BaseException:
        live.close()
        raise


def _first_points(live: LiveSession) -> list[GoldenPoint]:
    return list(islice(live.artifact.golden(), 1))


def _require(session: Session, path: str, points: Iterable[GoldenPoint] | None = None) -> None:
    wrong = [
        f"{point}: {difference}"
        for point, differences in prove(session, points).items()
        for difference in differences
        if not difference.within
    ]
    if wrong:
        raise ParityError(
            f"'{path}' does not answer here as it was proved to: {'; '.join(wrong[:3])}. See: infer verify"
        )
