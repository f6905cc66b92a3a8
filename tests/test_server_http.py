"""How bytes of answers leave the server."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from infer.server.http import JoinedWrites


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

    def get_write_buffer_size(self) -> int:
        return 7


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


def test_a_head_and_its_body_are_one_call() -> None:
    """Of the system, and for a short answer one packet for the client."""
    assert left_after([[b"head", b"body", b""], [b"next"]], close=False).sent == [b"headbody", b"next"]
