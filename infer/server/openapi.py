"""The description of the endpoints, in OpenAPI 3.1."""

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
            "description": "Open Inference Protocol, version 2; tasks; and OpenAI's endpoints.",
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
            **{
                f"{prefix}:predict": {"post": _predict(names)}
                for prefix, names in (
                    ("/v1/models/{model}", ("model",)),
                    ("/v1/models/{model}/versions/{version}", ("model", "version")),
                )
            },
            "/v1/models": {"get": _operation("Models, and how they are run", "List")},
            "/v1/models/{model}": {"get": _operation("A model, and how it is run", "Model", ("model",))},
            "/v1/embeddings": {
                "post": _asked(
                    _operation("Texts in, their vectors out", "Embeddings", busy=True, may_lack=True),
                    {_JSON: {"schema": _ref("EmbeddingsRequest")}},
                )
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
            "post": _asked(
                _operation("Feeds in, outputs out", "InferResponse", names, busy=True),
                {_JSON: {"schema": _ref("InferRequest")}},
            )
        },
    }


def _predict(names: tuple[str, ...]) -> dict[str, Any]:
    """A picture, a sound or a text as the whole body is one input."""
    whole = {"schema": {"type": "string", "format": "binary"}}
    return _asked(
        _operation("Inputs of the model's task in, its results out", "Predicted", names, busy=True),
        {
            _JSON: {"schema": _ref("PredictRequest")},
            "application/octet-stream": whole,
            "text/plain": {"schema": _TEXT},
        },
    )


def _asked(operation: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """`operation` with a body."""
    return {**operation, "requestBody": {"required": True, "content": content}}


def _operation(
    summary: str, schema: str, names: tuple[str, ...] = (), *, busy: bool = False, may_lack: bool = False
) -> dict[str, Any]:
    """`busy` ones may answer that they cannot now, and those that `may_lack` it that there is no such
    model, as do all whose path names one."""
    errors = {400: "wrong input", 401: "no token", 403: "another site's page", 408: "late body"}
    errors |= {413: "too large", 415: "unknown encoding", 431: "the head is too large"}
    errors |= {404: "no such model"} if names or may_lack else {}
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

_MODEL = _object(
    {"id": _TEXT, "object": _TEXT, "created": _COUNT, "task": _TEXT, "takes": _TEXT, "plan": _object({})}
)

_SCHEMAS: dict[str, Any] = {
    "Error": {
        "anyOf": [  # the second is OpenAI's
            _object({"error": _TEXT}),
            _object({"error": _object({"message": _TEXT, "type": _TEXT})}),
        ]
    },
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
    "PredictRequest": _object({"inputs": _list({})}),
    "Predicted": _object({"model_name": _TEXT, "model_version": _TEXT, "results": _list({})}),
    "Model": _MODEL,
    "List": _object({"object": _TEXT, "data": _list(_MODEL)}),
    "EmbeddingsRequest": _object(
        {"model": _TEXT, "input": {"anyOf": [_TEXT, _list(_TEXT)]}},
        encoding_format={"type": ["string", "null"], "enum": ["float", "base64", None]},
    ),
    "Embeddings": _object(
        {
            "object": _TEXT,
            "data": _list(
                _object({"index": _COUNT, "embedding": {"anyOf": [_list({"type": "number"}), _TEXT]}})
            ),
            "model": _TEXT,
            "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
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
