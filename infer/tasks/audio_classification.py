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
from infer.tasks.rows import Part, answer, answer_parts, fixed_batch
from infer.tasks.sound import MAX_SAMPLES, open_sound
from infer.tasks.sound_features import SoundFeatures, SoundFeaturesSpec, padded

# a batch of recordings keeps the cores busy as well as a large one, in less memory
_BATCH_SIZE = 8
_MAX_WINDOWS = 100_000  # of one recording: a day, one a second


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
    window_s: float | None = None
    hop_s: float | None = None
    windows: str = "mean"


class AudioClassification:
    """An input is what `open_sound` takes; a result is a list of `ScoredLabel`, best first."""

    row_by_row = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(AudioClassificationSpec)
        self.classes = Classes(self.spec.labels, self.spec.activation, windows=self.spec.windows)
        self.features = SoundFeatures(self.spec.features)
        self._check()

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, self._many)

    def parts(self, recordings: Sequence[Any]) -> Iterator[Part]:
        """Feeds: float32, shape = (batch, samples), (batch, frames, bands) or (batch, bands, frames)."""
        size = fixed_batch(self.setting.signature) or _BATCH_SIZE
        places: list[int] = []
        batch: list[Array] = []
        for place, recording in enumerate(recordings):
            for array in self._encode(recording, place):
                if batch and (len(batch) == size or not (self.spec.mask or array.shape == batch[0].shape)):
                    yield self._part(places, batch)
                    places, batch = [], []
                places.append(place)
                batch.append(array)
        if batch:
            yield self._part(places, batch)

    def scores(self, outputs: Mapping[str, Array]) -> Array:
        """The score of every class, shape = (batch, classes), a row for each window."""
        return self.classes.scores(outputs[self.spec.output])

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[list[ScoredLabel]]:
        """A result for each recording, or window of one."""
        return [self.classes.rank(row, self.spec.top_k) for row in self.scores(outputs)]

    def synthetic(self, rng: np.random.Generator) -> tuple[Array, int]:
        return self.features.synthetic(rng)

    def read(self, path: Path) -> Sequence[Any]:
        return [path]

    def parse(self, text: str) -> Any:
        return Path(text)

    def to_json(self, result: Any) -> Any:
        return labels_to_json(result)

    def describe(self, result: Any) -> str:
        return describe_labels(result)

    def _many(self, recordings: Sequence[Any]) -> list[list[ScoredLabel]]:
        scored = answer_parts(
            self.setting,
            self.parts(recordings),
            lambda outputs, _: list(self.scores(outputs)),
            self.classes.join,
        )
        return [self.classes.rank(scores, self.spec.top_k) for scores in scored]

    def _encode(self, recording: Any, place: int) -> Iterator[Array]:
        try:
            sound = open_sound(recording, self.spec.features.sample_rate)
            for window in self._windows(sound):
                yield self.features(window)
        except InputError as error:
            raise InputError(f"recording {place}: {error}") from error

    def _windows(self, sound: Array) -> Iterator[Array]:
        rate, spec = self.spec.features.sample_rate, self.spec
        length = len(sound) if spec.window_s is None else round(spec.window_s * rate)
        hop = length if spec.hop_s is None else round(spec.hop_s * rate)
        last = len(sound) - length
        if last // hop > _MAX_WINDOWS:
            raise InputError(
                f"a recording of {len(sound) / rate:.0f} s would be cut into {last // hop} windows, more"
                f" than {_MAX_WINDOWS}; cut it into pieces"
            )
        for start in range(0, last, hop):
            yield sound[start : start + length]
        yield sound[max(0, last) :]

    def _part(self, places: Sequence[int], batch: Sequence[Array]) -> Part:
        if self.spec.mask is None:
            return Part(places, {self.spec.input: np.stack(batch)})
        values, mask = padded(batch)
        kind = self.setting.input(self.spec.mask, dtypes=("int64", "int32", "bool"), rank=2).numpy_dtype
        return Part(places, {self.spec.input: values, self.spec.mask: mask.astype(kind)})

    def _check(self) -> None:
        """Hold the spec to the graph. Raises `ArtifactError`."""
        spec, features = self.spec, self.spec.features
        for name, seconds in (("window_s", spec.window_s), ("hop_s", spec.hop_s)):
            if seconds is not None and not 1 <= seconds * features.sample_rate <= MAX_SAMPLES:
                raise ArtifactError(
                    f"{name} of task '{self.setting.name}' must be at least one sample and at most"
                    f" {MAX_SAMPLES}, but is {seconds} s"
                )
        sizes: tuple[int | None, ...] = (features.samples,)
        if features.mel is not None:
            sizes = (features.frames, features.mel.bands)
            sizes = sizes[::-1] if features.bands_first else sizes
        taken = self.setting.input(spec.input, dtypes=("float32",), rank=1 + len(sizes))
        for size, dim in zip(sizes, taken.dims[1:], strict=True):
            # a spectrogram's frames follow from its samples, where those are fixed
            if isinstance(dim, int) and size != dim and not (size is None and features.samples):
                raise ArtifactError(
                    f"the features of task '{self.setting.name}' have shape {[None, *sizes]}, where None"
                    f" varies, but the graph takes {taken}; convert the model again with others"
                )
        if spec.mask is not None:
            self.setting.input(spec.mask, dtypes=("int64", "int32", "bool"), rank=2)
            if features.mel is not None:
                raise ArtifactError("a mask tells samples from padding; features of a mel have none")
        self.setting.feeds_all([spec.input, *([spec.mask] if spec.mask else [])])
        output = self.setting.output(spec.output, dtypes=("float32", "float16", "float64"), rank=2)
        self.classes.check(output)
        if spec.top_k < 1:
            raise ArtifactError(
                f"top_k of task '{self.setting.name}' must be at least 1, but is {spec.top_k}"
            )
