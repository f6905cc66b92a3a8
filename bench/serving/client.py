"""An open-loop client: requests go out when they are due, whether or not earlier ones were answered."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from infer.errors import BackendError
from infer.signature import Array

_MOST_CONNECTIONS = 512
"""Requests under way. A server that has so many unanswered is beyond its rate."""


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
        """The body of one answer. Raises `BackendError` if it is not 200."""

        async def ask() -> bytes:
            connection = await self._connected()
            status, body = await connection.ask(self._requests[number])
            connection.close()
            if status != 200:
                raise BackendError(f"status {status}: {body[:200].decode(errors='replace')}")
            return body

        return asyncio.run(ask())

    def turn(self, count: int) -> Array:
        """One request after another; milliseconds."""

        async def ask() -> list[float]:
            connection, found = await self._connected(), []
            for number in range(count):
                start = time.perf_counter()
                status, _ = await connection.ask(self._requests[number % len(self._requests)])
                found.append(1e3 * (time.perf_counter() - start) if status == 200 else np.inf)
            connection.close()
            return found

        return np.array(asyncio.run(ask()))

    def serve(self, due_s: Array) -> Array:
        """Each request when it is due; milliseconds since then."""
        return np.array(asyncio.run(self._serve(due_s.tolist())))

    async def _serve(self, due_s: list[float]) -> list[float]:
        idle: deque[_Connection] = deque()
        under_way = 0
        latencies = [np.inf] * len(due_s)
        start = time.perf_counter() + 0.05

        async def ask(number: int) -> None:
            nonlocal under_way
            try:
                connection = await self._idle_or_new(idle)
                raw = self._requests[number % len(self._requests)]
                status, _ = await asyncio.wait_for(connection.ask(raw), self._timeout_s)
                if status == 200:
                    latencies[number] = 1e3 * (time.perf_counter() - start - due_s[number])
                idle.append(connection)
            except (OSError, asyncio.TimeoutError):
                pass  # infinitely late, and its connection is not used again
            finally:
                under_way -= 1

        tasks = []
        for number, due in enumerate(due_s):
            wait = start + due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            if under_way < _MOST_CONNECTIONS:
                under_way += 1
                tasks.append(asyncio.ensure_future(ask(number)))
        await asyncio.gather(*tasks)
        for connection in idle:
            connection.close()
        return latencies

    async def _idle_or_new(self, idle: deque[_Connection]) -> _Connection:
        while idle:
            connection = idle.pop()
            if not connection.closed:  # servers close those that were idle for some seconds
                return connection
        return await self._connected()

    async def _connected(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        return connection


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._read = b""
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self.closed = False

    def ask(self, raw: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Status and body of the answer."""
        assert self._transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return self._waiting

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        whole = _body(head, body)
        if whole is None:
            return
        self._read = b""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((int(head[9:12]), whole))


def _body(head: bytes, rest: bytes) -> bytes | None:
    """The body that `rest` begins with, if all of it is there, in one part or in chunks."""
    headers = [line.lower().partition(b":") for line in head.split(b"\r\n")[1:]]
    fields = {name: value.strip() for name, _, value in headers}
    if fields.get(b"transfer-encoding") != b"chunked":
        length = int(fields.get(b"content-length", b"0"))
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
