"""The protobuf wire format (protobuf.dev/programming-guides/encoding), read strictly.

Whatever parsers of protobuf read in different ways is refused, because a backend's is another one.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_SHORT_BYTES, _MAX_VARINT_BYTES = 5, 10  # of 32 and of 64 bits, 7 to a byte


class WireError(ValueError):
    """What was read is no message, or one that parsers read in different ways."""


def fields_once(view: memoryview, repeated: tuple[int, ...] = ()) -> dict[int, int | memoryview]:
    """The fields of a message by number. One given twice, which protobuf would merge, is refused."""
    found: dict[int, int | memoryview] = {}
    for number, value in fields(view):
        if number in found and number not in repeated:
            raise WireError(f"field {number} is given twice")
        found[number] = value
    return found


def fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The (field number, value) pairs of one message; numbers for varints, views for bytes.

    Values of 32 and 64 bits are passed over: no field that is looked at has one, and a parser takes a
    known field of another wire type for an unknown one.
    """
    position, end = 0, len(view)
    while position < end:
        # some parsers cut tags and lengths to 32 bits, and others do not
        key, position = varint(view, position, _MAX_SHORT_BYTES)
        number, kind = key >> 3, key & 7
        if number == 0 or key >= 2**32:
            raise WireError(f"field number {number}")
        if kind == _VARINT:
            value, position = varint(view, position)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = varint(view, position, _MAX_SHORT_BYTES)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise WireError(f"wire type {kind}")
        if length > end - position:
            raise WireError("it is cut short")
        if kind == _BYTES:
            yield number, view[position : position + length]
        position += length


def varint(view: memoryview, position: int, max_bytes: int = _MAX_VARINT_BYTES) -> tuple[int, int]:
    """A number that starts at `position`, and where what follows it starts."""
    value = 0
    for place in range(max_bytes):
        if position >= len(view):
            raise WireError("it is cut short")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, position
    raise WireError(f"a number has more than {max_bytes} bytes")


def as_int(value: int | memoryview) -> int:
    """A varint as the int64 it stands for."""
    if not isinstance(value, int):
        raise WireError("bytes where a number should be")
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def as_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise WireError("a number where a message should be")
    return value


def as_text(value: int | memoryview) -> str:
    return bytes(as_bytes(value)).decode("utf-8")
