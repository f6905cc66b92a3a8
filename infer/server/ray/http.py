"""HTTP of a replica: {"inputs": [one, two, …]} in, {"results": [a result for each]} out.

What a result is in JSON is what `infer run --json` prints. Pictures and sounds are objects with base64,
{"b64": "…"}: a string is never taken as the name of a file.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from infer.errors import DeadlineError, FeedError, InputError, OverloadedError, missing_package
from infer.server.inputs import inputs_of, kind_of
from infer.server.oip import dump_json, load_json

try:
    from starlette.requests import Request
    from starlette.responses import Response
except ImportError as _error:
    raise missing_package((_error.name or "orjson").partition(".")[0], "ray", _error) from _error

_log = logging.getLogger("ray.serve")


class UnknownModelError(InputError):
    """A request names a model that is not served here."""


class TooLargeError(InputError):
    """A body has more bytes than a request may have."""


STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (UnknownModelError, 404),
    (TooLargeError, 413),
    (FeedError, 400),
    (InputError, 400),
    (OverloadedError, 503),
    (DeadlineError, 504),
)
"""Errors that are told as they are; all others are 500 with a fixed text."""


async def read_inputs(request: Request, task: str, max_bytes: int) -> list[Any]:
    """The inputs, of the task called `task`, that a request holds. Raises `InputError`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLargeError(f"the body has more than the {max_bytes} bytes that a request may have")
    return inputs_of(load_json(body).get("inputs"), kind_of(task))


def results_response(results: Sequence[Any]) -> Response:
    """Results of `Task.to_json`; floats that are not finite become null."""
    return _json({"results": list(results)}, 200)


def error_response(error: Exception) -> Response:
    """The status and the text for an error."""
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    if status == 500:
        _log.error("a request failed", exc_info=error)
    headers = {"retry-after": "1"} if status == 503 else {}
    return _json(
        {"error": str(error) if status != 500 else "the model failed; see the log"}, status, headers
    )


def _json(data: Any, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(dump_json(data), status, headers, media_type="application/json")
