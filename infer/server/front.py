"""What every request passes, in and out: ids, the gate, errors as JSON, the log line."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from infer.errors import DeadlineError, FeedError, InputError, OverloadedError, SessionClosedError
from infer.server import logs
from infer.server.admission import within
from infer.server.models import UnavailableError, UnknownModelError
from infer.server.oip import dump_json
from infer.server.service import Service

STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (UnknownModelError, 404),
    (FeedError, 400),
    (InputError, 400),
    (OverloadedError, 503),
    (UnavailableError, 503),
    (SessionClosedError, 503),
    (DeadlineError, 504),
)
"""Errors that are told as they are; all others are 500 with a fixed text."""

GONE = 499
"""In logs and metrics: the client hung up before it had an answer. nginx' number for that."""

_RETRY_AFTER_S = "1"
_LINGER_S = 1.0
_SMALL_BYTES, _SOON_S = 64 * 1024, 0.05
_log = logging.getLogger("infer.server")


class Front:
    """The ASGI application."""

    def __init__(self, router: Router, service: Service) -> None:
        self._router, self._service = router, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self._service  # endpoints find it there; and the router then raises its 404 and 405
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        start = time.perf_counter()
        exchange = _Exchange(scope, receive, send, self._service)
        state = scope["state"] = {"caller": "", "model": None, "bytes_in": 0}
        try:
            state["caller"] = self._service.gate.check(scope)
            await self._router(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or GONE
        except asyncio.CancelledError:  # it did not end in the time that a server which stops gives it
            exchange.give_up()
            await self._refuse(scope, exchange, UnavailableError("the server is stopping; ask another one"))
        except Exception as error:
            await self._refuse(scope, exchange, error)
        finally:
            self._tell(scope, exchange, time.perf_counter() - start)

    async def _refuse(self, scope: Scope, exchange: _Exchange, error: Exception) -> None:
        if exchange.status:  # the answer has begun: without its end, the server hangs up
            _log.error("request %s failed while it was answered", exchange.request_id, exc_info=error)
            return
        response = error_response(error, scope["path"], exchange.request_id)
        if response.status_code == 500:
            _log.error("request %s failed", exchange.request_id, exc_info=error)
        await response(scope, exchange.receive, exchange.send)

    def _tell(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        endpoint = getattr(scope.get("endpoint"), "__name__", "none")
        self._service.metrics.responses.labels(endpoint, str(exchange.status)).inc()
        model = scope["state"]["model"]
        client = scope.get("client")
        fields = {
            "client": client[0] if client else None,
            "method": scope["method"],
            "endpoint": endpoint,
            "model": model and model.name,
            "version": model and model.version,
            "status": exchange.status,
            "ms": round(seconds * 1e3, 3),
            "bytes_in": scope["state"]["bytes_in"],
            "bytes_out": exchange.bytes_out,
        }
        quiet = endpoint in ("live", "ready", "scrape")
        logs.tell(exchange.request_id, exchange.trace, fields, quiet=quiet)


class _Exchange:
    """A request and its response on the way through.

    Attributes:
        status: of the response, once it has begun; else 0.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, served: Service) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self.request_id = logs.request_id(headers.get(b"x-request-id"))
        self.trace = logs.trace(headers.get(b"traceparent"))
        self.status = 0
        self.bytes_out = 0
        self._receive, self._send, self._service = receive, send, served
        length = "" if b"transfer-encoding" in headers else headers.get(b"content-length", "0")
        self._all_read = length == "0"
        # who expects to be told to go on has sent nothing yet
        small = length.isdecimal() and len(length) <= 6 and int(length) <= _SMALL_BYTES
        self._comes_soon = small and b"expect" not in headers

    def give_up(self) -> None:
        """Wait for no more of the request."""
        self._all_read = True

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._all_read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self._all_read and self._comes_soon:
                await self._read_on(_SOON_S)  # rather than connect anew, which costs more than to refuse
            added = added_headers(self.request_id)
            # the rest is not waited for; or the next request had better go to another server
            if not self._all_read or self._service.leaving:
                added.append((b"connection", b"close"))
            message = {**message, "headers": [*message["headers"], *added]}
        elif message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
            if not self._all_read and not message.get("more_body", False):
                await self._send({**message, "more_body": True})
                # a client that still sends would lose the answer if it was hung up on
                await self._read_on(_LINGER_S)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _read_on(self, seconds: float) -> None:
        """Until all of the request is there, for so long at most."""
        with suppress(asyncio.TimeoutError):
            await within(seconds, self._read_all())

    async def _read_all(self) -> None:
        while not self._all_read:
            await self.receive()


def added_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """What every answer has beside its own headers."""
    return [
        (b"x-request-id", request_id.encode("ascii")),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
    ]


def error_response(error: Exception, path: str, request_id: str) -> Response:
    """What is answered where `error` was raised."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        status, text = error.status_code, error.detail
        headers.update(error.headers or {})
    else:
        status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
        text = f"{error}" if status != 500 else f"the server failed; its log says more under {request_id}"
    if status == 503:
        headers["retry-after"] = _RETRY_AFTER_S
    said: Any = {"error": text}
    if path.startswith("/v1/") and not path.endswith(":predict"):
        kind = "invalid_request_error" if status < 500 else "server_error"
        said = {"error": {"message": text, "type": kind, "param": None, "code": None}}
    return Response(dump_json(said), status, headers, media_type="application/json")
