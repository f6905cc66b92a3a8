"""audio-classification: a recording in, its most likely labels out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.labels import Classes, ScoredLabel, describe_labels, labels_to_json
from infer.tasks.roles import feeds_all, gives, takes
from infer.tasks.rows import Part, answer, answer_parts, fixed_batch
from infer.tasks.sound import open_sound
from infer.tasks.sound_features import SoundFeatures, SoundFeaturesSpec, padded

# a batch of recordings keeps the cores busy as well as a large one, in less memory
_BATCH_SIZE = 8


@dataclass(frozen=True)
class AudioClassificationSpec:
    """`input`, `mask` and `output` name the tensors; `labels` has one entry a class, or none.

    Recordings of different lengths share a batch only where the graph has a `mask`, an input that says
    which samples are real: without it, padding would change the answer.
    """

    input: str
    output: str
    features: SoundFeaturesSpec
    mask: str | None = None
    labels: tuple[str, ...] = ()
    activation: str = "softmax"
    top_k: int = 5


class AudioClassification:
    """An input is what `open_sound` takes; a result is a list of `ScoredLabel`, best first."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(AudioClassificationSpec)
        self.classes = Classes(self.spec.labels, self.spec.activation)
        self.features = SoundFeatures(self.spec.features)
        self._check()

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, lambda many: answer_parts(self.setting, self.parts(many), self.decode))

    def parts(self, recordings: Sequence[Any]) -> Iterator[Part]:
        """Feeds: float32, shape = (batch, samples), (batch, frames, bands) or (batch, bands, frames)."""
        size = fixed_batch(self.setting.signature) or _BATCH_SIZE
        batch: list[Array] = []
        for place, recording in enumerate(recordings):
            array = self._encode(recording, place)
            if batch and (len(batch) == size or not (self.spec.mask or array.shape == batch[0].shape)):
                yield self._part(range(place - len(batch), place), batch)
                batch = []
            batch.append(array)
        if batch:
            yield self._part(range(len(recordings) - len(batch), len(recordings)), batch)

    def scores(self, outputs: Mapping[str, Array]) -> Array:
        """The score of every class, shape = (batch, classes)."""
        return self.classes.scores(outputs[self.spec.output])

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[list[ScoredLabel]]:
        return [self.classes.rank(row, self.spec.top_k) for row in self.scores(outputs)]

    def read(self, path: Path) -> Sequence[Any]:
        return [path]

    def parse(self, text: str) -> Any:
        return Path(text)

    def to_json(self, result: Any) -> Any:
        return labels_to_json(result)

    def describe(self, result: Any) -> str:
        return describe_labels(result)

    def _encode(self, recording: Any, place: int) -> Array:
        try:
            return self.features(open_sound(recording, self.spec.features.sample_rate))
        except InputError as error:
            raise InputError(f"recording {place}: {error}") from error

    def _part(self, places: range, batch: Sequence[Array]) -> Part:
        if self.spec.mask is None:
            return Part(places, {self.spec.input: np.stack(batch)})
        values, mask = padded(batch)
        kind = takes(self.setting, self.spec.mask, ("int64", "int32", "bool"), 2).numpy_dtype
        return Part(places, {self.spec.input: values, self.spec.mask: mask.astype(kind)})

    def _check(self) -> None:
        """Hold the spec to the graph. Raises `ArtifactError`."""
        spec, features = self.spec, self.spec.features
        sizes: tuple[int | None, ...] = (features.samples,)
        if features.mel is not None:
            sizes = (features.frames, features.mel.bands)
            sizes = sizes[::-1] if features.bands_first else sizes
        taken = takes(self.setting, spec.input, ("float32",), 1 + len(sizes))
        for size, dim in zip(sizes, taken.dims[1:], strict=True):
            # a spectrogram's frames follow from its samples, where those are fixed
            if isinstance(dim, int) and size != dim and not (size is None and features.samples):
                raise ArtifactError(
                    f"the features of task '{self.setting.name}' have shape {[None, *sizes]}, where None"
                    f" varies, but the graph takes {taken}; convert the model again with others"
                )
        if spec.mask is not None:
            takes(self.setting, spec.mask, ("int64", "int32", "bool"), 2)
            if features.mel is not None:
                raise ArtifactError("a mask tells samples from padding; features of a mel have none")
        feeds_all(self.setting, [spec.input, *([spec.mask] if spec.mask else [])])
        output = gives(self.setting, spec.output, ("float32", "float16", "float64"), 2)
        if spec.labels and isinstance(output.dims[1], int) and output.dims[1] != len(spec.labels):
            raise ArtifactError(
                f"the artifact has {len(spec.labels)} labels, but the model gives {output.dims[1]} classes;"
                f" convert it again with one label for each class"
            )
        if spec.top_k < 1:
            raise ArtifactError(
                f"top_k of task '{self.setting.name}' must be at least 1, but is {spec.top_k}"
            )
