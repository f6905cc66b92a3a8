"""What all endpoints share: the models, the limits, and how one of them answers one request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from infer.batching import Batcher, Work
from infer.errors import DeadlineError, FeedError, InputError, OverloadedError
from infer.live import Version
from infer.server.admission import Bodies, Gate, Room, inflated, inflated_size, read_tokens
from infer.server.metrics import Metrics
from infer.server.models import Model, Models
from infer.server.options import ServerOptions

T = TypeVar("T")

# what takes longer to read than a thread takes to be asked
_SMALL_BYTES = 16 * 1024
# a client whose deadline comes goes away up to so long before it, by our clock
_EARLY_S = 0.02
_SOON_S = 0.05
_LATE = "there was no answer in the time that the server or the caller gives"
_PARSERS, _LOADERS = 4, 16
_log = logging.getLogger("infer.server")


class Service:
    """Models, answering over HTTP. It belongs to the event loop's thread.

    Attributes:
        leaving: whether the server was told to stop.
        draining: whether it takes no more requests.
    """

    def __init__(self, models: Models, options: ServerOptions) -> None:
        self.models, self.options = models, options
        self.metrics = Metrics(iter(models))
        self.bodies = Bodies(options)
        self.gate = Gate(options)
        self.leaving = self.draining = False
        self._parsers = ThreadPoolExecutor(_PARSERS, thread_name_prefix="infer-parse")
        # apart, so that requests for loaded models never wait for others to load
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="infer-load")

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self.leaving and self.models.ready

    @contextmanager
    def counted(self, model: Model, timeout_s: float | None = None) -> Iterator[None]:
        """A request for `model`, from its head to its answer: how it ends is counted. `timeout_s` is when
        its client goes away, if that is known. Raises `OverloadedError` if too many wait already."""
        start, outcome = time.perf_counter(), "success"
        try:
            if said := self.overload(model):
                raise OverloadedError(said)
            yield
        except BaseException as error:
            taken_s = time.perf_counter() - start
            outcome = _outcome(error, late=timeout_s is not None and taken_s >= timeout_s - _EARLY_S)
            raise
        finally:
            self.metrics.requests.labels(model.name, model.version, outcome).inc()

    def overload(self, model: Model) -> str | None:
        """Why no more requests for `model` are taken now; None if they are."""
        if model.waiting < self.options.max_waiting:
            return None
        return f"{model.waiting} requests wait for '{model.name}' already; try again later"

    async def body(self, request: Request, room: Room) -> bytes:
        """The request's body without its Content-Encoding. Raises `HTTPException`, `OverloadedError`,
        `ClientDisconnect`."""
        body = await self.bodies.read(request, room)
        request.state.bytes_in = len(body)
        encoding = request.headers.get("content-encoding")
        if encoding is None:
            return body
        most = self.options.max_body_bytes
        size = await self.apart(lambda: inflated_size(body, encoding, most), len(body) * 64)
        room.resize(len(body) + size)
        found = await self.apart(lambda: inflated(body, encoding, size), size)
        room.resize(size)
        return found

    async def apart(self, work: Callable[[], T], size_bytes: int) -> T:
        """`work()`; in another thread if it is much."""
        if size_bytes <= _SMALL_BYTES:
            return work()
        return await asyncio.wrap_future(self._parsers.submit(work))

    async def load_at_start(self) -> None:
        """Load the models that are to be loaded at the start. Raises `UnavailableError`."""
        await asyncio.wrap_future(self._loaders.submit(self.models.load_at_start))

    def count(self) -> None:
        """Bring the metrics up to date with what happened apart from requests."""
        for model in self.models:
            if version := model.hold(use=False):
                self.metrics.ran(model, version.session)
                version.leave()

    async def reload(self) -> None:
        """Take up tokens and artifacts that changed."""
        if (path := self.options.token_file) is not None:
            try:
                if self.gate.renew(await self.apart(lambda: read_tokens(path), 2**20)):
                    _log.info("other tokens are taken from now on")
            except InputError as error:
                _log.error("the tokens stay as they are: %s", error)
        for model, outcome in await asyncio.wrap_future(self._loaders.submit(self.models.reload)):
            self.metrics.reloads.labels(model.name, model.version, outcome).inc()

    async def answer(
        self,
        model: Model,
        work: Work[T],
        caller: str,
        timeout_s: float | None = None,
        gone: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """What `work` makes of the model's session, which is loaded first if need be; it is not run any
        more once `gone` returns. What runs on when the time is over keeps its place in the batcher.

        Raises `OverloadedError`, `DeadlineError`, `UnavailableError`, `ClientDisconnect`, and what `work`
        raises.
        """
        start = time.perf_counter()
        limit_s = self.options.timeout_s if timeout_s is None else min(self.options.timeout_s, timeout_s)
        patience = _Patience(gone, time.monotonic() + limit_s)
        waiting = self.metrics.waiting.labels(model.name, model.version)
        model.waiting += 1
        waiting.inc()
        try:
            version = model.hold() or await self._loaded(model, patience)
            answer = await self._answered(version, work, caller, patience)
            self.metrics.ran(model, version.session)
            return answer
        finally:
            model.waiting -= 1
            waiting.dec()
            self.metrics.seconds.labels(model.name, model.version).observe(time.perf_counter() - start)

    async def _loaded(self, model: Model, patience: _Patience) -> Version:
        loading = self._loaders.submit(self.models.hold, model)
        try:
            return await patience.wait(loading)
        except (asyncio.CancelledError, ClientDisconnect, DeadlineError):
            loading.add_done_callback(_leave_if_held)
            raise

    async def _answered(self, version: Version, work: Work[T], caller: str, patience: _Patience) -> T:
        try:
            batcher: Batcher = version.session.batcher
            future = batcher.submit_work(work, timeout_s=patience.left_s, caller=caller)
        except BaseException:
            version.leave()
            raise
        future.add_done_callback(lambda _: version.leave())
        return await patience.wait(future)

    def close(self) -> None:
        """Close the models, after what runs."""
        self._loaders.shutdown(wait=False, cancel_futures=True)
        self._parsers.shutdown(wait=False, cancel_futures=True)
        self.models.close()


class _Patience:
    """How long a client waits: until it goes away, or its time is over."""

    def __init__(self, gone: Callable[[], Awaitable[None]] | None, deadline: float) -> None:
        self._gone, self._deadline = gone, deadline
        self._leaving: asyncio.Future[None] | None = None

    @property
    def left_s(self) -> float:
        """The time that is left. Raises `DeadlineError` if there is none."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineError(_LATE)
        return left_s

    async def wait(self, wanted: Future[T]) -> T:
        """The result, which is cancelled if it does not come in time. Raises `DeadlineError`,
        `ClientDisconnect`, and what it raises."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        def tell(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(end)

        timer = loop.call_later(self.left_s, end)
        # most answers are there before it is worth a task to see whether the client has gone
        watch = loop.call_later(_SOON_S, self._watch, self._gone, end) if self._gone else None
        wanted.add_done_callback(tell)
        try:
            await ended
            if wanted.done():
                return wanted.result()
            if self._leaving is not None and self._leaving.done():
                raise ClientDisconnect
            raise DeadlineError(_LATE)
        finally:
            wanted.cancel()
            timer.cancel()
            if watch is not None:
                watch.cancel()
            await self._look_away()

    def _watch(self, gone: Callable[[], Awaitable[None]], end: Callable[[], None]) -> None:
        """Call `end` if the client goes away."""
        self._leaving = asyncio.ensure_future(gone())
        self._leaving.add_done_callback(lambda _: end())

    async def _look_away(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            with suppress(asyncio.CancelledError):
                await self._leaving
            self._leaving = None


def _outcome(error: BaseException, *, late: bool) -> str:
    """One of `metrics.OUTCOMES`."""
    if isinstance(error, (FeedError, InputError)):
        return "bad input"
    if isinstance(error, HTTPException):
        return "bad input" if error.status_code < 500 else "failed"
    if isinstance(error, OverloadedError):
        return "refused"
    if isinstance(error, DeadlineError):
        return "late"
    if isinstance(error, (ClientDisconnect, asyncio.CancelledError)):
        return "late" if late else "gone"
    return "failed"


def service(request: Request) -> Service:
    """The service that a request was sent to."""
    found: Service = request.scope["app"]
    return found


async def answer(request: Request, model: Model, work: Work[T], timeout_s: float | None = None) -> T:
    """See `Service.answer`. A client that goes away takes its request along."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return await service(request).answer(model, work, request.state.caller, timeout_s, gone)


def _leave_if_held(loading: Future[Version]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().leave()
