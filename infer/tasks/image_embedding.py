"""image-embedding and face-embedding: a picture in, a vector that says what or who it shows out.

A face is expected as the model was trained on it: cut out, and upright.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.pixels import Step, picture_input, prepare_at, synthetic_picture
from infer.tasks.rows import Part, answer, answer_parts, batches
from infer.tasks.vectors import (
    Verification,
    check_threshold,
    cosine,
    describe_vector,
    stack,
    unit,
    verification,
)

# a batch of pictures keeps the cores busy as well as a large one, in less memory
_BATCH_SIZE = 8


@dataclass(frozen=True)
class ImageEmbeddingSpec:
    """`input` takes pictures, float32, shape = (batch, 3, H, W), that went through `steps`; `output` is
    their vectors, shape = (batch, size). `threshold`: at what cosine two pictures show the same."""

    input: str
    output: str
    steps: tuple[Step, ...]
    threshold: float | None = None


class ImageEmbedding:
    """An input is what `open_picture` takes; a result is a float32 vector of length 1. A list of n gives an
    array (n, size)."""

    row_by_row = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(ImageEmbeddingSpec)
        check_threshold(self.spec.threshold)
        picture_input(setting, self.spec.input, self.spec.steps)
        setting.feeds_all([self.spec.input])
        setting.output(self.spec.output, dtypes=("float32",), rank=2)

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, lambda many: stack(answer_parts(self.setting, self.parts(many), self.decode)))

    def compare(self, first: Any, second: Any) -> float:
        """The cosine between the vectors of two pictures."""
        return cosine(*self([first, second]))

    def verify(self, first: Any, second: Any) -> Verification:
        """Whether two pictures show the same. Raises `ArtifactError` if the spec has no threshold."""
        return verification(self.compare(first, second), self.spec.threshold, self.setting.name)

    def parts(self, pictures: Sequence[Any]) -> Iterator[Part]:
        """Feeds: float32, shape = (batch, 3, H, W); about each, its place."""
        for places in batches(len(pictures), _BATCH_SIZE, self.setting.signature):
            arrays = [prepare_at(pictures, i, self.spec.steps).pixels for i in places]
            yield Part(places, {self.spec.input: np.stack(arrays)}, places)

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> Sequence[Array]:
        vectors = outputs[self.spec.output]
        return [unit(vector, f"picture {place}") for vector, place in zip(vectors, about, strict=True)]

    def synthetic(self, rng: np.random.Generator) -> Array:
        return synthetic_picture(rng, self.spec.steps)

    def read(self, path: Path) -> Sequence[Any]:
        return [path]

    def parse(self, text: str) -> Any:
        return Path(text)

    def to_json(self, result: Any) -> Any:
        return {"vector": [float(x) for x in result]}

    def describe(self, result: Any) -> str:
        return describe_vector(result)
