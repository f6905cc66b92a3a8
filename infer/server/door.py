"""Refusals before the application hears of a request, because its model has too many.

A server that is asked for more than it can answer spends its cores on refusing, and the long way (h11, a
task, the router, an endpoint, a log line) takes four times as much of them. Only a plain request that came
as a whole is refused here; what becomes of all others, and of those that anything else may be wrong with,
is the application's to say.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Iterable

from starlette.exceptions import HTTPException

from infer.errors import OverloadedError
from infer.server import logs
from infer.server.front import added_headers, error_response
from infer.server.models import Model, UnknownModelError
from infer.server.predict import predict
from infer.server.service import Service
from infer.server.v2 import infer_model

_REQUEST = re.compile(
    rb"POST (?P<path>(?P<before>/v[12]/models/)(?P<name>[\w.-]{1,128})"
    rb"(?:/versions/(?P<version>[0-9]{1,9}))?(?P<after>:predict|/infer)) HTTP/1\.1\r\n"
    rb"(?P<headers>(?:[A-Za-z0-9-]+:[\t\x20-\x7e]*\r\n)+)\r\n"
)
_ENDPOINTS = {(b"/v1/models/", b":predict"): predict, (b"/v2/models/", b"/infer"): infer_model}
"""What begins and ends a path → what answers it."""

_SIZE = re.compile(rb"[0-9]{1,9}")
_FRAMING = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
"""Headers that say where a request ends, or what becomes of its connection."""

_TOLD_EVERY_S = 1.0
_log = logging.getLogger("infer.server")

Headers = Iterable[tuple[bytes, bytes]]


class Door:
    """Refuses what the service would, with the same answer. It belongs to the event loop's thread."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._untold: Counter[str] = Counter()  # model → refusals that the log has not been told

    def refusal(self, data: bytes, defaults: Headers) -> bytes | None:
        """What is answered to `data`, the bytes that came on a connection on which nothing is under way,
        with the headers that each answer has; None if that is the application's to say."""
        service = self._service
        if service.leaving or not any(map(service.overload, service.models)):
            return None
        found = _REQUEST.match(data)
        if found is None:
            return None
        endpoint = _ENDPOINTS.get((found["before"], found["after"]))
        model, headers = self._asked(found["name"], found["version"]), _headers(found["headers"])
        said = None if model is None else service.overload(model)
        if endpoint is None or model is None or said is None:
            return None
        if not _is_whole(headers, len(data) - found.end()):
            return None
        path = found["path"].decode("ascii")
        try:
            service.gate.check({"headers": headers, "path": path, "method": "POST"})
        except HTTPException:
            return None
        service.metrics.responses.labels(endpoint.__name__, "503").inc()
        service.metrics.requests.labels(model.name, model.version, "refused").inc()
        self._note(model)
        given = dict(headers).get(b"x-request-id")
        request_id = logs.request_id(None if given is None else given.decode("latin-1"))
        response = error_response(OverloadedError(said), path, request_id)
        lines = (*defaults, *response.raw_headers, *added_headers(request_id))
        head = b"".join(b"%b: %b\r\n" % line for line in lines)
        return b"HTTP/1.1 503 Service Unavailable\r\n" + head + b"\r\n" + response.body

    def _asked(self, name: bytes, version: bytes | None) -> Model | None:
        try:
            number = None if version is None else version.decode("ascii")
            return self._service.models.get(name.decode("ascii"), number)
        except UnknownModelError:
            return None

    def _note(self, model: Model) -> None:
        """For the log, which is told how many, not of each."""
        if not self._untold:
            asyncio.get_running_loop().call_later(_TOLD_EVERY_S, self.tell)
        self._untold[model.name] += 1

    def tell(self) -> None:
        """Tell the log what it was not told yet."""
        for name, count in self._untold.items():
            _log.warning(
                "requests for '%s' refused within %g s, because too many wait: %d",
                name,
                _TOLD_EVERY_S,
                count,
            )
        self._untold.clear()


def _headers(lines: bytes) -> list[tuple[bytes, bytes]]:
    split = (line.partition(b":") for line in lines.split(b"\r\n")[:-1])
    return [(name.lower(), value.strip(b" \t")) for name, _, value in split]


def _is_whole(headers: Headers, size: int) -> bool:
    """Whether a body of so many bytes is all that belongs to the request, and anybody would say so."""
    names = Counter(name for name, _ in headers)
    if names[b"content-length"] != 1 or names[b"host"] != 1 or names.keys() & _FRAMING:
        return False
    if any(name == b"connection" and value.lower() != b"keep-alive" for name, value in headers):
        return False
    told = next(value for name, value in headers if name == b"content-length")
    return _SIZE.fullmatch(told) is not None and int(told) == size
