"""The endpoint of tasks: takes what people have, and gives what the task makes of it.

JSON, {"inputs": [one, two, …]}, gives a result for each; a picture, a sound or a text as the whole body
gives one. Pictures and sounds in JSON are objects with base64: {"b64": "…"}. A string is never taken as the
name of a file.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from infer.errors import InputError
from infer.server.oip import load_json
from infer.server.service import service
from infer.server.v2 import asked_model, json_response
from infer.tasks import Task

KINDS: dict[str, str] = {
    "tensors": "arrays",
    "image-classification": "image",
    "object-detection": "image",
    "image-embedding": "image",
    "face-embedding": "image",
    "image-segmentation": "image",
    "text-classification": "text",
    "token-classification": "text",
    "text-embedding": "text",
    "tabular-classification": "row",
    "tabular-regression": "row",
    "recommendation": "row",
    "voice-activity": "audio",
    "speaker-embedding": "audio",
    "audio-classification": "audio",
}
"""Task → what its inputs are: "image" and "audio" as encoded bytes; "text", "row" and "arrays" as JSON."""

MAX_INPUTS = 4096


def kind_of(task: str | None) -> str:
    """What the inputs of a task are; those of one that is not in the table are taken as JSON."""
    return KINDS.get(task or "tensors", "row")


async def predict(request: Request) -> Response:
    """Inputs of the model's task in, its results out."""
    served, model = service(request), asked_model(request)
    served.admit(model)
    spec = model.artifact.manifest.task
    kind = kind_of(spec.name if spec else None)
    with served.bodies.room(request):
        body = await served.body(request)
        content_type = request.headers.get("content-type", "application/json").partition(";")[0]
        inputs = await served.apart(lambda: _inputs(body, content_type.strip().lower(), kind), len(body))

        def work(task: Task, _: Any) -> Response:
            results = [task.to_json(result) for result in task(inputs)] if inputs else []
            return json_response(
                {"model_name": model.name, "model_version": model.version, "results": results}
            )

        return await served.answer(request, model, work)


def _inputs(body: bytes, content_type: str, kind: str) -> list[Any]:
    """The inputs that a body holds. Raises `InputError`; `HTTPException` for another type of content."""
    if content_type == "application/json":
        inputs = load_json(body).get("inputs")
        if not isinstance(inputs, list) or len(inputs) > MAX_INPUTS:
            raise InputError(f"'inputs' must be a list of at most {MAX_INPUTS}, but is {inputs!r:.60}")
        if kind in _ENCODED:
            return [_decoded(item, place) for place, item in enumerate(inputs)]
        # JSON has no tuples, which are pairs of texts to a task
        return [tuple(item) if kind == "text" and isinstance(item, list) else item for item in inputs]
    family = content_type.partition("/")[0]
    if kind in _ENCODED and (family == kind or content_type == "application/octet-stream"):
        return [body]
    if kind == "text" and content_type == "text/plain":
        try:
            return [body.decode("utf-8")]
        except UnicodeDecodeError as error:
            raise InputError(
                f"the body is not UTF-8 text ({error.reason} at byte {error.start})"
            ) from error
    wanted = f"{kind}/*" if kind in _ENCODED else "text/plain" if kind == "text" else ""
    raise HTTPException(
        415,
        f"Content-Type must be application/json{wanted and f' or {wanted}'}, but is {content_type!r:.60}",
    )


_ENCODED = ("image", "audio")


def _decoded(item: Any, place: int) -> bytes:
    """Bytes of a picture or sound. A string would be the name of a file on the server."""
    text = item.get("b64") if isinstance(item, dict) and len(item) == 1 else None
    if not isinstance(text, str):
        raise InputError(f'input {place} must be an object {{"b64": BASE64}}, but is {item!r:.60}')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"input {place} is not valid base64 ({error})") from error
