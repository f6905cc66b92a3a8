"""image-classification: a picture in, its most likely labels out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError
from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.labels import Classes, ScoredLabel, describe_labels, labels_to_json
from infer.tasks.pixels import Step, picture_input, prepare_at, synthetic_picture
from infer.tasks.rows import Part, answer, answer_parts, batches

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

    row_by_row = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(ImageClassificationSpec)
        self.classes = Classes(self.spec.labels, self.spec.activation)
        picture_input(setting, self.spec.input, self.spec.steps)
        setting.feeds_all((self.spec.input,))
        self.classes.check(setting.output(self.spec.output))
        if self.spec.top_k < 1:
            raise ArtifactError(
                f"the task '{setting.name}' has top_k {self.spec.top_k}; it must be 1 or more"
            )

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, lambda many: answer_parts(self.setting, self.parts(many), self.decode))

    def parts(self, pictures: Sequence[Any]) -> Iterator[Part]:
        """Feeds: float32, shape = (batch, 3, H, W)."""
        for places in batches(len(pictures), _BATCH_SIZE, self.setting.signature):
            arrays = [prepare_at(pictures, i, self.spec.steps).pixels for i in places]
            yield Part(places, {self.spec.input: np.stack(arrays)})

    def scores(self, outputs: Mapping[str, Array]) -> Array:
        """The score of every class, shape = (batch, classes)."""
        return self.classes.scores(outputs[self.spec.output])

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[list[ScoredLabel]]:
        return [self.classes.rank(row, self.spec.top_k) for row in self.scores(outputs)]

    def synthetic(self, rng: np.random.Generator) -> Array:
        return synthetic_picture(rng, self.spec.steps)

    def read(self, path: Path) -> Sequence[Any]:
        return [path]

    def parse(self, text: str) -> Any:
        return Path(text)

    def to_json(self, result: Any) -> Any:
        return labels_to_json(result)

    def describe(self, result: Any) -> str:
        return describe_labels(result)
