"""HTTP for the application: uvicorn, with the deadlines and limits that it lacks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from types import FrameType
from typing import Any

from infer.errors import missing_package
from infer.server.options import ServerOptions

try:
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as _error:
    raise missing_package("uvicorn", "serve", _error) from _error

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE_S = 0.8
"""What stopping may take beside draining, before the process is ended with what still runs."""

_TOLD_ONCE_S = 1.0
_SMALL_BYTES = 64 * 1024

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
_log = logging.getLogger("infer.server")


Refusal = Callable[[bytes, Iterable[tuple[bytes, bytes]]], bytes | None]
"""What is answered to bytes that came, with headers that each answer has, without the application: see
`infer.server.door`."""


def _never(data: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuses nothing."""


def make_protocol(options: ServerOptions, refusal: Refusal = _never) -> type[H11Protocol]:
    """uvicorn's protocol of one connection, with the deadlines of `options`."""

    class Connection(H11Protocol):
        """Hangs up on clients that are silent in the head of a request, or do not read their answer."""

        _answered = False  # any request yet

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(JoinedWrites(transport))  # type: ignore[arg-type]
            self._head = _Alarm(options.header_timeout_s, self._head_is_late)
            self._idle = _Alarm(options.keep_alive_s, self.transport.close)
            self._writing = _Alarm(options.write_timeout_s, self.transport.abort)
            if len(self.connections) > options.max_connections and not self._has_place():
                self.transport.write(_FULL)
                self.transport.close()
                return
            self._await_head()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if not self._refused(data):
                super().data_received(data)
            self._await_head()

        def _refused(self, data: bytes) -> bool:
            """Whether `data` was refused, which came while nothing else was under way."""
            idle = (
                self.conn.their_state is self.conn.our_state is h11.IDLE and not self.conn.trailing_data[0]
            )
            if not idle or self.flow.write_paused:
                return False
            answer = refusal(data, self.server_state.default_headers)
            if answer is None:
                return False
            self.transport.write(answer)
            self._answered = True
            self._idle.off()  # it begins anew
            return True

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._unset_keepalive_if_required()  # bytes that are no head would end it
            self._answered = True
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.off()
            self._idle.off()
            self._writing.off()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writing.on()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._writing.off()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP; uvicorn calls this while it handles the parser's error."""
            self._head.off()
            self._idle.off()
            hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
            self._say(431 if hint == 431 else 400)

        def _await_head(self) -> None:
            """Keep the time of a head that has not come; bytes that trickle in do not begin it anew."""
            awaited = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
            begun = not self._answered or bool(self.conn.trailing_data[0])
            for alarm, due in ((self._head, awaited and begun), (self._idle, awaited and not begun)):
                if due:
                    alarm.on()
                else:
                    alarm.off()

        def _has_place(self) -> bool:
            """Whether there is room for this connection, for which another one may have to go."""
            alive = [
                other
                for other in self.connections
                if isinstance(other, Connection) and not other.transport.is_closing()
            ]
            if len(alive) <= options.max_connections:
                return True
            of_no_use = [other for other in alive if other is not self and other.unused is not None]
            if not of_no_use:
                return False
            min(of_no_use, key=lambda other: other.unused or (False, 0.0)).transport.close()
            return True

        @property
        def unused(self) -> tuple[bool, float] | None:
            """Which goes first of connections that nothing came on yet, and then of those that are idle
            between two requests; None for others."""
            if self.transport.get_write_buffer_size() or self.conn.trailing_data[0]:
                return None
            due = self._idle.due if self._answered else self._head.due
            return None if due is None else (self._answered, due)

        def _head_is_late(self) -> None:
            if self.transport.is_closing():
                return
            if self.conn.trailing_data[0]:
                self._say(408)
            else:  # nothing was asked, so nothing is answered
                self.transport.close()

        def _say(self, status: int) -> None:
            """An answer to what was no whole request; the connection ends with it."""
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                texts = {400: "this is not valid HTTP/1.1", 408: "the head of the request is late"}
                text = texts.get(status, f"the head has more than {options.max_header_bytes} bytes")
                body = f'{{"error":"{text}"}}'.encode("ascii")
                headers = [
                    ("content-type", "application/json"),
                    ("content-length", str(len(body))),
                    ("connection", "close"),
                ]
                with contextlib.suppress(h11.LocalProtocolError):
                    reason = HTTPStatus(status).phrase
                    response = h11.Response(status_code=status, headers=headers, reason=reason)
                    for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                        self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Connection


