"""Recordings of every usual kind become float32 at the model's rate, or are refused by name."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from infer.errors import InputError
from infer.tasks import sound
from infer.tasks.sound import open_sound
from tests import recordings


def encoded(samples: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return np.asarray(0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate))


EXACT = [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16")]
ROUNDED = [("WAV", "PCM_U8", 1 / 128), ("OGG", "VORBIS", 0.1), ("MP3", None, 0.1)]


@pytest.mark.parametrize(("kind", "subtype"), EXACT)
def test_files_without_loss_give_the_samples_they_were_made_from(kind: str, subtype: str) -> None:
    """A real 16-bit recording kept as 16 and 24 bits, float, FLAC and AIFF is the same, bit by bit."""
    real = recordings.samples(recordings.files("librivox")[1])
    found = open_sound(encoded(real, 16_000, kind, subtype), 16_000)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, real)


@pytest.mark.parametrize(("kind", "subtype", "step"), ROUNDED)
def test_files_with_loss_give_what_soundfile_decodes(kind: str, subtype: str | None, step: float) -> None:
    """8-bit unsigned WAV, Ogg Vorbis and MP3 are decoded as by soundfile, near the real recording."""
    real = recordings.samples(recordings.files("librivox")[1])
    data = encoded(real, 16_000, kind, subtype)
    found = open_sound(data, 16_000)
    # libmpg123's sums differ by one part in 2^25 with the length of a read
    np.testing.assert_allclose(found, soundfile.read(io.BytesIO(data), dtype="float32")[0], atol=6e-8)
    assert len(found) == len(real)
    assert np.abs(found - real).max() <= step


def test_path_bytes_and_arrays_agree(tmp_path: Path) -> None:
    """A path, its text, its bytes, and arrays of int16, int32, uint8 and floats are the same sound; a name
    that promises headerless data does not matter."""
    path = recordings.files("cards")[0]
    real = recordings.samples(path)
    (tmp_path / "wav.raw").write_bytes(path.read_bytes())
    whole = soundfile.read(path, dtype="int16")[0]
    forms: list[Any] = [
        *(path, str(path), path.read_bytes(), bytearray(path.read_bytes()), tmp_path / "wav.raw"),
        *((real, 16_000), (real.astype(np.float64), 16_000.0), (whole, np.int64(16_000))),
        (whole.astype(np.int32) * 65536, 16_000),
    ]
    for form in forms:
        np.testing.assert_array_equal(open_sound(form, 16_000), real)
    coarse = (np.array([0, 128, 192, 255], np.uint8), 16_000)
    assert open_sound(coarse, 16_000).tolist() == [-1.0, 0.0, 0.5, 127 / 128]


def test_channels_are_averaged() -> None:
    """Stereo is the mean of its channels, in a file and in an array; a lone channel is itself."""
    left, right = tone(16_000), tone(16_000, hertz=880.0)
    both = np.stack([left, right], axis=1)
    expected = both.mean(axis=1).astype(np.float32)
    np.testing.assert_allclose(open_sound((both, 16_000), 16_000), expected, atol=1e-7)
    np.testing.assert_allclose(
        open_sound(encoded(both, 16_000, "WAV", "FLOAT"), 16_000), expected, atol=1e-7
    )
    np.testing.assert_array_equal(
        open_sound((left[:, None], 16_000), 16_000), open_sound((left, 16_000), 16_000)
    )


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_a_resampled_tone_is_the_tone(rate: int) -> None:
    """440 Hz taken at other rates is within 1e-4 of the sine at 16 kHz, away from the ends, and as long."""
    found = open_sound(encoded(tone(rate), rate, "WAV", "FLOAT"), 16_000)
    assert len(found) == 16_000
    np.testing.assert_allclose(found[500:-500], tone(16_000)[500:-500], atol=1e-4)


def test_what_a_rate_cannot_hold_is_removed() -> None:
    """6 kHz, which 8 kHz cannot hold, leaves less than a thousandth; it does not come back as 2 kHz."""
    found = open_sound((tone(48_000, hertz=6_000.0), 48_000), 8_000)
    assert np.abs(found[100:-100]).max() < 5e-4


def test_a_resampled_recording_equals_scipy() -> None:
    """Real speech taken down to 8 kHz correlates to 0.999 with scipy's polyphase filter."""
    from scipy.signal import resample_poly

    real = recordings.samples(recordings.files("librivox")[0])
    ours, theirs = open_sound((real, 16_000), 8_000), resample_poly(real, 1, 2)
    assert len(ours) == len(theirs)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.999


def test_clipping_is_kept() -> None:
    """Floats beyond full scale stay as they are: what to do about them is the model's preprocessing."""
    loud = np.array([0.5, 1.5, -2.0], np.float32)
    np.testing.assert_array_equal(open_sound(encoded(loud, 16_000, "WAV", "FLOAT"), 16_000), loud)


NOT_SOUNDS = {
    "nothing": b"",
    "text": b"hello world " * 50,
    "zeros": bytes(4096),
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "header": b"RIFF\x24\x00\x00\x00WAVE",
    "no format": b"RIFF" + struct.pack("<I", 12) + b"WAVEdata" + struct.pack("<I", 0),
}


