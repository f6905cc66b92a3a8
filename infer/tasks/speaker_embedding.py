"""speaker-embedding: a recording of a voice in, a vector that says whose it is out.

The recording is heard in overlapping partial utterances of one length, and their vectors are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.rows import Part, answer, answer_parts, fixed_batch
from infer.tasks.sound import open_sound
from infer.tasks.sound_features import SoundFeatures, SoundFeaturesSpec, fit
from infer.tasks.vectors import (
    Verification,
    check_threshold,
    cosine,
    describe_vector,
    stack,
    unit,
    verification,
)

_BATCH_SIZE = 32  # partial utterances; an hour has thousands


@dataclass(frozen=True)
class SpeakerEmbeddingSpec:
    """`input` takes partial utterances, float32, shape = (batch, frames, bands) of the mel spectrogram that
    `features` make of the whole; `output` is their vectors, shape = (batch, size).

    A partial utterance has `frames` frames; `per_second` of them begin in a second. The last one is padded
    with silence, or left out if less than `min_coverage` of it is there. Recordings softer than `volume_db`
    (of full scale, root mean square) are made as loud. `threshold`: at what cosine two voices are one.
    """

    input: str
    output: str
    features: SoundFeaturesSpec
    frames: int
    per_second: float
    min_coverage: float = 0.75
    volume_db: float | None = None
    threshold: float | None = None


class SpeakerEmbedding:
    """An input is what `open_sound` takes; a result is a float32 vector of length 1. A list of n gives an
    array (n, size)."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(SpeakerEmbeddingSpec)
        self.features = SoundFeatures(self.spec.features)
        self._hop, self._step = self._check()

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, self._many)

    def compare(self, first: Any, second: Any) -> float:
        """The cosine between the vectors of two recordings."""
        return cosine(*self([first, second]))

    def verify(self, first: Any, second: Any) -> Verification:
        """Whether two recordings are of one voice. Raises `ArtifactError` if the spec has no threshold."""
        return verification(self.compare(first, second), self.spec.threshold, self.setting.name)

    def parts(self, recordings: Sequence[Any]) -> Iterator[Part]:
        """Feeds: float32, shape = (batch, frames, bands); each row is a partial utterance of the recording
        at its place."""
        size = fixed_batch(self.setting.signature) or _BATCH_SIZE
        for place, recording in enumerate(recordings):
            partials = self._partials(recording, place)
            for start in range(0, len(partials), size):
                rows = partials[start : start + size]
                yield Part([place] * len(rows), {self.spec.input: np.stack(rows)})

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> Sequence[Array]:
        """A vector for each partial utterance."""
        return list(outputs[self.spec.output])

    def synthetic(self, rng: np.random.Generator) -> tuple[Array, int]:
        return self.features.synthetic(rng)

    def read(self, path: Path) -> Sequence[Any]:
        return [path]

    def parse(self, text: str) -> Any:
        return Path(text)

    def to_json(self, result: Any) -> Any:
        return {"vector": [float(x) for x in result]}

    def describe(self, result: Any) -> str:
        return describe_vector(result)

    def _many(self, recordings: Sequence[Any]) -> Array:
        found = answer_parts(
            self.setting, self.parts(recordings), self.decode, lambda vectors: np.mean(vectors, axis=0)
        )
        return stack([unit(vector, f"recording {place}") for place, vector in enumerate(found)])

    def _partials(self, recording: Any, place: int) -> list[Array]:
        spec = self.spec
        try:
            sound = open_sound(recording, spec.features.sample_rate)
            if not sound.any():
                raise InputError("it holds nothing but silence, which has a vector but no voice")
            if spec.volume_db is not None:
                sound = _at_least(sound, spec.volume_db)
            starts = self._starts(len(sound))
            # until the end of the last partial utterance
            sound = fit(sound, max(len(sound), (starts[-1] + spec.frames) * self._hop))
            mel = self.features(sound)
        except InputError as error:
            raise InputError(f"recording {place}: {error}") from error
        return [mel[start : start + spec.frames] for start in starts]

    def _starts(self, length: int) -> range:
        """The first frames of the partial utterances of `length` samples."""
        count = math.ceil((length + 1) / self._hop)
        starts = range(0, max(1, count - self.spec.frames + self._step + 1), self._step)
        covered = (length - starts[-1] * self._hop) / (self.spec.frames * self._hop)
        return starts[:-1] if covered < self.spec.min_coverage and len(starts) > 1 else starts

    def _check(self) -> tuple[int, int]:
        """Hold the spec to the graph. Samples from frame to frame, and frames from one partial utterance to
        the next. Raises `ArtifactError`."""
        spec, name = self.spec, self.setting.name
        mel = spec.features.mel
        turned = spec.features.bands_first or spec.features.frames or spec.features.samples
        if mel is None or mel.edges == "none" or turned or spec.features.drop_last:
            raise ArtifactError(
                f"the features of task '{name}' must be a mel spectrogram [frames, bands] of the whole"
                f" recording, centred on its samples"
            )
        step = 0
        if 1e-6 < spec.per_second < 1e6:
            step = min(round(spec.features.sample_rate / spec.per_second / mel.hop), spec.frames + 1)
        if not 1 <= step <= spec.frames:
            raise ArtifactError(
                f"per_second of task '{name}' is {spec.per_second}, which leaves gaps between partial"
                f" utterances of {spec.frames} frames, or no frame from one to the next"
            )
        if not 0 < spec.min_coverage <= 1:
            raise ArtifactError(f"min_coverage of task '{name}' must be more than 0 and at most 1")
        if spec.volume_db is not None and not -200 <= spec.volume_db <= 0:
            raise ArtifactError(f"volume_db of task '{name}' must be -200 to 0")
        check_threshold(spec.threshold)
        taken = self.setting.input(spec.input, dtypes=("float32",), rank=3)
        for size, dim in zip((spec.frames, mel.bands), taken.dims[1:], strict=True):
            if isinstance(dim, int) and dim != size:
                raise ArtifactError(
                    f"the task '{name}' feeds [batch, {spec.frames}, {mel.bands}], but the graph takes"
                    f" {taken}; convert the model again with other sizes"
                )
        self.setting.feeds_all([spec.input])
        self.setting.output(spec.output, dtypes=("float32",), rank=2)
        return mel.hop, step


def _at_least(sound: Array, volume_db: float) -> Array:
    """`sound`, which is not silence, made louder if it is softer than `volume_db` of full scale."""
    loudness = math.sqrt(float(np.mean(sound.astype(np.float64) ** 2)))
    wanted = 10.0 ** (volume_db / 20.0)
    return sound * np.float32(wanted / loudness) if loudness < wanted else sound
