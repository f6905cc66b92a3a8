"""image-classification: a picture in, its most likely labels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.tasks import Setting
from infer.tasks.labels import ScoredLabel, describe_labels, labels_to_json, rank
from infer.tasks.pixels import Step, apply_steps, open_picture
from infer.tasks.rows import answer, batches, run_rows

# a batch of pictures keeps the cores busy as well as a large one, in less memory
_BATCH_SIZE = 8


@dataclass(frozen=True)
class ImageClassificationSpec:
    """`input` and `output` name the tensors; `labels` has one entry a class, or none."""

    input: str
    output: str
    steps: tuple[Step, ...]
    labels: tuple[str, ...] = ()
    activation: str = "softmax"
    top_k: int = 5


class ImageClassification:
    """An input is what `open_picture` takes; a result is a list of `ScoredLabel`, best first."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.spec = setting.decode(ImageClassificationSpec)

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, self._many)

    def encode(self, pictures: Sequence[Any]) -> dict[str, Any]:
        """Feeds for `pictures`: float32, shape = (batch, 3, H, W)."""
        arrays = [apply_steps(open_picture(picture), self.spec.steps) for picture in pictures]
        return {self.spec.input: np.stack(arrays)}

    def read(self, path: Path) -> Sequence[Any]:
        return [path]

    def parse(self, text: str) -> Any:
        return Path(text)

    def to_json(self, result: Any) -> Any:
        return labels_to_json(result)

    def describe(self, result: Any) -> str:
        return describe_labels(result)

    def _many(self, pictures: Sequence[Any]) -> list[list[ScoredLabel]]:
        results: list[list[ScoredLabel]] = []
        for rows in batches(len(pictures), _BATCH_SIZE, self._setting.signature):
            feeds = self.encode(pictures[rows])
            logits = run_rows(self._setting.run, self._setting.signature, feeds)[self.spec.output]
            results += rank(logits, self.spec.labels, self.spec.activation, self.spec.top_k)
        return results
