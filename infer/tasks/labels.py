"""From scores to labels: what every classifier's results are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infer.errors import ArtifactError
from infer.signature import Array

ACTIVATIONS = ("softmax", "sigmoid", "none")


@dataclass(frozen=True)
class ScoredLabel:
    """A class with its score; `index` is its place in the model's output."""

    label: str
    score: float
    index: int


def rank(
    logits: Array, labels: Sequence[str], activation: str, top_k: int | None
) -> list[list[ScoredLabel]]:
    """For each row of `logits`, shape = (batch, classes), its `top_k` classes, best first."""
    if logits.ndim != 2:
        raise ArtifactError(
            f"a classifier's output must have shape (batch, classes), but has {list(logits.shape)}"
        )
    classes = logits.shape[1]
    if labels and len(labels) != classes:
        raise ArtifactError(
            f"the artifact has {len(labels)} labels, but the model gives {classes} classes;"
            f" convert it again with one label for each class"
        )
    scores = activate(logits.astype(np.float64), activation)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [
        [ScoredLabel(labels[i] if labels else str(i), float(row[i]), int(i)) for i in order]
        for row, order in zip(scores, best, strict=True)
    ]


def activate(logits: Array, activation: str) -> Array:
    """Scores from logits along the last axis."""
    if activation == "softmax":
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
    if activation == "sigmoid":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))  # does not overflow
    if activation == "none":
        return logits
    raise ArtifactError(f"unknown activation '{activation}'; use one of {', '.join(ACTIVATIONS)}")


def labels_to_json(result: Sequence[ScoredLabel]) -> Any:
    """A ranked result as JSON."""
    return {"labels": [asdict(label) for label in result]}


def describe_labels(result: Sequence[ScoredLabel]) -> str:
    """A ranked result, one class a line."""
    return "\n".join(f"{item.score:7.2%}  {' '.join(item.label.splitlines())}" for item in result)
