"""What is refused before a model hears of it: strangers, oversized heads and bodies, and slow ones."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import sys
import zlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from infer.errors import InferError, InputError, OverloadedError
from infer.server.options import ServerOptions

T = TypeVar("T")

PAGE_PATHS = ("/", "/page.css", "/page.js", "/recording.js", "/results.js")

OPEN_PATHS = frozenset({*PAGE_PATHS, "/v2/health/live", "/v2/health/ready"})
"""What can be read without a token: nothing of the models is in it."""

MIN_TOKEN_CHARACTERS = 16
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_PART_BYTES = 1024
"""What is inflated at once: deflate makes 1032 bytes of one at most."""


class StrangerError(InferError):
    """A token is needed, and there is none of this server's."""


class Gate:
    """Who may ask, and how long the head of a request may be."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._tokens: list[bytes] = []
        self.renew(options.tokens)
        # A page of another site may have its own name point to this machine (DNS rebinding): where nobody
        # needs a token, the name that a browser was given must be this machine's.
        self._hosts = (
            {options.host, "localhost", "127.0.0.1", "::1"}
            if is_loopback(options.host) and not options.tokens
            else None
        )

    def renew(self, tokens: Sequence[str]) -> bool:
        """Let those with one of `tokens` in from now on; whether they are others than before."""
        before, self._tokens = self._tokens, [_digest(token) for token in tokens]
        return self._tokens != before

    def check(self, scope: Scope) -> str:
        """The caller's name, for fair turns. Raises `HTTPException`."""
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) + 4 for name, value in headers) > self._options.max_header_bytes:
            raise HTTPException(431, f"the headers have more than {self._options.max_header_bytes} bytes")
        host, origin = _header(headers, b"host"), _header(headers, b"origin")
        if self._hosts is not None and _host_name(host) not in self._hosts:
            raise HTTPException(403, "this server answers to the names of this machine only")
        if origin is not None and not _is_of(origin, host):
            raise HTTPException(403, "pages of other sites may not use this server")
        if not self._tokens:
            client = scope.get("client")
            return str(client[0]) if client else ""
        return self._caller(scope, _header(headers, b"authorization"))

    def _caller(self, scope: Scope, authorization: str | None) -> str:
        # the path that is routed, not one that a proxy or a header names
        if scope["path"] in OPEN_PATHS and scope["method"] in ("GET", "HEAD"):
            return ""
        try:
            return self.token_name(authorization) or ""
        except StrangerError as error:
            raise HTTPException(401, f"{error}", {"www-authenticate": "Bearer"}) from error

    def token_name(self, authorization: str | None) -> str | None:
        """Which token it is, without showing it; None if none is needed. Raises `StrangerError`."""
        if not self._tokens:
            return None
        kind, _, token = (authorization or "").partition(" ")
        given = _digest(token.strip())
        # all are compared, so that the time says nothing
        known = [number for number, digest in enumerate(self._tokens) if hmac.compare_digest(digest, given)]
        if kind.lower() != "bearer" or not known:
            raise StrangerError("send a token of this server: Authorization: Bearer TOKEN")
        return f"token {known[0]}"


async def within(seconds: float, wanted: Coroutine[Any, Any, T]) -> T:
    """What it gives. Raises `asyncio.TimeoutError` if that takes longer."""
    if sys.version_info < (3, 11):
        return await asyncio.wait_for(wanted, seconds)
    async with asyncio.timeout(seconds):  # without a task of its own
        return await wanted


