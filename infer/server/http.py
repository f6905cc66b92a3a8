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
from collections.abc import Callable, Iterator
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

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
_log = logging.getLogger("infer.server")


def make_protocol(options: ServerOptions) -> type[H11Protocol]:
    """uvicorn's protocol of one connection, with the deadlines of `options`."""

    class Connection(H11Protocol):
        """Hangs up on clients that are silent in the head of a request, or do not read their answer."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head = _Alarm(options.header_timeout_s, self._head_is_late)
            self._writing = _Alarm(options.write_timeout_s, transport.abort)
            if len(self.connections) > options.max_connections:
                transport.write(_FULL)
                transport.close()
                return
            self._await_head()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            self._await_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.off()
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
            hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
            self._say(431 if hint == 431 else 400)

        def _await_head(self) -> None:
            """Keep the time of a head that has not come; bytes that trickle in do not begin it anew."""
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
                self._head.off()
            else:
                self._head.on()

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


class _Alarm:
    """Calls `late` once it was on for `after_s`."""

    def __init__(self, after_s: float, late: Callable[[], None]) -> None:
        self._after_s, self._late = after_s, late
        self._timer: asyncio.TimerHandle | None = None

    def on(self) -> None:
        """Begin, unless it is on already."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._late)

    def off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """One process that serves. SIGTERM and SIGINT drain it; then it returns, as after any work done."""

    def __init__(self, app: Any, options: ServerOptions, on_drain: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=make_protocol(options),
                ws="none",
                lifespan="on",
                loop="asyncio",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=options.max_header_bytes,
                timeout_keep_alive=max(1, round(options.header_timeout_s)),
                timeout_graceful_shutdown=max(1, round(options.drain_s)),
            )
        )
        self._drain_s = options.drain_s
        self._on_drain = on_drain

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
        """Begin to drain; a second Ctrl-C ends at once."""
        super().handle_exit(sig, frame)
        self.drain()

    def drain(self) -> None:
        """Answer what is there, take nothing new, stop."""
        self.should_exit = True
        self._on_drain()
        # a run that does not return would keep the process for ever
        timer = threading.Timer(self._drain_s + _GRACE_S, _end, args=(1,))
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
