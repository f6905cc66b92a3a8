"""Sound as samples: a recording of any usual kind becomes one channel of float32 at the model's rate."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from infer.errors import InputError, missing_package
from infer.signature import Array

try:
    import soundfile
except (ImportError, OSError) as _error:
    raise missing_package("soundfile", "audio", _error) from _error
try:
    import soxr
except (ImportError, OSError) as _error:
    raise missing_package("soxr", "audio", _error) from _error

MAX_SAMPLES = 2**28
"""A recording may have this many samples, all channels together, and as many after resampling: 1 GiB."""

SAMPLE_RATES = (1_000, 768_000)
"""The lowest and the highest sample rate a recording may have, in Hz."""

_BLOCK = 2**18  # frames decoded at a time: a header may lie about how many there are
_STREAMED = (0, 2**31 - 1, 2**31, 2**32 - 1)  # sizes written where the end was not known yet
_CUT = re.compile(r"^\s*(?:data|SSND|Data Size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
"""What libsndfile notes of a WAV, AIFF or AU file that is shorter than its header says."""

_SCALES = {"int16": 2.0**15, "int32": 2.0**31}


def open_sound(source: Any, sample_rate: int) -> Array:
    """The samples of `source` at `sample_rate` Hz, float32, shape = (samples,), full scale = ±1.

    `source` is a path, encoded bytes, or `(array, its sample rate)`: float32 or float64 as it is, int16,
    int32 or uint8 scaled to ±1; shape = (samples,) or (samples, channels). Channels are averaged.
    Resampling is soxr's at its high quality.

    Raises `InputError` for what is no sound, holds no samples, NaN or infinity, is longer than
    `MAX_SAMPLES`, or ends before its header says. An Ogg stream that was cut off does not say so:
    it is what is there.
    """
    if isinstance(source, tuple):
        where = "the given array"
        samples, given_rate = _from_array(source)
    else:
        where = f"'{source}'" if isinstance(source, (str, Path)) else "the given bytes"
        samples, given_rate = _decode(source, where)
    if not len(samples):
        raise InputError(f"{where} holds no samples; a recording must not be empty")
    if not np.isfinite(samples).all():
        raise InputError(f"{where} holds NaN or infinite samples; they must be finite numbers")
    return _resample(samples, given_rate, sample_rate, where)


class SoundStream:
    """A recording as it arrives: chunks of any length at one rate become samples at another.

    All chunks together give the samples that `open_sound` gives of the whole.
    """

    def __init__(self, given_rate: int, sample_rate: int) -> None:
        _check_rate(given_rate, "the stream")
        self._given_rate = given_rate
        self._resampler: Any = None
        if given_rate != sample_rate:
            self._resampler = soxr.ResampleStream(given_rate, sample_rate, 1, np.float32, quality="HQ")

    def add(self, chunk: Any, *, last: bool = False) -> Array:
        """The samples that `chunk`, an array as `open_sound` takes it, completes; float32. The resampler
        keeps a few milliseconds back until the `last` chunk. Raises `InputError`."""
        samples, _ = _from_array((chunk, self._given_rate))
        if not np.isfinite(samples).all():
            raise InputError("the chunk holds NaN or infinite samples; they must be finite numbers")
        if self._resampler is None:
            return samples
        return np.asarray(self._resampler.resample_chunk(samples, last=last), np.float32)


def _check_rate(given_rate: int, where: str) -> None:
    low, high = SAMPLE_RATES
    if not low <= given_rate <= high:
        raise InputError(
            f"{where} has a sample rate of {given_rate} Hz; it must be between {low} and {high}"
        )


def _resample(samples: Array, given_rate: int, sample_rate: int, where: str) -> Array:
    _check_rate(given_rate, where)
    if given_rate == sample_rate:
        return samples
    if len(samples) * (sample_rate / given_rate) > MAX_SAMPLES:
        raise _too_long(where)
    return np.asarray(soxr.resample(samples, given_rate, sample_rate, quality="HQ"), np.float32)


def _from_array(source: tuple[Any, ...]) -> tuple[Array, int]:
    array, rate = source if len(source) == 2 else (None, 0.5)
    number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not isinstance(array, np.ndarray) or not number or rate != rate // 1:
        raise InputError(
            "a sound given as a tuple must be (array, sample rate in Hz), such as (samples, 16000)"
        )
    channels = array.shape[1] if array.ndim == 2 else 1
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= channels <= 32):
        raise InputError(
            f"a sound array must have shape (samples,) or (samples, channels) with at most 32 channels,"
            f" but has {list(array.shape)}; put channels last"
        )
    if array.size > MAX_SAMPLES:
        raise _too_long("the given array")
    kind = array.dtype.name
    if kind in _SCALES:
        scaled = array / np.float64(_SCALES[kind])
    elif kind == "uint8":  # as in a WAV file: silence is 128
        scaled = (array.astype(np.float64) - 128.0) / 128.0
    elif kind in ("float32", "float64"):
        scaled = array
    else:
        raise InputError(
            f"a sound array must be float32, float64, int16, int32 or uint8, but is {kind}; convert it"
        )
    with np.errstate(over="ignore"):  # a float64 too large is refused as infinite
        samples = scaled.astype(np.float32)
    return _mono(samples), int(rate)


def _decode(source: Any, where: str) -> tuple[Array, int]:
    if isinstance(source, (str, Path)):
        with _open_file(Path(source)) as file:
            return _read(file, where)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(io.BytesIO(source), where)
    raise InputError(
        f"a sound must be a path, bytes, or (array, sample rate), but a {type(source).__name__} came"
    )


def _open_file(path: Path) -> BinaryIO:
    try:
        # without O_NONBLOCK, opening a pipe would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise InputError(f"there is no sound '{path}'; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"cannot open the sound '{path}': {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"'{path}' is not a file but a folder, pipe or device; give it a recording")
    return os.fdopen(descriptor, "rb")


def _read(file: BinaryIO, where: str) -> tuple[Array, int]:
    try:
        with soundfile.SoundFile(_Nameless(file)) as opened:
            if opened.frames * opened.channels > MAX_SAMPLES:
                raise _too_long(where)
            for claimed, there in _CUT.findall(opened.extra_info):
                if int(claimed) not in _STREAMED and int(claimed) > int(there):
                    raise _cut_off(where, f"{there} bytes of sound instead of {claimed}")
            blocks = [np.empty(0, np.float32)]
            while len(block := opened.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(_mono(block))
            samples = np.concatenate(blocks)
            if len(samples) < opened.frames:
                raise _cut_off(where, f"{len(samples)} samples instead of {opened.frames}")
            return samples, int(opened.samplerate)
    except InputError:
        raise
    except Exception as error:  # libsndfile's own, and TypeError for formats without a header
        reason = str(error).partition(": ")[2] or str(error)
        raise InputError(
            f"{where} cannot be read as a sound ({reason}); expected a whole WAV, FLAC, Ogg, MP3 or AIFF"
            f" file"
        ) from error


class _Nameless:
    """A file without its name, from whose end soundfile would conclude that it has no header."""

    def __init__(self, file: BinaryIO) -> None:
        self.read: Callable[..., bytes] = file.read
        self.readinto: Callable[..., int] = file.readinto  # type: ignore[attr-defined]
        self.seek: Callable[..., int] = file.seek
        self.tell: Callable[..., int] = file.tell


def _mono(samples: Array) -> Array:
    return np.asarray(samples.mean(axis=1)) if samples.ndim == 2 else samples


def _too_long(where: str) -> InputError:
    return InputError(
        f"{where} is longer than the {MAX_SAMPLES} samples a recording may have"
        f" ({MAX_SAMPLES / 3600 / 16000:.1f} hours at 16 kHz); cut it into pieces"
    )


def _cut_off(where: str, found: str) -> InputError:
    return InputError(f"{where} is cut off: it holds {found}; get the whole file")
