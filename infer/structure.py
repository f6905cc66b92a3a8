"""How a model nests its outputs, as plain JSON data, and how to rebuild that nesting.

A structure is one of

    "name"                          the output tensor of that name
    null                            None
    {"tuple": [structure, …]}       also named tuples
    {"list": [structure, …]}
    {"dict": {key: structure, …}}   also dataclasses and ModelOutputs, by field; other keys as their text
    {"value": number | str | bool}  a constant the model returns beside its tensors
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from infer.errors import ArtifactError

Structure = Any
"""JSON as in the module's docstring."""


def rebuild(structure: Structure, outputs: Mapping[str, Any]) -> Any:
    """The model's own nesting with each tensor name replaced by its array in `outputs`."""
    if isinstance(structure, str):
        return outputs[structure]
    if structure is None:
        return None
    ((kind, content),) = structure.items()
    if kind == "value":
        return content
    if kind == "dict":
        return {key: rebuild(item, outputs) for key, item in content.items()}
    items = [rebuild(item, outputs) for item in content]
    return tuple(items) if kind == "tuple" else items


def tensor_names(structure: Structure) -> Iterator[str]:
    """Names of the tensors in `structure`, in order; raises `ArtifactError` if it is malformed."""
    if isinstance(structure, str):
        yield structure
    elif structure is not None:
        if not isinstance(structure, dict) or len(structure) != 1:
            raise ArtifactError(f"manifest field 'structure' has a malformed part: {structure!r:.80}")
        ((kind, content),) = structure.items()
        if kind == "dict" and isinstance(content, dict):
            content = list(content.values())
        elif kind == "value" and isinstance(content, (str, int, float, bool)):
            content = []
        elif kind not in ("tuple", "list") or not isinstance(content, list):
            raise ArtifactError(f"manifest field 'structure' has a malformed part: {structure!r:.80}")
        for item in content:
            yield from tensor_names(item)
