"""OpenAI's endpoints for what text-embedding models do, as its clients call them.

Source: OpenAI API reference, "Create embeddings" and "Models".
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from infer.batching import Work
from infer.errors import InputError
from infer.server.inputs import MAX_INPUTS, kind_of
from infer.server.models import Model
from infer.server.oip import load_json
from infer.server.service import answer, service
from infer.server.v2 import asked_model, json_response
from infer.signature import Array
from infer.tasks.rows import answer_parts
from infer.wording import excerpt

TASK = "text-embedding"


async def models(request: Request) -> Response:
    """All models, with what they are for and how they are run here."""
    served = service(request).models
    names = dict.fromkeys(model.name for model in served)
    return json_response({"object": "list", "data": [_described(served.get(name)) for name in names]})


async def model(request: Request) -> Response:
    return json_response(_described(asked_model(request)))


async def embeddings(request: Request) -> Response:
    """Texts in, their vectors out, as floats or in base64 (little-endian float32)."""
    served = service(request)
    with served.bodies.room(request) as room:
        body = await served.body(request, room)
        asked = await served.apart(lambda: load_json(body), len(body))
        name = asked.get("model")
        model = request.state.model = served.models.get(name if isinstance(name, str) else "")
        with served.counted(model):
            return await answer(request, model, _embedding(model, asked))


def _embedding(model: Model, asked: dict[str, Any]) -> Work[Response]:
    """Makes the answer. Raises `InputError` for what cannot be asked of `model`."""
    spec = model.artifact.manifest.task
    if spec is None or spec.name != TASK:
        raise InputError(f"the model '{model.name}' is no {TASK} model")
    texts, encoded = _texts(asked.get("input")), _wants_base64(asked)

    def work(task: Any, _: Any) -> Response:
        parts = list(task.parts(texts))
        tokens = sum(len(window.tokens.ids) for part in parts for window in part.about)
        vectors = answer_parts(task.setting, parts, task.decode)
        _check_dimensions(asked.get("dimensions"), vectors)
        return json_response(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": i, "embedding": _base64(v) if encoded else v}
                    for i, v in enumerate(vectors)
                ],
                "model": model.name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    return work


def _described(model: Model) -> dict[str, Any]:
    manifest, plan = model.artifact.manifest, model.answering
    return {
        "id": model.name,
        "object": "model",
        "created": _seconds(manifest.provenance.created),
        "owned_by": "infer",
        "task": manifest.task.name if manifest.task else "tensors",
        "takes": kind_of(manifest.task.name if manifest.task else None),
        "digest": model.artifact.manifest_sha256,
        "inputs": [str(spec) for spec in manifest.inputs],
        "plan": {
            "variant": plan.variant,
            "precision": plan.precision,
            "backend": plan.backend,
            "compute_dtype": plan.compute_dtype,
            "device": plan.device,
            "threads": plan.num_threads,
            "summary": plan.summary,
        },
    }


def _seconds(created: str) -> int:
    """ISO 8601 as seconds since 1970; 0 for what is none."""
    try:
        return int(datetime.datetime.fromisoformat(created).timestamp())
    except (ValueError, OverflowError):
        return 0


def _texts(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"'input' must be a text, or a list of one or more texts, but is {excerpt(given)}")
    if len(texts) > MAX_INPUTS:
        raise InputError(f"'input' has {len(texts)} texts; it may have {MAX_INPUTS}")
    return texts


def _wants_base64(asked: dict[str, Any]) -> bool:
    form = asked.get("encoding_format")
    if form not in (None, "float", "base64"):
        raise InputError(f"'encoding_format' must be float or base64, but is {excerpt(form)}")
    return bool(form == "base64")


def _check_dimensions(wanted: Any, vectors: Sequence[Array]) -> None:
    size = len(vectors[0])
    if wanted not in (None, size):
        raise InputError(
            f"'dimensions' must be {size}, which this model's vectors have, but is {excerpt(wanted)}"
        )


def _base64(vector: Array) -> str:
    return base64.b64encode(vector.astype(np.dtype("<f4")).tobytes()).decode("ascii")