class JoinedWrites:
    """A transport that sends together what is written in one turn of the event loop.

    uvicorn writes the head of an answer and its body apart: two calls of the system, and two packets.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._written = transport, bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if len(data) > _SMALL_BYTES:  # rather two calls than a copy
            self._send()
            self._transport.write(data)
            return
        if not self._written:
            asyncio.get_running_loop().call_soon(self._send)
        self._written += data
        if len(self._written) > _SMALL_BYTES:  # so that a client which reads slowly is noticed
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return len(self._written) + self._transport.get_write_buffer_size()

    def _send(self) -> None:
        if self._written:
            written, self._written = self._written, bytearray()
            self._transport.write(written)


class _Alarm:
    """Calls `late` once it was on for `after_s`."""

    def __init__(self, after_s: float, late: Callable[[], None]) -> None:
        self._after_s, self._late = after_s, late
        self._timer: asyncio.TimerHandle | None = None

    @property
    def due(self) -> float | None:
        """When, by the event loop's clock; None while it is off."""
        return None if self._timer is None else self._timer.when()

    def on(self) -> None:
        """Begin, unless it is on already."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._late)

    def off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """One process that serves. At SIGTERM and SIGINT it leaves, drains, and returns as after any work."""

    def __init__(
        self,
        app: Any,
        options: ServerOptions,
        on_leave: Callable[[], None],
        on_drain: Callable[[], None],
        refusal: Refusal = _never,
    ) -> None:
        """`on_leave` is called when it is told to stop, `on_drain` when it takes nothing new any more."""
        super().__init__(
            uvicorn.Config(
                app,
                http=make_protocol(options, refusal),
                ws="none",
                lifespan="on",
                loop="asyncio",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=options.max_header_bytes,
                timeout_graceful_shutdown=max(1, round(options.drain_s)),
            )
        )
        self._options = options
        self._on_leave, self._on_drain = on_leave, on_drain
        self._told_at: float | None = None  # to leave
        self._drained = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again in the end, and the exit code would be a failure's."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Leave, then drain; a second signal drains at once, and a Ctrl-C after that ends at once."""
        if self._options.lame_duck_s and not self._drained:
            if self._told_at is None:
                self._told_at = time.monotonic()
                self._on_leave()
                _later(self._options.lame_duck_s, self.drain)
                return
            # who tells a group of processes tells a worker twice: itself, and through its parent
            if time.monotonic() - self._told_at < _TOLD_ONCE_S:
                return
        super().handle_exit(sig, frame)
        self.drain()

    def drain(self) -> None:
        """Answer what is there, take nothing new, stop."""
        if self._drained:
            return
        self._drained = True
        # a run that does not return would keep the process for ever
        _later(self._options.drain_s + _GRACE_S, lambda: _end(1))
        self._on_leave()
        self.should_exit = True
        self._on_drain()


def _later(after_s: float, call: Callable[[], None]) -> None:
    """Call it then, unless the process has ended."""
    timer = threading.Timer(after_s, call)
    timer.daemon = True
    timer.start()


def _end(status: int) -> None:
    _log.error("work that did not end in time is given up")
    logging.shutdown()
    os._exit(status)


def bind(options: ServerOptions) -> socket.socket:
    """A listening socket. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named: else an answer's body waits
    # until its head is acknowledged, 40 ms later
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(2048)
        listener.setblocking(False)
        listener.set_inheritable(True)
    except BaseException:
        listener.close()
        raise
    return listener
