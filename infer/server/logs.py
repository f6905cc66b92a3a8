"""Log lines, for programs as JSON or for people; the ids that tie them to a request.

Source of the trace context: W3C Recommendation "Trace Context" (traceparent, version 00).
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infer.wording import shown

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)

requests = logging.getLogger("infer.requests")
"""One line for each request; its fields are in `extra`, under "fields"."""


@dataclass(frozen=True)
class Trace:
    """Where a request stands in a trace: its own span, and its caller's, if that sent one."""

    trace_id: str
    span_id: str
    parent_id: str | None


def request_id(header: str | None) -> str:
    """The caller's id of a request, or a new one."""
    return header if header and _REQUEST_ID.fullmatch(header) else secrets.token_hex(16)


def trace(traceparent: str | None) -> Trace:
    """The trace that a header goes on with, or a new one if it is absent or not valid."""
    found = _TRACEPARENT.fullmatch(traceparent or "")
    span_id = secrets.token_hex(8)
    if found:
        version, trace_id, parent_id, _, more = found.groups()
        # later versions may add fields; version 00 has none, and ff is forbidden
        if version != "ff" and not (version == "00" and more) and int(trace_id, 16) and int(parent_id, 16):
            return Trace(trace_id, span_id, parent_id)
    return Trace(secrets.token_hex(16), span_id, None)


def tell(request_id: str, trace: Trace, fields: Mapping[str, Any], *, quiet: bool) -> None:
    """The line of a request that has ended; what probes and scrapes ask all day is `quiet`."""
    ids = {
        "request_id": request_id,
        "trace_id": trace.trace_id,
        "span_id": trace.span_id,
        "parent_id": trace.parent_id,
    }
    level = logging.DEBUG if quiet else logging.INFO
    requests.log(level, "request", extra={"fields": {**ids, **fields}})


def start(as_json: bool) -> None:
    """Send what the server logs to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else _Lines())
    for name in ("infer.server", "infer.requests", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING if name.startswith("uvicorn") else logging.INFO)


class _JsonLines(logging.Formatter):
    """A JSON object a line: time (UTC), level, message, and a request's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, allow_nan=False)


class _Lines(logging.Formatter):
    """A line for people; nothing in it acts on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        said = "".join(f" {key}={value}" for key, value in fields.items() if value is not None)
        text = shown(f"{_utc(record)} {record.levelname.lower()} {record.getMessage()}{said}")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _utc(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"
