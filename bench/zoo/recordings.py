"""Recordings of speech from the Debian package pocketsphinx-testdata, 16 kHz, 16 bits.

Five sentences that a LibriVox reader reads (public domain), and five times playing cards named by
somebody else.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from bench.zoo.debian import package
from infer.signature import Array

SAMPLE_RATE = 16_000


def files(kind: str) -> list[Path]:
    """The .wav files of "librivox" or "cards". Raises `NoDataError`."""
    data = package("pocketsphinx-testdata") / "usr/share/pocketsphinx/test/data"
    return sorted((data / kind).glob("*.wav"))


def librivox() -> list[Array]:
    """The read sentences as float32. Raises `NoDataError`."""
    return [samples(path) for path in files("librivox")]


def cards() -> list[Array]:
    """The named cards as float32. Raises `NoDataError`."""
    return [samples(path) for path in files("cards")]


def samples(path: Path) -> Array:
    """A 16-bit file with one channel as float32, full scale = ±1."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SAMPLE_RATE)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