@pytest.mark.parametrize("name", NOT_SOUNDS)
def test_what_is_not_a_sound_is_refused(name: str, tmp_path: Path) -> None:
    """Other files, given as path and as bytes, are an error that names the file and what is expected."""
    (tmp_path / "x.wav").write_bytes(NOT_SOUNDS[name])
    with pytest.raises(InputError, match=r"x\.wav' cannot be read as a sound .*expected a whole WAV"):
        open_sound(tmp_path / "x.wav", 16_000)
    with pytest.raises(InputError, match="the given bytes cannot be read"):
        open_sound(NOT_SOUNDS[name], 16_000)


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "FLAC", "MP3"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_files_that_were_cut_off_are_refused(kind: str, share: float) -> None:
    """A file that ends before its header says is refused, wherever it was cut."""
    whole = encoded(tone(16_000), 16_000, kind)
    open_sound(whole, 16_000)
    with pytest.raises(InputError, match=r"is cut off: it holds \d+ |cannot be read as a sound"):
        open_sound(whole[: int(len(whole) * share)], 16_000)


def test_an_ogg_stream_that_was_cut_off_is_what_is_there() -> None:
    """Ogg does not say how long it is: half a file is the first part of the recording."""
    real = recordings.samples(recordings.files("librivox")[0])
    data = encoded(real, 16_000, "OGG", "VORBIS")
    whole, part = open_sound(data, 16_000), open_sound(data[: len(data) // 2], 16_000)
    assert 0 < len(part) < len(whole)
    np.testing.assert_allclose(part[: len(part) // 2], whole[: len(part) // 2], atol=1e-6)


def test_a_wav_written_to_a_pipe_is_whole() -> None:
    """Programs that write to a pipe leave 2^32 - 1 as the size; that is not a cut."""
    data = bytearray(encoded(tone(16_000), 16_000, "WAV", "PCM_16"))
    place = data.index(b"data") + 4
    data[4:8] = data[place : place + 4] = b"\xff" * 4
    assert len(open_sound(bytes(data), 16_000)) == 16_000


def test_empty_and_unreal_samples_are_refused() -> None:
    """A file or array without samples, and NaN or infinity anywhere, are errors that say so."""
    for empty in (encoded(np.zeros(0), 16_000, "WAV"), (np.zeros(0, np.float32), 16_000)):
        with pytest.raises(InputError, match="holds no samples"):
            open_sound(empty, 16_000)
    for bad in (np.nan, np.inf, 1e300):
        samples = np.array([0.0, bad, 0.0])
        with pytest.raises(InputError, match="NaN or infinite samples"):
            open_sound((samples, 16_000), 16_000)
        with pytest.raises(InputError, match="NaN or infinite samples"):
            open_sound(encoded(samples, 16_000, "WAV", "DOUBLE"), 8_000)


def test_the_longest_recording_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording beyond the limit is refused with it: in channels, in a file, and after resampling."""
    monkeypatch.setattr(sound, "MAX_SAMPLES", 1000)
    assert len(open_sound((np.zeros(1000, np.float32), 16_000), 16_000)) == 1000
    stereo = np.zeros((501, 2), np.float32)
    too_long: list[tuple[Any, int]] = [
        ((stereo, 16_000), 16_000),
        (encoded(stereo, 16_000, "FLAC"), 16_000),
        ((np.zeros(501, np.float32), 8_000), 16_000),
    ]
    for source, rate in too_long:
        with pytest.raises(InputError, match="longer than the 1000 samples a recording may have"):
            open_sound(source, rate)


def test_a_header_that_claims_hours_takes_no_memory() -> None:
    """A FLAC file of a few kB that claims 2^36 - 1 samples is refused before any is decoded."""
    data = bytearray(encoded(tone(16_000), 16_000, "FLAC"))
    # STREAMINFO, after the magic and its own header, ends in 36 bits of length and an MD5
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    with pytest.raises(InputError, match="longer than the 268435456 samples"):
        open_sound(bytes(data), 16_000)


@pytest.mark.parametrize("rate", [0, -8_000, 999, 10**6])
def test_rates_nothing_records_at_are_refused(rate: int) -> None:
    """Sample rates below 1 kHz or above 768 kHz are an error that states both limits."""
    with pytest.raises(InputError, match="it must be between 1000 and 768000"):
        open_sound((np.zeros(100, np.float32), rate), 16_000)


def test_pipes_folders_devices_and_absent_files_are_refused(tmp_path: Path) -> None:
    """A pipe nobody writes to is not waited for, and /dev/zero is not read."""
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a file but a folder, pipe or device"):
            open_sound(path, 16_000)
    with pytest.raises(InputError, match=r"there is no sound .*none\.wav"):
        open_sound(tmp_path / "none.wav", 16_000)
    with pytest.raises(InputError, match="cannot open the sound"):
        open_sound("a\0b.wav", 16_000)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (np.zeros(10, np.float32), "but a ndarray came"),
        (5, "but a int came"),
        (None, "but a NoneType came"),
        ((np.zeros(10), True), "sample rate in Hz"),
        ((np.zeros(10), 16_000.5), "sample rate in Hz"),
        ((np.zeros(10), float("nan")), "sample rate in Hz"),
        ((np.zeros(10), 16_000, 1), "sample rate in Hz"),
        (([0.0], 16_000), "sample rate in Hz"),
        ((np.zeros((2, 16_000)), 16_000), "put channels last"),
        ((np.zeros((16_000, 0)), 16_000), "put channels last"),
        ((np.zeros((2, 2, 2)), 16_000), "put channels last"),
        ((np.zeros(10, np.complex64), 16_000), "but is complex64; convert it"),
        ((np.zeros(10, bool), 16_000), "but is bool; convert it"),
    ],
    ids=str,
)
def test_other_things_are_refused(source: Any, expected: str) -> None:
    """What is neither path, bytes nor an array with its rate is an error that says what a sound is."""
    with pytest.raises(InputError, match=expected):
        open_sound(source, 16_000)
