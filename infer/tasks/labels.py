"""From scores to labels: what every classifier's results are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infer.errors import ArtifactError
from infer.signature import Array, TensorSpec

ACTIVATIONS = ("softmax", "sigmoid", "none")
JOININGS = ("mean", "max")


@dataclass(frozen=True)
class ScoredLabel:
    """A class with its score; `index` is its place in the model's output."""

    label: str
    score: float
    index: int


@dataclass(frozen=True)
class Classes:
    """What the columns of a classifier's output are.

    `labels` has one entry a class, or none. `activation` makes scores of the model's numbers;
    "sigmoid" means that labels are independent of each other. With a `threshold`, only classes whose
    score reaches it are results. `windows` says what becomes of the scores of an input that was cut into
    windows: their "mean" or their "max". Raises `ArtifactError` if a setting is none of these.
    """

    labels: tuple[str, ...] = ()
    activation: str = "softmax"
    threshold: float | None = None
    windows: str = "mean"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ArtifactError(
                f"unknown activation {self.activation!r:.60}; use one of {', '.join(ACTIVATIONS)}"
            )
        if self.windows not in JOININGS:
            raise ArtifactError(
                f"windows cannot be joined by {self.windows!r:.60}; use one of {', '.join(JOININGS)}"
            )
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ArtifactError(f"the threshold {self.threshold} must be 0 to 1")

    def check(self, output: TensorSpec) -> None:
        """Raise `ArtifactError` unless `output` may have a column for each class."""
        count = output.dims[1]
        if isinstance(count, int):
            self._check_count(count)

    def scores(self, logits: Array) -> Array:
        """Scores, float64, of logits of the same shape = (batch, classes). Raises `ArtifactError`."""
        if logits.ndim != 2:
            raise ArtifactError(
                f"a classifier's output must have shape (batch, classes), but has {list(logits.shape)}"
            )
        self._check_count(logits.shape[1])
        return activate(logits.astype(np.float64), self.activation)

    def _check_count(self, count: int) -> None:
        if self.labels and len(self.labels) != count:
            raise ArtifactError(
                f"the artifact has {len(self.labels)} labels, but the model gives {count} classes; convert"
                f" it again with one label for each class"
            )
        if count == 1 and self.activation == "softmax":
            raise ArtifactError(
                "the model gives one class, of which softmax always makes 1; convert it again with the"
                " activation 'sigmoid', for the probability of that class"
            )

    def join(self, rows: Sequence[Array]) -> Array:
        """The scores of one input, shape = (classes,), from those of its windows."""
        return np.asarray(np.max(rows, axis=0) if self.windows == "max" else np.mean(rows, axis=0))

    def rank(self, scores: Array, top_k: int | None = None) -> list[ScoredLabel]:
        """The `top_k` classes of one row of scores that reach the threshold, best first."""
        best = np.argsort(-scores, kind="stable")[:top_k]
        if self.threshold is not None:
            best = best[scores[best] >= self.threshold]
        return [ScoredLabel(self.label(i), float(scores[i]), int(i)) for i in best]

    def label(self, index: int) -> str:
        """The name of a class; its number if it has none."""
        return self.labels[index] if self.labels else str(index)


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
