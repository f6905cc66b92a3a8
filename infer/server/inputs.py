"""What the inputs of each task are in JSON, for all that speak HTTP."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from infer.errors import InputError
from infer.wording import excerpt

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

ENCODED = ("image", "audio")

MAX_INPUTS = 4096


def kind_of(task: str | None) -> str:
    """What the inputs of a task are; those of one that is not in the table are taken as JSON."""
    return KINDS.get(task or "tensors", "row")


def inputs_of(values: Any, kind: str) -> list[Any]:
    """The value of "inputs" in a body, as inputs of a task of that kind. Raises `InputError`."""
    if not isinstance(values, list) or len(values) > MAX_INPUTS:
        raise InputError(f"'inputs' must be a list of at most {MAX_INPUTS}, but is {excerpt(values)}")
    if kind in ENCODED:
        return [_decoded(value, place) for place, value in enumerate(values)]
    # JSON has no tuples, which are pairs of texts to a task
    return [tuple(value) if kind == "text" and isinstance(value, list) else value for value in values]


def _decoded(item: Any, place: int) -> bytes:
    """Bytes of a picture or sound. A string would be the name of a file on the server."""
    text = item.get("b64") if isinstance(item, dict) and len(item) == 1 else None
    if not isinstance(text, str):
        raise InputError(f'input {place} must be an object {{"b64": BASE64}}, but is {excerpt(item)}')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"input {place} is not valid base64 ({error})") from error
