"""An open-loop client: requests go out when they are due, whether or not earlier ones were answered.

One thread and a selector: client and server share the cores here, and what asyncio takes for a request
would be missing in the server.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from infer.errors import BackendError
from infer.signature import Array

_MOST_CONNECTIONS = 512
"""Requests under way. A server that has so many unanswered is beyond its rate."""

_PART_BYTES = 2**18
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_LAST = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


def request(path: str, body: bytes) -> bytes:
    """An HTTP/1.1 request with a JSON body, on a connection that stays open."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class HttpQuery:
    """A server as a query of `infer.measure`: request i of a turn is number i modulo their count.

    An answer that is not 200 counts as infinitely late.
    """

    def __init__(self, port: int, requests: Sequence[bytes], timeout_s: float = 10.0) -> None:
        self._port, self._requests, self._timeout_s = port, requests, timeout_s

    def answer(self, number: int) -> bytes:
        """The body of one answer. Raises `OSError`, and `BackendError` if it is not 200."""
        connection = _Connection(self._port, self._timeout_s)
        try:
            found = connection.ask(self._requests[number])
        finally:
            connection.close()
        if found.status != 200:
            raise BackendError(f"status {found.status}: {found.body[:200].decode(errors='replace')}")
        return found.body

    def turn(self, count: int) -> Array:
        """One request after another; milliseconds. Raises `OSError`."""
        connection, taken = _Connection(self._port, self._timeout_s), []
        try:
            for number in range(count):
                start = time.perf_counter()
                found = connection.ask(self._requests[number % len(self._requests)])
                taken.append(1e3 * (time.perf_counter() - start) if found.status == 200 else np.inf)
        finally:
            connection.close()
        return np.array(taken)

    def serve(self, due_s: Array) -> Array:
        """Each request when it is due; milliseconds since then."""
        latencies, due = np.full(len(due_s), np.inf), due_s.tolist()
        with _Pool(self._port, self._timeout_s) as pool:
            number, start = 0, time.perf_counter() + 0.05
            while number < len(due) or pool.asked:
                now = time.perf_counter() - start
                while number < len(due) and due[number] <= now:
                    if len(pool.asked) < _MOST_CONNECTIONS:
                        pool.send(self._requests[number % len(self._requests)], number)
                    number += 1
                now = time.perf_counter() - start
                wait_s = due[number] - now if number < len(due) else self._timeout_s * bool(pool.asked)
                for answered, status in pool.answers(wait_s):
                    if status == 200:
                        latencies[answered] = 1e3 * (time.perf_counter() - start - due[answered])
        return latencies


@dataclass(frozen=True)
class _Answer:
    """`last`: whether the server closes the connection after it."""

    status: int
    body: bytes
    last: bool


class _Pool:
    """Connections that wait for an answer, or idle.

    Attributes:
        asked: those that wait → when it is too late; what was asked first comes first.
    """

    def __init__(self, port: int, timeout_s: float) -> None:
        self._port, self._timeout_s = port, timeout_s
        # epoll and poll wait for whole milliseconds, and requests would go out late
        self._selector = selectors.SelectSelector()
        self._idle: list[_Connection] = []
        self.asked: dict[_Connection, float] = {}

    def __enter__(self) -> _Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in [*self.asked, *self._idle]:
            self._drop(connection)
        self._selector.close()

    def send(self, raw: bytes, number: int) -> None:
        """Request `number`; one that cannot be sent is never answered."""
        try:
            connection = self._idle.pop() if self._idle else self._connected()
        except OSError:
            return
        connection.number = number
        self.asked[connection] = time.monotonic() + self._timeout_s
        try:
            if not connection.send(raw):
                self._watch(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
        except OSError:
            self._drop(connection)

    def answers(self, wait_s: float) -> Iterator[tuple[int, int]]:
        """Number and status of what is answered, or will be within `wait_s`; none if the first to come is
        no whole answer."""
        now = time.monotonic()
        while self.asked and (first := next(iter(self.asked))) and self.asked[first] <= now:
            self._drop(first)
        if self.asked:
            wait_s = min(wait_s, self.asked[next(iter(self.asked))] - now)
        for key, events in self._selector.select(max(0.0, wait_s)):
            connection: _Connection = key.data
            try:
                if events & selectors.EVENT_WRITE and connection.send():
                    self._watch(connection, selectors.EVENT_READ)
                found = connection.read() if events & selectors.EVENT_READ else None
            except OSError:  # of those that idle, too: servers close them after some time
                self._drop(connection)
                continue
            if found is None:
                continue
            if found.last:
                self._drop(connection)
            else:
                del self.asked[connection]
                self._idle.append(connection)
            yield connection.number, found.status

    def _connected(self) -> _Connection:
        connection = _Connection(self._port, 0.0)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def _watch(self, connection: _Connection, events: int) -> None:
        self._selector.modify(connection.socket, events, connection)

    def _drop(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.close()
        if self.asked.pop(connection, None) is None:
            self._idle.remove(connection)


class _Connection:
    """One request at a time.

    Attributes:
        number: of the request that it was asked last.
    """

    def __init__(self, port: int, timeout_s: float) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(timeout_s)
        self.number = -1
        self._unsent = self._read = b""

    def ask(self, raw: bytes) -> _Answer:
        """Waits for the answer. Raises `OSError`."""
        self.socket.sendall(raw)
        while (found := self.read()) is None:
            pass
        return found

    def send(self, raw: bytes = b"") -> bool:
        """As much of what is to be sent as there is room for; whether that is all. Raises `OSError`."""
        unsent = self._unsent + raw
        try:
            self._unsent = unsent[self.socket.send(unsent) :]
        except BlockingIOError:
            self._unsent = unsent
        return not self._unsent

    def read(self) -> _Answer | None:
        """The answer, once all of it is there. Raises `OSError`."""
        try:
            part = self.socket.recv(_PART_BYTES)
        except BlockingIOError:
            return None
        if not part:
            raise ConnectionResetError("the server closed the connection")
        self._read += part
        head, found, rest = self._read.partition(b"\r\n\r\n")
        body = _body(head, rest) if found else None
        if body is None:
            return None
        self._read = b""
        return _Answer(int(head[9:12]), body, _LAST.search(head) is not None)

    def close(self) -> None:
        self.socket.close()


def _body(head: bytes, rest: bytes) -> bytes | None:
    """The body that `rest` begins with, if all of it is there, in one part or in chunks."""
    if not _CHUNKED.search(head):
        told = _LENGTH.search(head)
        length = int(told[1]) if told else 0
        return rest[:length] if len(rest) >= length else None
    parts = []
    while True:
        size, found, rest = rest.partition(b"\r\n")
        length = int(size or b"0", 16)
        if not found or len(rest) < length + 2:
            return None
        if not length:
            return b"".join(parts)
        parts.append(rest[:length])
        rest = rest[length + 2 :]
