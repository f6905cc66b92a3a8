"""How bytes of answers leave the server."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from hypothesis import example, given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from infer.server.http import JoinedWrites, make_protocol
from infer.server.options import ServerOptions


class Wire:
    """A transport that keeps what it is told to send, call by call."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        raise AssertionError("nothing here takes so long")

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 7

    def get_extra_info(self, name: str) -> None:
        return None

    def resume_reading(self) -> None:
        pass


def left_after(turns: list[list[bytes]], *, close: bool) -> Wire:
    """What is sent if each turn of the event loop writes so."""
    wire = Wire()
    transport: Any = wire
    joined = JoinedWrites(transport)

    async def write() -> None:
        for turn in turns:
            for data in turn:
                joined.write(data)
            if turn is not turns[-1]:
                await asyncio.sleep(0)
        unsent = sum(map(len, (data for turn in turns for data in turn))) - sum(map(len, wire.sent))
        assert joined.get_write_buffer_size() == unsent + 7
        if close:
            joined.close()
        else:
            await asyncio.sleep(0)

    asyncio.run(write())
    assert wire.closed == close
    return wire


@given(st.lists(st.lists(st.sampled_from([b"", b"head", b"body" * 9, b"x" * 70_000]))), st.booleans())
@example([[b"head", b"body"]], False)
@example([[b"head", b"x" * 70_000, b"tail"]], True)
def test_all_that_is_written_is_sent_in_order(turns: list[list[bytes]], close: bool) -> None:
    """However it is cut into turns, and before the end of the connection."""
    wire = left_after(turns, close=close)
    assert b"".join(wire.sent) == b"".join(data for turn in turns for data in turn)


def test_an_answer_leaves_in_one_call() -> None:
    """Of the system, head and body, as uvicorn sends them."""
    wire = Wire()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"body"})

    async def ask() -> None:
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        config.load()
        kind: Any = make_protocol(ServerOptions())
        protocol = kind(config=config, server_state=ServerState(), app_state={})
        protocol.connection_made(wire)
        protocol.data_received(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        await asyncio.sleep(0.01)
        protocol.connection_lost(None)

    asyncio.run(ask())
    (answer,) = wire.sent
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nbody")


def test_a_head_and_its_body_are_one_part() -> None:
    """What another turn of the loop writes is the next one."""
    assert left_after([[b"head", b"body", b""], [b"next"]], close=False).sent == [b"headbody", b"next"]
