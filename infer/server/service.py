"""What all endpoints share: the models, the limits, and how one of them answers one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from infer.batching import Batcher, Work
from infer.errors import DeadlineError, FeedError, InputError, OverloadedError
from infer.live import Version
from infer.server.admission import Bodies, inflated
from infer.server.metrics import Metrics
from infer.server.models import Model, Models
from infer.server.options import ServerOptions

T = TypeVar("T")

# what takes longer to read than a thread takes to be asked
_SMALL_BYTES = 16 * 1024
# a client whose deadline comes goes away up to so long before it, by our clock
_EARLY_S = 0.02
_PARSERS, _LOADERS = 4, 16


class Service:
    """Models, answering over HTTP. It belongs to the event loop's thread.

    Attributes:
        draining: whether the server was told to stop.
    """

    def __init__(self, models: Models, options: ServerOptions) -> None:
        self.models, self.options = models, options
        self.metrics = Metrics(iter(models))
        self.bodies = Bodies(options)
        self.draining = False
        self._parsers = ThreadPoolExecutor(_PARSERS, thread_name_prefix="infer-parse")
        # apart, so that requests for loaded models never wait for others to load
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="infer-load")

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return not self.draining and self.models.ready

    def admit(self, model: Model) -> None:
        """Say that a request may come in. Raises `OverloadedError`."""
        if model.waiting >= self.options.max_waiting:
            raise OverloadedError(
                f"{model.waiting} requests wait for '{model.name}' already; try again later"
            )

    async def body(self, request: Request) -> bytes:
        """The request's body without its Content-Encoding. Raises `HTTPException`, `ClientDisconnect`."""
        body = await self.bodies.read(request)
        request.state.bytes_in = len(body)
        encoding = request.headers.get("content-encoding")
        if encoding is None:
            return body
        return await self.apart(
            lambda: inflated(body, encoding, self.options.max_body_bytes), len(body) * 64
        )

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
        """Take up artifacts that changed."""
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
        """What `work` makes of the model's session; it is not run any more once `gone` returns.

        Raises `OverloadedError`, `DeadlineError`, `UnavailableError`, `ClientDisconnect`, and what `work`
        raises.
        """
        self.admit(model)
        start, outcome = time.perf_counter(), "failed"
        waiting = self.metrics.waiting.labels(model.name, model.version)
        model.waiting += 1
        waiting.inc()
        try:
            version = model.hold() or await self._loaded(model)
            answer = await self._answered(model, version, work, caller, timeout_s, gone or _never)
            outcome = "success"
            return answer
        except (FeedError, InputError):
            outcome = "bad input"
            raise
        except OverloadedError:
            outcome = "refused"
            raise
        except DeadlineError:
            outcome = "late"
            raise
        except (ClientDisconnect, asyncio.CancelledError):
            late = timeout_s is not None and time.perf_counter() - start >= timeout_s - _EARLY_S
            outcome = "late" if late else "gone"
            raise
        finally:
            model.waiting -= 1
            waiting.dec()
            self.metrics.requests.labels(model.name, model.version, outcome).inc()
            self.metrics.seconds.labels(model.name, model.version).observe(time.perf_counter() - start)

    async def _loaded(self, model: Model) -> Version:
        loading = self._loaders.submit(self.models.hold, model)
        try:
            return await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(_leave_if_held)
            raise

    async def _answered(
        self,
        model: Model,
        version: Version,
        work: Work[T],
        caller: str,
        timeout_s: float | None,
        gone: Callable[[], Awaitable[None]],
    ) -> T:
        limit_s = self.options.timeout_s if timeout_s is None else min(self.options.timeout_s, timeout_s)
        try:
            batcher: Batcher = version.session.batcher
            future = batcher.submit_work(work, timeout_s=limit_s, caller=caller)
        except BaseException:
            version.leave()
            raise
        future.add_done_callback(lambda _: version.leave())
        answering = asyncio.wrap_future(future)
        leaving = asyncio.ensure_future(gone())
        either: set[asyncio.Future[Any]] = {answering, leaving}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ClientDisconnect
            self.metrics.ran(model, version.session)
            return answering.result()
        finally:
            answering.cancel()
            leaving.cancel()
            with suppress(asyncio.CancelledError):
                await leaving

    def close(self) -> None:
        """Close the models, after what runs."""
        self._loaders.shutdown(wait=False, cancel_futures=True)
        self._parsers.shutdown(wait=False, cancel_futures=True)
        self.models.close()


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


async def _never() -> None:
    await asyncio.get_running_loop().create_future()
