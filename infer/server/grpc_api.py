"""The Open Inference Protocol, version 2, over gRPC: the same models, limits, metrics and log lines."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import infer
from infer.errors import (
    DeadlineError,
    FeedError,
    InputError,
    OverloadedError,
    SessionClosedError,
    missing_package,
)
from infer.server import logs, oip
from infer.server.admission import StrangerError
from infer.server.grpc_messages import MESSAGES, SERVICE
from infer.server.grpc_tensors import dump, parse, read
from infer.server.models import Model, UnavailableError, UnknownModelError
from infer.server.options import ServerOptions
from infer.server.service import Service
from infer.server.v2 import PLATFORM

# what the library writes to stderr by itself is no line of our log
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    import grpc
except ImportError as _error:
    raise missing_package("grpcio", "grpc", _error) from _error

CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (StrangerError, grpc.StatusCode.UNAUTHENTICATED),
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (FeedError, grpc.StatusCode.INVALID_ARGUMENT),
    (InputError, grpc.StatusCode.INVALID_ARGUMENT),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (SessionClosedError, grpc.StatusCode.UNAVAILABLE),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
)
"""Errors that are told as they are; all others are INTERNAL with a fixed text."""

_OPEN = ("ServerLive", "ServerReady")
_NEVER_MS = 2**31 - 1
"""What gRPC calls no limit."""
_log = logging.getLogger("infer.server")


class Call:
    """One request: who asks, until when, and what the log line will say."""

    def __init__(self, context: Any) -> None:
        self.metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        self.request_id = logs.request_id(self.metadata.get("x-request-id"))
        self.trace = logs.trace(self.metadata.get("traceparent"))
        # such as ipv4:127.0.0.1:4711
        self.client = context.peer().partition(":")[2].rpartition(":")[0]
        self.caller = self.client
        self._context = context
        self.model: Model | None = None
        self.bytes_in = self.bytes_out = 0

    @property
    def left_s(self) -> float | None:
        """What the client still waits, 0 once it does not; None if it set no deadline."""
        left_s: float | None = self._context.time_remaining()
        return left_s


class GrpcServer:
    """Answers over gRPC beside the HTTP server, in the same event loop."""

    def __init__(self, served: Service) -> None:
        self._served, self._options = served, served.options
        self._server: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Listen. Raises `UnavailableError` if that is not possible."""
        options = self._options
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 1),  # of all workers, and of what keeps the port for them
                ("grpc.max_receive_message_length", options.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", options.max_header_bytes),
                # the library inflates messages without a bound before anybody is asked
                ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
                ("grpc.keepalive_time_ms", min(_NEVER_MS, 1000 * round(options.body_timeout_s))),
            ),
            maximum_concurrent_rpcs=options.max_connections,
        )
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                self._handler(name), response_serializer=lambda answer: answer.SerializeToString()
            )
            for name in _METHODS
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        address = f"[{options.host}]" if ":" in options.host else options.host
        try:
            server.add_insecure_port(f"{address}:{options.grpc_port}")
        except RuntimeError as error:
            raise UnavailableError(f"cannot listen at {address} port {options.grpc_port}") from error
        await server.start()
        self._server, self._loop = server, asyncio.get_running_loop()

    def drain(self) -> None:
        """Take nothing new, and let what is under way end. Safe in a signal's handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_to_stop)

    async def stop(self) -> None:
        """Return when what is under way has ended."""
        self._begin_to_stop()
        if self._stopping is not None:
            await self._stopping

    def _begin_to_stop(self) -> None:
        if self._server is not None and self._stopping is None:
            self._stopping = asyncio.ensure_future(self._server.stop(self._options.drain_s))

    def _handler(self, name: str) -> Callable[[Any, Any], Awaitable[Any]]:
        method: Callable[[Any, Call], Awaitable[Any]] = getattr(self, _METHODS[name])

        async def answer(sent: bytes, context: Any) -> Any:
            start, call, code = time.perf_counter(), Call(context), grpc.StatusCode.OK
            call.bytes_in = len(sent)
            try:
                if name not in _OPEN:
                    call.caller = (
                        self._served.gate.token_name(call.metadata.get("authorization")) or call.client
                    )
                message = await self._served.apart(lambda: read(f"{name}Request", sent), len(sent))
                found = await method(message, call)
                call.bytes_out = found.ByteSize()
                return found
            except asyncio.CancelledError:
                # the library cancels what a client waits for no longer, too
                late = call.left_s == 0
                code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                code, text = _told(error, call.request_id)
                hint = (("retry-after", "1"),) if isinstance(error, OverloadedError) else ()
                await context.abort(code, text, hint)
            finally:
                self._tell(name, call, code, time.perf_counter() - start)

        return answer

    def _tell(self, name: str, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        self._served.metrics.responses.labels(f"grpc {name}", code.name).inc()
        fields = {
            "client": call.client,
            "method": "gRPC",
            "endpoint": name,
            "model": call.model and call.model.name,
            "version": call.model and call.model.version,
            "status": code.name,
            "ms": round(seconds * 1e3, 3),
            "bytes_in": call.bytes_in,
            "bytes_out": call.bytes_out,
        }
        logs.tell(call.request_id, call.trace, fields, quiet=name in _OPEN)

    async def _server_live(self, message: Any, call: Call) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _server_ready(self, message: Any, call: Call) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self._served.ready)

    async def _model_ready(self, message: Any, call: Call) -> Any:
        model = self._model(message.name, message.version, call)
        ready = not self._served.leaving and self._served.models.can_answer(model)
        return MESSAGES["ModelReadyResponse"](ready=ready)

    async def _server_metadata(self, message: Any, call: Call) -> Any:
        return MESSAGES["ServerMetadataResponse"](name="infer", version=infer.__version__)

    async def _model_metadata(self, message: Any, call: Call) -> Any:
        model = self._model(message.name, message.version, call)
        return MESSAGES["ModelMetadataResponse"](
            name=model.name,
            versions=self._served.models.versions(model.name),
            platform=PLATFORM,
            **oip.describe(model.artifact.manifest.signature),
        )

    async def _model_infer(self, message: Any, call: Call) -> Any:
        served = self._served
        model = self._model(message.model_name, message.model_version, call)
        if served.draining:
            raise UnavailableError("the server is stopping; ask another one")
        with served.counted(model, call.left_s), served.bodies.held(call.bytes_in):
            asked = await served.apart(lambda: parse(message), call.bytes_in)

            def work(_: Any, run: Any) -> Any:
                return dump(run(asked.feeds, asked.names), asked, model.name, model.version)

            limits = [limit for limit in (asked.timeout_s, call.left_s) if limit is not None]
            return await served.answer(model, work, call.caller, min(limits, default=None))

    def _model(self, name: str, version: str, call: Call) -> Model:
        call.model = self._served.models.get(name, version or None)
        return call.model


_METHODS = {
    "ServerLive": "_server_live",
    "ServerReady": "_server_ready",
    "ModelReady": "_model_ready",
    "ServerMetadata": "_server_metadata",
    "ModelMetadata": "_model_metadata",
    "ModelInfer": "_model_infer",
}


def _told(error: Exception, request_id: str) -> tuple[grpc.StatusCode, str]:
    code = next((code for kind, code in CODES if isinstance(error, kind)), None)
    if code is not None:
        return code, f"{error}"
    _log.error("request %s failed", request_id, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"the server failed; its log says more under {request_id}"


def reserve(options: ServerOptions) -> socket.socket:
    """A socket that keeps `options.grpc_port`, or a free port, for the workers, which all listen there.
    Raises `OSError` if somebody else does."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind((options.host, options.grpc_port))
        alone.listen()  # with SO_REUSEPORT alone, a stranger's server would go unnoticed
        port = alone.getsockname()[1]
    kept = socket.socket(family, socket.SOCK_STREAM)
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind((options.host, port))
    except BaseException:
        kept.close()
        raise
    return kept
