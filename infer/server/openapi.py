"""The description of the protocol's endpoints, in OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

import infer
from infer.server.tensors import DATATYPES

_JSON = "application/json"


def document() -> dict[str, Any]:
    """The whole document, as plain data."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "infer",
            "version": infer.__version__,
            "description": "Open Inference Protocol, version 2.",
        },
        "paths": {
            "/v2": {"get": _operation("Server metadata", "ServerMetadata")},
            "/v2/health/live": {"get": _operation("Whether the server is alive", "Live")},
            "/v2/health/ready": {"get": _operation("Whether all models are ready", "Ready", busy=True)},
            "/v2/models": {"get": _operation("Names of the models", "Models")},
            "/v2/repository/index": {"post": _operation("Every model and version", "Index")},
            **{
                f"{prefix}{path}": item
                for prefix, parameters in (
                    ("/v2/models/{model}", ("model",)),
                    ("/v2/models/{model}/versions/{version}", ("model", "version")),
                )
                for path, item in _of_model(parameters).items()
            },
        },
        "components": {"schemas": _SCHEMAS},
    }


def _of_model(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "": {"get": _operation("Model metadata", "ModelMetadata", names)},
        "/ready": {"get": _operation("Whether the model is ready", "ModelReady", names, busy=True)},
        "/config": {"get": _operation("What Triton's clients ask for", "ModelConfig", names)},
        "/stats": {"get": _operation("Counts and times since the start", "ModelStatistics", names)},
        "/infer": {
            "post": {
                **_operation("Feeds in, outputs out", "InferResponse", names, busy=True),
                "requestBody": {"required": True, "content": {_JSON: {"schema": _ref("InferRequest")}}},
            }
        },
    }


def _operation(
    summary: str, schema: str, names: tuple[str, ...] = (), *, busy: bool = False
) -> dict[str, Any]:
    """`busy` ones may answer that they cannot now."""
    errors = {400: "wrong input", 401: "no token", 403: "another site's page", 408: "late body"}
    errors |= {413: "too large", 415: "unknown encoding", 431: "the head is too large"}
    errors |= {404: "no such model"} if names else {}
    errors |= {503: "too much to do, or not ready", 504: "no answer in time"} if busy else {}
    return {
        "summary": summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ],
        "responses": {
            "200": {"description": summary, "content": {_JSON: {"schema": _ref(schema)}}},
            **{
                str(status): {"description": said, "content": {_JSON: {"schema": _ref("Error")}}}
                for status, said in sorted(errors.items())
            },
        },
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT, _FLAG = {"type": "string"}, {"type": "boolean"}
_DATATYPE = {"type": "string", "enum": list(DATATYPES.values())}
_COUNT = {"type": "integer", "minimum": 0}
_SPENT = _object({"count": _COUNT}, ns=_COUNT)
_SIZES = _list({"type": "integer", "minimum": 0})
_DIMS = _list({"type": "integer", "minimum": -1})
_DESCRIBED = _object({"name": _TEXT, "datatype": _DATATYPE, "shape": _DIMS})
_CONFIGURED = _object({"name": _TEXT, "data_type": _TEXT, "dims": _DIMS})

_SCHEMAS: dict[str, Any] = {
    "Error": _object({"error": _TEXT}),
    "Live": _object({"live": _FLAG}),
    "Ready": _object({"ready": _FLAG}),
    "Models": _object({"models": _list(_TEXT)}),
    "Index": _list(_object({"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT})),
    "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
    "ModelReady": _object({"name": _TEXT, "ready": _FLAG}),
    "ModelMetadata": _object(
        {
            "name": _TEXT,
            "versions": _list(_TEXT),
            "platform": _TEXT,
            "inputs": _list(_DESCRIBED),
            "outputs": _list(_DESCRIBED),
        }
    ),
    "ModelConfig": _object(
        {
            "name": _TEXT,
            "platform": _TEXT,
            "backend": _TEXT,
            "max_batch_size": {"type": "integer"},
            "input": _list(_CONFIGURED),
            "output": _list(_CONFIGURED),
        }
    ),
    "ModelStatistics": _object(
        {
            "model_stats": _list(
                _object(
                    {
                        "name": _TEXT,
                        "version": _TEXT,
                        "inference_count": _COUNT,
                        "execution_count": _COUNT,
                        "inference_stats": _object(
                            {"success": _SPENT, "fail": _SPENT, "compute_infer": _SPENT}
                        ),
                    }
                )
            )
        }
    ),
    "InferRequest": _object(
        {
            "inputs": _list(
                _object(
                    {"name": _TEXT, "shape": _SIZES, "datatype": _DATATYPE},
                    data=_list({}),
                    parameters=_object({}, binary_data_size={"type": "integer", "minimum": 0}),
                )
            )
        },
        id=_TEXT,
        outputs=_list(_object({"name": _TEXT}, parameters=_object({}, binary_data=_FLAG))),
        parameters=_object({}, binary_data_output=_FLAG, timeout={"type": "integer", "minimum": 0}),
    ),
    "InferResponse": _object(
        {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "outputs": _list(
                _object({"name": _TEXT, "datatype": _DATATYPE, "shape": _SIZES}, data=_list({}))
            ),
        },
        id=_TEXT,
    ),
}
