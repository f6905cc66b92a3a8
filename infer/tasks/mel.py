"""Mel spectrograms: how much of each band of pitch a sound has, frame by frame. numpy only.

A band is a triangle over the bins of the Fourier transform, its corners evenly spaced on a mel scale:
"slaney" (Auditory Toolbox: linear to 1 kHz, then logarithmic), "htk" (2595 log10(1 + f/700)) or "kaldi"
(1127 ln(1 + f/700), which is the same but for rounding).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array

SCALES = ("slaney", "htk", "kaldi")
LOGARITHMS = ("none", "natural", "log10")
EDGES = ("mirror", "zeros", "none")

MAX_VALUES = 2**28
"""A spectrogram may have this many values: 1 GiB of float32."""

_PADDING: dict[str, Literal["reflect", "constant"]] = {"mirror": "reflect", "zeros": "constant"}
_MAX_FFT = 2**16
_MAX_BANDS = 4096
_FRAMES_AT_ONCE = 1024  # a block of frames stays in the cache, and an hour's frames out of memory


@dataclass(frozen=True)
class MelSpec:
    """How a spectrogram is made; samples count at the model's rate.

    `window` samples are a frame, `hop` samples lie between the starts of two; a frame is padded with zeros
    to `fft`. `symmetric` takes Hann's window over window - 1 instead of window samples. With `edges`
    "mirror" or "zeros" the first frame's middle is the first sample, and the sound goes on so at both
    ends; with "none" its start is. `remove_mean` and `preemphasis` work on each frame, in this order.
    `bands` triangles lie between `min_hertz` and `max_hertz`, of equal area if `equal_area`, drawn over
    mel instead of Hz if `over_mel`. Power below `floor` is raised to it, then the `logarithm` is taken.
    """

    window: int
    hop: int
    fft: int
    bands: int
    max_hertz: float
    min_hertz: float = 0.0
    scale: str = "slaney"
    equal_area: bool = True
    over_mel: bool = False
    symmetric: bool = False
    edges: str = "mirror"
    remove_mean: bool = False
    preemphasis: float = 0.0
    floor: float = 0.0
    logarithm: str = "none"


def check_mel(spec: MelSpec, sample_rate: int) -> None:
    """Raises `ArtifactError` for a spec that no spectrogram can follow."""
    problems = [
        (spec.scale in SCALES, f"scale '{spec.scale}' is not one of {', '.join(SCALES)}"),
        (spec.logarithm in LOGARITHMS, f"logarithm '{spec.logarithm}' is not of {', '.join(LOGARITHMS)}"),
        (spec.edges in EDGES, f"edges '{spec.edges}' is not one of {', '.join(EDGES)}"),
        (2 <= spec.window <= spec.fft <= _MAX_FFT, f"2 ≤ window ≤ fft ≤ {_MAX_FFT} does not hold"),
        (1 <= spec.hop <= _MAX_FFT, f"hop must be 1 to {_MAX_FFT}"),
        (1 <= spec.bands <= _MAX_BANDS, f"bands must be 1 to {_MAX_BANDS}"),
        (
            0 <= spec.min_hertz < spec.max_hertz <= sample_rate / 2,
            "the bands are outside what the rate holds",
        ),
        (0 <= spec.floor < math.inf, "floor must be a number of at least 0"),
        (spec.floor > 0 or spec.logarithm == "none", "a logarithm needs a floor above 0"),
        (0 <= spec.preemphasis <= 1, "preemphasis must be 0 to 1"),
    ]
    for holds, problem in problems:
        if not holds:
            raise ArtifactError(f"the mel spectrogram of the task's spec cannot be made: {problem}")


def mel_spectrogram(samples: Array, sample_rate: int, spec: MelSpec) -> Array:
    """Power in each band, or its logarithm: float64, shape = (frames, bands). Raises `InputError`."""
    if spec.edges != "none":
        samples = np.pad(samples, spec.window // 2, mode=_PADDING[spec.edges])
    count = 1 + (len(samples) - spec.window) // spec.hop
    if count < 1:
        raise InputError(
            f"a recording of {len(samples)} samples is shorter than a frame of {spec.window}; record at"
            f" least {spec.window / sample_rate:.3g} s"
        )
    if count * spec.bands > MAX_VALUES:
        raise InputError(
            f"a spectrogram of {count} frames of {spec.bands} bands is larger than {MAX_VALUES} values;"
            f" cut the recording into pieces"
        )
    frames = np.lib.stride_tricks.sliding_window_view(samples, spec.window)[:: spec.hop]
    bank = filter_bank(spec, sample_rate)
    window = _hann(spec.window, spec.symmetric)
    found = np.empty((count, spec.bands))
    for start in range(0, count, _FRAMES_AT_ONCE):
        part = slice(start, start + _FRAMES_AT_ONCE)
        found[part] = _power(frames[part].astype(np.float64), window, spec) @ bank
    np.maximum(found, spec.floor, out=found)
    if spec.logarithm == "natural":
        np.log(found, out=found)
    elif spec.logarithm == "log10":
        np.log10(found, out=found)
    return found


@functools.lru_cache(maxsize=16)
def filter_bank(spec: MelSpec, sample_rate: int) -> Array:
    """The triangles: float64, shape = (fft // 2 + 1, bands)."""
    bins = np.arange(spec.fft // 2 + 1) * (sample_rate / spec.fft)
    low, high = _mel(np.array([spec.min_hertz, spec.max_hertz]), spec.scale)
    corners = np.linspace(float(low), float(high), spec.bands + 2)
    hertz = _hertz(corners, spec.scale)
    at, corner = (_mel(bins, spec.scale), corners) if spec.over_mel else (bins, hertz)
    left, middle, right = corner[:-2], corner[1:-1], corner[2:]
    rising = (at[:, None] - left) / (middle - left)
    falling = (right - at[:, None]) / (right - middle)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    if spec.equal_area:
        triangles *= 2.0 / (right - left)
    return np.asarray(triangles)


def _power(frames: Array, window: Array, spec: MelSpec) -> Array:
    if spec.remove_mean:
        frames -= frames.mean(axis=1, keepdims=True)
    if spec.preemphasis:
        frames[:, 1:] -= spec.preemphasis * frames[:, :-1]
        frames[:, 0] *= 1.0 - spec.preemphasis
    spectrum = np.fft.rfft(frames * window, spec.fft)
    return np.asarray(spectrum.real**2 + spectrum.imag**2)


def _hann(length: int, symmetric: bool) -> Array:
    return np.hanning(length) if symmetric else np.hanning(length + 1)[:-1]


# Slaney's scale: 3 mel are 200 Hz up to 1 kHz, from there 27 mel are a factor of 6.4
_LINEAR_HERTZ, _LINEAR_MEL, _STEP = 1000.0, 15.0, 27.0 / math.log(6.4)


def _mel(hertz: Array, scale: str) -> Array:
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + hertz / 700.0))
    if scale == "kaldi":
        return np.asarray(1127.0 * np.log(1.0 + hertz / 700.0))
    above = _LINEAR_MEL + _STEP * np.log(np.maximum(hertz, _LINEAR_HERTZ) / _LINEAR_HERTZ)
    return np.where(hertz < _LINEAR_HERTZ, 3.0 * hertz / 200.0, above)


def _hertz(mel: Array, scale: str) -> Array:
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))
    if scale == "kaldi":
        return np.asarray(700.0 * (np.exp(mel / 1127.0) - 1.0))
    above = _LINEAR_HERTZ * np.exp((np.maximum(mel, _LINEAR_MEL) - _LINEAR_MEL) / _STEP)
    return np.where(mel < _LINEAR_MEL, 200.0 * mel / 3.0, above)
