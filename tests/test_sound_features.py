"""Features of sound equal those of the programs the models were trained with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import transformers
from transformers import audio_utils

from infer.errors import ArtifactError, InputError
from infer.tasks.mel import MelSpec, filter_bank, mel_spectrogram
from infer.tasks.sound_features import SoundFeatures, SoundFeaturesSpec, padded
from tests import recordings

RATE = 16_000
AST = SoundFeaturesSpec(
    RATE,
    mel=MelSpec(
        window=400,
        hop=160,
        fft=512,
        bands=128,
        min_hertz=20.0,
        max_hertz=8000.0,
        scale="kaldi",
        equal_area=False,
        over_mel=True,
        symmetric=True,
        edges="none",
        remove_mean=True,
        preemphasis=0.97,
        floor=1.192092955078125e-07,
        logarithm="natural",
    ),
    frames=1024,
    mean=-4.2677393,
    std=2 * 4.5689974,
)
WHISPER = SoundFeaturesSpec(
    RATE,
    samples=30 * RATE,
    mel=MelSpec(window=400, hop=160, fft=400, bands=80, max_hertz=8000.0, floor=1e-10, logarithm="log10"),
    drop_last=True,
    range_below_peak=8.0,
    mean=-4.0,
    std=4.0,
    bands_first=True,
)
RESEMBLYZER = MelSpec(window=400, hop=160, fft=400, bands=40, max_hertz=8000.0, edges="zeros")


def sounds() -> list[np.ndarray]:
    return [recordings.samples(path) for kind in ("librivox", "cards") for path in recordings.files(kind)]


def test_raw_samples_equal_wav2vec2s_feature_extractor() -> None:
    """Mean 0 and variance 1 on ten recordings and on silence are bit by bit the extractor's."""
    extract = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    features = SoundFeatures(SoundFeaturesSpec(RATE, unit_variance=True))
    for sound in (*sounds(), np.zeros(500, np.float32)):
        theirs = extract(sound, sampling_rate=RATE, return_tensors="np")["input_values"][0]
        np.testing.assert_array_equal(features(sound), theirs)
    plain = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    sound = sounds()[0]
    theirs = plain(sound, sampling_rate=RATE, return_tensors="np")["input_values"][0]
    np.testing.assert_array_equal(SoundFeatures(SoundFeaturesSpec(RATE))(sound), theirs)


def test_batches_are_padded_as_by_wav2vec2s_feature_extractor() -> None:
    """Ten recordings of ten lengths: the same zeros at the end, and the same attention mask."""
    extract = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    features = SoundFeatures(SoundFeaturesSpec(RATE, unit_variance=True))
    theirs = extract(sounds(), sampling_rate=RATE, padding=True, return_tensors="np")
    values, mask = padded([features(sound) for sound in sounds()])
    np.testing.assert_array_equal(mask, theirs["attention_mask"])
    # the extractor sums over the padded row's slice, in another order
    np.testing.assert_allclose(values, theirs["input_values"], atol=1e-6)


# 128 bands over 257 bins: the lowest fall between two bins, in the original too
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_filter_bank_features_equal_asts_feature_extractor() -> None:
    """Ten recordings, silence, and 15 s that must be cut are within 5e-7 of the extractor's values."""
    extract = transformers.ASTFeatureExtractor()
    assert extract.mel_filters.shape == (257, 128)  # its numpy path
    long = np.tile(sounds()[0], 3)[: 15 * RATE]
    for sound in (*sounds(), np.zeros(RATE, np.float32), long):
        theirs = extract(sound, sampling_rate=RATE, return_tensors="np")["input_values"][0]
        ours = SoundFeatures(AST)(sound)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=5e-7, rtol=0)


def test_log_mel_equals_whispers_feature_extractor() -> None:
    """Ten recordings and 31 s that must be cut are within 5e-7 of the extractor's float64 in numpy, and
    within 5e-5 of its float32 in torch, which is as far from its own float64."""
    extract = transformers.WhisperFeatureExtractor()
    long = np.tile(sounds()[0], 5)[: 31 * RATE]
    features = SoundFeatures(WHISPER)
    for sound in (*sounds(), long):
        theirs = extract(sound, sampling_rate=RATE, return_tensors="np")["input_features"][0]
        np.testing.assert_allclose(features(sound), theirs, atol=5e-5)
        whole = np.pad(sound[: 30 * RATE], (0, max(0, 30 * RATE - len(sound))))
        exact = extract._np_extract_fbank_features(whole[None], "cpu")[0]
        np.testing.assert_allclose(features(sound), exact, atol=5e-7)


