"""What a model of sound is fed, as data: the samples themselves, or a mel spectrogram. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array
from infer.tasks import synthetic
from infer.tasks.mel import MAX_VALUES, MelSpec, check_mel, mel_spectrogram

_UNIT_EPSILON = 1e-7  # that of Wav2Vec2's feature extractor: silence stays finite


@dataclass(frozen=True)
class SoundFeaturesSpec:
    """From samples at `sample_rate` Hz to features, in the order of the fields.

    The sound must have `min_samples`; it is padded with silence or cut to `samples`; `unit_variance` gives
    it mean 0 and variance 1. Without `mel` that is all. A spectrogram loses its last frame with
    `drop_last`, has `range_below_peak` at most between its highest value and its lowest, is padded with
    zeros or cut to `frames`, and normalized by `mean` and `std`; `bands_first` turns it to (bands, frames).
    """

    sample_rate: int
    min_samples: int = 1
    samples: int | None = None
    unit_variance: bool = False
    mel: MelSpec | None = None
    drop_last: bool = False
    range_below_peak: float | None = None
    frames: int | None = None
    mean: float = 0.0
    std: float = 1.0
    bands_first: bool = False


class SoundFeatures:
    """Makes features as the spec says. Raises `ArtifactError` for a spec that cannot be followed."""

    def __init__(self, spec: SoundFeaturesSpec) -> None:
        self.spec = spec
        lengths = [spec.sample_rate, spec.min_samples, spec.samples or 1, spec.frames or 1]
        if not all(1 <= length <= MAX_VALUES for length in lengths):
            raise ArtifactError(
                f"sample_rate, min_samples, samples and frames of the task's spec must be 1 to {MAX_VALUES}"
            )
        if not (math.isfinite(spec.mean) and math.isfinite(spec.std) and spec.std):
            raise ArtifactError("mean and std of the task's spec must be finite, and std not 0")
        if spec.mel is not None:
            check_mel(spec.mel, spec.sample_rate)

    def synthetic(self, rng: np.random.Generator) -> tuple[Array, int]:
        """A recording of a voice that is made up."""
        return synthetic.recording(rng, self.spec.sample_rate, self.spec.min_samples)

    def __call__(self, sound: Array) -> Array:
        """Features of samples, float32: shape = (samples,), (frames, bands) or (bands, frames).

        Raises `InputError` for too short a sound.
        """
        spec = self.spec
        if len(sound) < spec.min_samples:
            raise InputError(
                f"a recording of {len(sound)} samples at {spec.sample_rate} Hz is too short; the model"
                f" needs at least {spec.min_samples} ({spec.min_samples / spec.sample_rate:.3g} s)"
            )
        if spec.samples is not None:
            sound = fit(sound, spec.samples)
        if spec.unit_variance:
            sound = (sound - sound.mean()) / np.sqrt(sound.var() + _UNIT_EPSILON)
        if spec.mel is None:
            return np.asarray(sound, np.float32)
        found = mel_spectrogram(sound, spec.sample_rate, spec.mel)
        if spec.drop_last:
            found = found[:-1]
        if spec.range_below_peak is not None and found.size:
            found = np.maximum(found, found.max() - spec.range_below_peak)
        if spec.frames is not None:
            found = fit(found, spec.frames)
        found = (found - spec.mean) / spec.std
        return np.ascontiguousarray(found.T if spec.bands_first else found, np.float32)


def fit(array: Array, length: int) -> Array:
    """`array`, padded with zeros or cut to `length` along its first axis."""
    if len(array) >= length:
        return array[:length]
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


def padded(rows: Sequence[Array]) -> tuple[Array, Array]:
    """Rows of different lengths as one batch, padded with zeros, shape = (rows, longest, …); and where it
    is real, int64, shape = (rows, longest)."""
    longest = max(map(len, rows))
    mask = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    return np.stack([fit(row, longest) for row in rows]), mask.astype(np.int64)
