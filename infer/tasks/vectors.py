"""Vectors that say who or what something is: how alike two are, and whether that is alike enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array


@dataclass(frozen=True)
class Verification:
    """Whether two inputs show the same: their `similarity` is at least the `threshold`."""

    same: bool
    similarity: float
    threshold: float


def verification(similarity: float, threshold: float | None, task: str) -> Verification:
    """The verdict at a threshold. Raises `ArtifactError` if the artifact names none."""
    if threshold is None:
        raise ArtifactError(
            f"the spec of task '{task}' has no threshold, so it cannot verify; compare gives the"
            f" similarity, and `infer eval` says which threshold is worth what"
        )
    return Verification(similarity >= threshold, similarity, threshold)


def cosine(first: Array, second: Array) -> float:
    """The cosine of the angle between two vectors that are not zero."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def unit(vector: Array, what: str) -> Array:
    """`vector` at length 1, float32. Raises `InputError` if it is zero or not finite: `what` it is of says
    nothing to the model."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not (np.isfinite(length) and length > 0):
        raise InputError(f"{what} has no vector: the model finds nothing in it; is it silent or empty?")
    return np.asarray(vector / length, np.float32)


def check_threshold(threshold: float | None) -> None:
    """Raise `ArtifactError` for a threshold that no cosine can be compared with."""
    if threshold is not None and not -1 <= threshold <= 1:
        raise ArtifactError(f"the threshold must be -1 to 1, the range of a cosine, but is {threshold}")


def stack(vectors: Sequence[Any]) -> Array:
    """Vectors as rows, shape = (count, size); (0, 0) without any."""
    return np.stack(vectors) if len(vectors) else np.empty((0, 0), np.float32)


def describe_vector(vector: Array) -> str:
    """A vector's size and first values."""
    values = ", ".join(f"{x:.4f}" for x in vector[:6])
    return f"vector of {len(vector)}: [{values}{', …' if len(vector) > 6 else ''}]"
