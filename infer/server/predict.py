"""The endpoint of tasks: takes what people have, and gives what the task makes of it.

JSON, {"inputs": [one, two, …]}, gives a result for each; a picture, a sound or a text as the whole body
gives one. Pictures and sounds in JSON are objects with base64: {"b64": "…"}. A string is never taken as the
name of a file.
"""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from infer.errors import InputError
from infer.server.inputs import ENCODED, inputs_of, kind_of
from infer.server.oip import load_json
from infer.server.service import answer, service
from infer.server.v2 import asked_model, json_response
from infer.tasks import Task


async def predict(request: Request) -> Response:
    """Inputs of the model's task in, its results out."""
    served, model = service(request), asked_model(request)
    spec = model.artifact.manifest.task
    kind = kind_of(spec.name if spec else None)
    with served.counted(model), served.bodies.room(request) as room:
        body = await served.body(request, room)
        content_type = request.headers.get("content-type", "application/json").partition(";")[0]
        inputs = await served.apart(lambda: _inputs(body, content_type.strip().lower(), kind), len(body))

        def work(task: Task, _: Any) -> Response:
            results = [task.to_json(result) for result in task(inputs)] if inputs else []
            return json_response(
                {"model_name": model.name, "model_version": model.version, "results": results}
            )

        return await answer(request, model, work)


def _inputs(body: bytes, content_type: str, kind: str) -> list[Any]:
    """The inputs that a body holds. Raises `InputError`; `HTTPException` for another type of content."""
    if content_type == "application/json":
        return inputs_of(load_json(body).get("inputs"), kind)
    family = content_type.partition("/")[0]
    if kind in ENCODED and (family == kind or content_type == "application/octet-stream"):
        return [body]
    if kind == "text" and content_type == "text/plain":
        try:
            return [body.decode("utf-8")]
        except UnicodeDecodeError as error:
            raise InputError(
                f"the body is not UTF-8 text ({error.reason} at byte {error.start})"
            ) from error
    wanted = f"{kind}/*" if kind in ENCODED else "text/plain" if kind == "text" else ""
    raise HTTPException(
        415,
        f"Content-Type must be application/json{wanted and f' or {wanted}'}, but is {content_type!r:.60}",
    )
