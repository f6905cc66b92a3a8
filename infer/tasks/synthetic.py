"""Inputs that nobody recorded, with the statistics of real ones: what variants are calibrated and judged
with where there is no data.

Noise would not do: a network that was trained on photographs answers it with activations that no
photograph causes, and ranges calibrated with them are too wide here and too narrow there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from infer.signature import Array

_LEAVES = 500
_LEAST_RADIUS, _MOST_RADIUS = 0.02, 0.5
_TEXTURE, _CHROMA = 0.05, 0.12

_MOST_TRIES = 1000
_WORDS = (3, 64)

_SECONDS = (1.5, 8.0)
_SYLLABLES_PER_S = 4.0
_PITCH_HZ = (90.0, 250.0)
_FORMANTS_HZ = ((300.0, 900.0), (900.0, 2500.0))
_FORMANT_WIDTH_HZ = 150.0


def leaves(rng: np.random.Generator, shape: tuple[int, ...], channels: int) -> Array:
    """Intensities from 0 to 1, float32, shape = (*shape, channels).

    Ellipsoids cover one another, most of them small, with a fine texture over all: this has the edges,
    the even areas and the 1/f spectrum of photographs and scans ("dead leaves": Lee, Mumford and Huang,
    Occlusion models for natural images, 2001).
    """
    found = np.broadcast_to(_shade(rng, channels), (*shape, channels)).astype(np.float32)
    for _ in range(_LEAVES):
        # radii by a power law of exponent 3, as in the paper
        uniform = rng.random()
        radius = (uniform * _LEAST_RADIUS**-2 + (1 - uniform) * _MOST_RADIUS**-2) ** -0.5
        radii = np.maximum(1.0, radius * rng.uniform(0.5, 1.0, len(shape)) * min(shape))
        centre = rng.random(len(shape)) * shape
        low = np.clip(np.floor(centre - radii), 0, shape).astype(int)
        high = np.clip(np.ceil(centre + radii), 0, shape).astype(int)
        axes = [
            (np.arange(start, stop) - at) / width
            for start, stop, at, width in zip(low, high, centre, radii, strict=True)
        ]
        inside = sum(axis**2 for axis in np.ix_(*axes)) <= 1.0
        box = found[tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))]
        box[inside] = _shade(rng, channels)
    found += _TEXTURE * _pink(rng, shape)[..., None]
    return np.clip(found, 0.0, 1.0)


def _shade(rng: np.random.Generator, channels: int) -> Array:
    """Colours of photographs are mostly light or dark, and little else."""
    return np.clip(rng.random() + _CHROMA * rng.standard_normal(channels), 0.0, 1.0)


def picture(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """uint8, shape = (height, width, 3)."""
    return np.round(255 * leaves(rng, shape, 3)).astype(np.uint8)


def text(rng: np.random.Generator, words: Callable[[int], str], vocabulary: int) -> str:
    """Some words of a tokenizer's vocabulary, which lists common ones first: by Zipf's law.

    `words` says what an id stands for.
    """
    count = round(_log_uniform(rng, _WORDS))
    found: list[str] = []
    for _ in range(_MOST_TRIES):
        word = words(int(_log_uniform(rng, (1, vocabulary)))).strip()
        if len(word) > 1 and word.isalpha():
            found.append(word)
            if len(found) == count:
                break
    return " ".join(found)


def recording(rng: np.random.Generator, sample_rate: int, least: int = 1) -> tuple[Array, int]:
    """As `open_sound` takes it: some seconds of `speech`, at least so many samples, and their rate."""
    seconds = _log_uniform(rng, _SECONDS)
    return speech(rng, max(seconds, least / sample_rate), sample_rate), sample_rate


def speech(rng: np.random.Generator, seconds: float, sample_rate: int) -> Array:
    """float32, shape = (samples,), full scale = ±1: syllables of a voice with formants, breaths and pauses,
    over faint noise. Nobody would understand it, but its pitch, spectrum and loudness go as in speech."""
    samples = max(1, round(seconds * sample_rate))
    time = np.arange(samples) / sample_rate
    count = max(1, round(_SYLLABLES_PER_S * seconds))
    edges = np.sort(rng.random(count + 1)) * seconds
    pitch = np.interp(time, edges, rng.uniform(*_PITCH_HZ, count + 1))
    loud, voiced = np.zeros(samples), np.zeros(samples)
    formants = [np.interp(time, edges, rng.uniform(*band, count + 1)) for band in _FORMANTS_HZ]
    for start, stop in itertools.pairwise(edges):
        if rng.random() < 0.2:
            continue  # a pause
        within = (time >= start) & (time < stop)
        loud[within] = rng.uniform(0.3, 1.0) * np.sin(math.pi * (time[within] - start) / (stop - start))
        voiced[within] = rng.random() < 0.8
    phase = 2 * math.pi * np.cumsum(pitch) / sample_rate
    voice = np.zeros(samples)
    for harmonic in range(1, 1 + int(min(4000.0, sample_rate / 2) / _PITCH_HZ[1])):
        shaped = sum(np.exp(-(((harmonic * pitch - at) / _FORMANT_WIDTH_HZ) ** 2)) for at in formants)
        voice += np.sin(harmonic * phase) * (shaped + 0.2) / harmonic
    breath = rng.standard_normal(samples)
    sound = loud * (voiced * voice + 0.2 * (1 - voiced) * breath)
    peak = float(np.abs(sound).max()) or 1.0
    return (0.5 * sound / peak + 0.002 * _pink(rng, (samples,))).astype(np.float32)


def _log_uniform(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    """As likely between 1 and 2 as between 10 and 20."""
    low, high = ends
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _pink(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Noise whose amplitude falls with the frequency, float32, of standard deviation 1."""
    spectrum = np.fft.rfftn(rng.standard_normal(shape))
    frequencies = [np.fft.fftfreq(size) for size in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    distance = np.sqrt(sum(axis**2 for axis in np.ix_(*frequencies)))
    spectrum /= np.maximum(distance, 1 / max(shape))
    noise = np.fft.irfftn(spectrum, shape, axes=range(len(shape)))
    spread = float(noise.std())
    return (noise / spread if spread else noise).astype(np.float32)