@pytest.mark.parametrize(("scale", "name"), [("slaney", "slaney"), ("htk", "htk"), ("kaldi", "kaldi")])
@pytest.mark.parametrize("equal_area", [True, False])
@pytest.mark.parametrize("over_mel", [True, False])
def test_filter_banks_equal_transformers(scale: str, name: str, equal_area: bool, over_mel: bool) -> None:
    """Triangles of each scale, norm and axis are within 1e-12 of transformers', made to equal librosa's."""
    spec = replace(
        RESEMBLYZER, scale=scale, equal_area=equal_area, over_mel=over_mel, min_hertz=50.0, max_hertz=7600.0
    )
    theirs = audio_utils.mel_filter_bank(
        201, 40, 50.0, 7600.0, RATE, "slaney" if equal_area else None, name, over_mel
    )
    np.testing.assert_allclose(filter_bank(spec, RATE), theirs, atol=1e-12)


def test_mel_power_equals_transformers_form_of_librosa() -> None:
    """Ten recordings, as Resemblyzer's librosa takes them, are within 1e-6 of the highest power of what
    transformers' librosa-compatible spectrogram gives."""
    bank = audio_utils.mel_filter_bank(201, 40, 0.0, 8000.0, RATE, "slaney", "slaney")
    for sound in sounds():
        window = audio_utils.window_function(400, "hann")
        theirs = audio_utils.spectrogram(
            sound, window, 400, 160, power=2.0, pad_mode="constant", mel_filters=bank
        ).T
        ours = mel_spectrogram(sound, RATE, RESEMBLYZER)
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * theirs.max(), rtol=0)


def test_power_of_a_tone_is_the_closed_form() -> None:
    """A sine of amplitude a in the middle of a bin has power (a · sum(window) / 2)² there; triangles of
    height 1 share it out without loss, as one falls where the next rises."""
    spec = replace(RESEMBLYZER, equal_area=False, edges="none")
    hertz, amplitude = 40 * 50, 0.25  # bin 50 of 400 at 16 kHz
    sound = amplitude * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)
    # Hann's window leaks half the amplitude into each neighbour: 1 + 2 · (1/2)² of the power
    expected = (amplitude * 200 / 2) ** 2 * 1.5
    np.testing.assert_allclose(mel_spectrogram(sound, RATE, spec).sum(axis=1), expected, rtol=1e-6)


def test_frames_do_not_depend_on_blocks() -> None:
    """A minute's spectrogram, made in several blocks, holds that of its first seconds."""
    sound = np.tile(sounds()[0], 9)[: 60 * RATE]
    spec = replace(RESEMBLYZER, edges="none")
    long, short = mel_spectrogram(sound, RATE, spec), mel_spectrogram(sound[: 5 * RATE], RATE, spec)
    np.testing.assert_allclose(long[: len(short)], short, rtol=1e-12)


def test_too_short_sounds_are_refused() -> None:
    """Less than the model needs, and less than a frame, are errors that say how much is needed."""
    with pytest.raises(InputError, match=r"400 samples at 16000 Hz is too short; .* 401 \(0\.0251 s\)"):
        SoundFeatures(SoundFeaturesSpec(RATE, min_samples=401))(np.zeros(400, np.float32))
    with pytest.raises(InputError, match=r"399 samples is shorter than a frame of 400; .* 0\.025 s"):
        SoundFeatures(AST)(np.zeros(399, np.float32))


HOSTILE: list[dict[str, Any]] = [
    {"sample_rate": 0},
    {"samples": -5},
    {"samples": 10**12},
    {"frames": 10**12},
    {"std": 0.0},
    {"mean": float("inf")},
    {"mel": {"fft": 2**30}},
    {"mel": {"fft": 0, "window": 0}},
    {"mel": {"hop": 0}},
    {"mel": {"bands": 10**9}},
    {"mel": {"max_hertz": 9000.0}},
    {"mel": {"max_hertz": float("nan")}},
    {"mel": {"scale": "bark"}},
    {"mel": {"edges": "wrap"}},
    {"mel": {"logarithm": "log2"}},
    {"mel": {"floor": 0.0}},
    {"mel": {"preemphasis": float("nan")}},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_specs_that_cannot_be_followed_are_refused(changes: dict[str, Any]) -> None:
    """Sizes of nothing and of gigabytes, bands beyond the rate, and unknown names: `ArtifactError`."""
    assert AST.mel is not None
    if "mel" in changes:
        changes = {"mel": replace(AST.mel, **changes["mel"])}
    with pytest.raises(ArtifactError, match="of the task's spec"):
        SoundFeatures(replace(AST, **changes))


def test_a_spectrogram_of_too_many_values_is_refused() -> None:
    """A hop of one sample makes a frame of each: refused before gigabytes are taken."""
    spec = replace(RESEMBLYZER, hop=1, bands=4000)
    with pytest.raises(InputError, match="larger than 268435456 values"):
        mel_spectrogram(np.zeros(100_000, np.float32), RATE, spec)