class Bodies:
    """Reads bodies, whose sizes and times are bounded one by one, and their sizes together."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._held = 0

    @contextmanager
    def room(self, request: Request) -> Iterator[Room]:
        """Memory for the body of a request as it comes, until it is answered. Raises `HTTPException` if its
        headers tell of too much, and `OverloadedError` if there is room for that, but not now."""
        self._check(self._announced(request) or 0)
        with self.held(0) as room:  # what is announced need not come
            yield room

    @contextmanager
    def held(self, size_bytes: int) -> Iterator[Room]:
        """Memory for so much of a request, until it is answered. Raises `OverloadedError`."""
        room = Room(self._take)
        room.resize(size_bytes)
        try:
            yield room
        finally:
            room.resize(0)

    def _take(self, size_bytes: int) -> None:
        """So much more, or less. Raises `OverloadedError`."""
        self._check(size_bytes)
        self._held += size_bytes

    def _check(self, size_bytes: int) -> None:
        """Raises `OverloadedError` if there is no room for so much more."""
        if size_bytes > 0 and self._held + size_bytes > self._options.max_bodies_bytes:
            raise OverloadedError("the bodies of other requests take all memory for them; try again later")

    async def read(self, request: Request, room: Room) -> bytes:
        """The body as it was sent. Raises `HTTPException`, `OverloadedError` and `ClientDisconnect`."""
        try:
            return await within(self._options.body_timeout_s, self._read(request, room))
        except asyncio.TimeoutError as error:
            raise HTTPException(
                408, f"the body was not there within {self._options.body_timeout_s:g} s"
            ) from error

    def _announced(self, request: Request) -> int | None:
        text, most = request.headers.get("content-length"), self._options.max_body_bytes
        if text is None:
            return None
        if not re.fullmatch("[0-9]{1,19}", text, re.ASCII):
            raise HTTPException(400, "Content-Length must be digits")
        if int(text) > most:
            raise _too_large(most)
        return int(text)

    async def _read(self, request: Request, room: Room) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            if len(body) + len(chunk) > self._options.max_body_bytes:
                raise _too_large(self._options.max_body_bytes)
            room.resize(len(body) + len(chunk))
            body += chunk
        return bytes(body)


class Room:
    """Memory that one request has taken of what there is for all."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self.size_bytes = 0

    def resize(self, size_bytes: int) -> None:
        """Hold so much. Raises `OverloadedError` if others hold it."""
        self._take(size_bytes - self.size_bytes)
        self.size_bytes = size_bytes


def inflated_size(body: bytes, encoding: str, max_bytes: int) -> int:
    """How many bytes `body` has without its Content-Encoding, found without holding them. Raises
    `HTTPException` if they are more than `max_bytes`, or the encoding is unknown, or the body not valid."""
    bits = _window_bits(encoding)
    if bits is None:
        return len(body)
    if bits == _WINDOW_BITS["gzip"] and int.from_bytes(body[-4:], "little") > max_bytes:
        raise _too_large(max_bytes)  # a stream's own word, in its end (RFC 1952, section 2.3.1)
    inflater, size, end = zlib.decompressobj(bits), 0, 0
    try:
        while end < len(body) and not inflater.eof:
            start, end = end, end + _PART_BYTES
            size += len(inflater.decompress(body[start:end]))
            if size > max_bytes:
                raise _too_large(max_bytes)
    except zlib.error as error:
        raise HTTPException(400, f"the body is not valid {encoding.strip().lower()}") from error
    if not inflater.eof or inflater.unused_data or end < len(body):
        raise HTTPException(400, f"the body is not one whole {encoding.strip().lower()} stream")
    return size


def inflated(body: bytes, encoding: str, size: int) -> bytes:
    """`body` without its Content-Encoding, which then has so many bytes."""
    bits = _window_bits(encoding)
    return body if bits is None else zlib.decompress(body, bits, max(1, size))


def _window_bits(encoding: str) -> int | None:
    """zlib's number for a Content-Encoding, None for identity. Raises `HTTPException`."""
    name = encoding.strip().lower()
    if name == "identity":
        return None
    if name not in _WINDOW_BITS:
        raise HTTPException(
            415, f"Content-Encoding must be gzip, deflate or identity, but is {encoding!r:.60}"
        )
    return _WINDOW_BITS[name]


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine's own address, which no other machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens of a file: one a line, and comments after #. Raises `InputError`, without showing them."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise InputError(f"the tokens in '{path}' cannot be read: {reason}") from error
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise InputError(f"'{path}' holds no token; write one a line")
    if short := [number for number, token in enumerate(tokens, 1) if len(token) < MIN_TOKEN_CHARACTERS]:
        raise InputError(f"token {short[0]} of '{path}' has fewer than {MIN_TOKEN_CHARACTERS} characters")
    return tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def _is_of(origin: str, host: str | None) -> bool:
    """Whether an Origin header names this host and port; one that is no address names none."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def _host_name(host: str | None) -> str:
    """The name in a Host header, without a port and an IPv6 address' brackets."""
    found = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::\d+)?|([^:\[\]]*)(?::\d+)?", host or "")
    return (found[1] or found[2] or "").lower() if found else ""


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the body has more than the {most} bytes that this server takes")
