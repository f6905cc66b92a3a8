"""Real recordings for tests: five sentences of a LibriVox reader and five of another speaker, 16 kHz."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

from bench.zoo import recordings
from bench.zoo.debian import NoDataError
from infer.signature import Array


def files(kind: str) -> list[Path]:
    """The .wav files of "librivox" or "cards"; skips the test where the data cannot be had."""
    try:
        return recordings.files(kind)
    except NoDataError as error:
        pytest.skip(str(error))


def samples(path: Path) -> Array:
    """A recording as float32, read by soundfile itself."""
    array, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    return array
