"""The endpoints of the Open Inference Protocol, version 2."""

from __future__ import annotations

import zlib
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import infer
from infer.server import oip
from infer.server.models import Model, UnavailableError
from infer.server.service import answer, service

PLATFORM = "onnx_onnxv1"
LENGTH_HEADER = "inference-header-content-length"
_COMPRESSED_FROM_BYTES = 1024


async def live(request: Request) -> Response:
    """The process answers."""
    return json_response({"live": True})


async def ready(request: Request) -> Response:
    """All models are loaded and warm, and the server is not stopping; else 503."""
    found = service(request).ready
    return json_response({"ready": found}, 200 if found else 503)


async def server_metadata(request: Request) -> Response:
    return json_response(
        {"name": "infer", "version": infer.__version__, "extensions": list(oip.EXTENSIONS)}
    )


async def model_index(request: Request) -> Response:
    """Every model and version, as in Triton's repository index."""
    return json_response(
        [
            {"name": model.name, "version": model.version, "state": model.state, "reason": ""}
            for model in service(request).models
        ]
    )


async def model_list(request: Request) -> Response:
    names = dict.fromkeys(model.name for model in service(request).models)
    return json_response({"models": list(names)})


async def model_metadata(request: Request) -> Response:
    model = asked_model(request)
    return json_response(
        {
            "name": model.name,
            "versions": service(request).models.versions(model.name),
            "platform": PLATFORM,
            **oip.describe(model.artifact.manifest.signature),
        }
    )


async def model_config(request: Request) -> Response:
    """What Triton's clients ask of a model's configuration before they measure it."""
    model = asked_model(request)
    described = oip.describe(model.artifact.manifest.signature)

    def tensors(kind: str) -> list[dict[str, Any]]:
        return [
            {
                "name": tensor["name"],
                "data_type": "TYPE_" + {"BYTES": "STRING"}.get(tensor["datatype"], tensor["datatype"]),
                "dims": tensor["shape"],
            }
            for tensor in described[kind]
        ]

    return json_response(
        {
            "name": model.name,
            "platform": PLATFORM,
            "backend": model.plan.backend,
            # 0: the batch is one of the dims
            "max_batch_size": 0,
            "input": tensors("inputs"),
            "output": tensors("outputs"),
        }
    )


async def model_statistics(request: Request) -> Response:
    """Counts and times since the start, in the form of Triton's statistics, as far as they are known."""
    served, model = service(request), asked_model(request)
    totals = await served.apart(lambda: served.metrics.totals(model), 2**20)
    counts = {name.removeprefix("nv_inference_"): round(value) for name, value in totals.items()}
    runs = counts["exec_count"]
    found = {
        "name": model.name,
        "version": model.version,
        "inference_count": counts["count"],
        "execution_count": runs,
        "inference_stats": {
            "success": {"count": counts["request_success"], "ns": 1000 * counts["request_duration_us"]},
            "fail": {"count": counts["request_failure"]},
            "queue": {"count": counts["request_success"], "ns": 1000 * counts["queue_duration_us"]},
            "compute_infer": {"count": runs, "ns": 1000 * counts["compute_infer_duration_us"]},
        },
    }
    return json_response({"model_stats": [found]})


async def model_ready(request: Request) -> Response:
    model = asked_model(request)
    if service(request).leaving:
        raise UnavailableError("the server is stopping; ask another one")
    if not service(request).models.can_answer(model):
        raise UnavailableError(f"the model '{model.name}' is not ready: {model.state.lower()}")
    return json_response({"name": model.name, "ready": True})


async def infer_model(request: Request) -> Response:
    """Feeds in, outputs out."""
    served, model = service(request), asked_model(request)
    with served.counted(model), served.bodies.room(request) as room:
        body = await served.body(request, room)
        length = oip.json_length(request.headers.get(LENGTH_HEADER), len(body))
        asked = await served.apart(lambda: oip.parse_request(body, length), len(body))
        encoding = _wanted_encoding(request)

        def work(_: Any, run: Any) -> Response:
            outputs = run(asked.feeds, asked.names)
            return _answer(*oip.dump_answer(outputs, asked, model.name, model.version), encoding)

        return await answer(request, model, work, asked.timeout_s)


def asked_model(request: Request) -> Model:
    """The model that the path names. Raises `UnknownModelError`."""
    model = service(request).models.get(request.path_params["model"], request.path_params.get("version"))
    request.state.model = model
    return model


def json_response(data: Any, status: int = 200) -> Response:
    return Response(oip.dump_json(data), status, media_type="application/json")


def _answer(body: bytes, length: int | None, encoding: str | None) -> Response:
    headers = {} if length is None else {LENGTH_HEADER: str(length)}
    if encoding and len(body) >= _COMPRESSED_FROM_BYTES:
        packer = zlib.compressobj(1, wbits=31 if encoding == "gzip" else 15)
        body = packer.compress(body) + packer.flush()
        headers["content-encoding"] = encoding
    return Response(
        body,
        headers=headers,
        media_type="application/json" if length is None else "application/octet-stream",
    )


def _wanted_encoding(request: Request) -> str | None:
    """gzip or deflate, if a client names that alone, as tritonclient does when it is told to. HTTP
    libraries send a list of what they could read, unasked, and numbers hardly shrink for the time it
    takes."""
    accepted = request.headers.get("accept-encoding", "").strip().lower()
    return accepted if accepted in ("gzip", "deflate") else None
