"""Inputs that are made up where there is no data: they are like real ones, and tasks take them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.signature import TensorSpec
from infer.tasks import SyntheticTask, synthetic
from infer.tasks.columns import Column
from infer.tasks.intensities import IntensityStep, ScanSpec, synthetic_intensities
from infer.tasks.scans import Scan
from tests.test_object_detection import detector
from tests.test_recommendation import ITEMS, folder, pairs, recommender
from tests.test_segmentation import RESCALE
from tests.test_segmentation import task as segmenter
from tests.test_tabular import columns_of

__all__ = ["folder"]


def _slope(picture: np.ndarray) -> float:
    """By which power of the frequency the amplitude of a square grey picture goes."""
    edge = len(picture)
    amplitude = np.abs(np.fft.fft2(picture - picture.mean()))
    axis = np.fft.fftfreq(edge) * edge
    distance = np.hypot(*np.meshgrid(axis, axis)).round().astype(int)
    found = [amplitude[distance == at].mean() for at in range(2, edge // 4)]
    return float(np.polyfit(np.log(range(2, edge // 4)), np.log(found), 1)[0])


def test_pictures_have_the_spectrum_of_photographs() -> None:
    """Amplitude falls about with the frequency; noise has as much of all."""
    rng = np.random.default_rng(0)
    slopes = [_slope(synthetic.picture(rng, (256, 256)).mean(axis=2)) for _ in range(5)]
    assert -1.6 < min(slopes) < max(slopes) < -0.8
    assert abs(_slope(rng.random((256, 256)))) < 0.1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 24), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 100))
def test_leaves_of_any_shape(shape: list[int], channels: int, seed: int) -> None:
    found = synthetic.leaves(np.random.default_rng(seed), tuple(shape), channels)
    assert found.shape == (*shape, channels)
    assert found.dtype == np.float32
    assert 0.0 <= found.min() <= found.max() <= 1.0


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-5, 1.0), st.sampled_from([1_000, 8_000, 16_000, 44_100]), st.integers(0, 100))
def test_speech_of_any_length(seconds: float, rate: int, seed: int) -> None:
    found = synthetic.speech(np.random.default_rng(seed), seconds, rate)
    assert found.shape == (max(1, round(seconds * rate)),)
    assert found.dtype == np.float32
    assert np.abs(found).max() < 1.0


def test_speech_has_loud_and_soft_parts_and_is_mostly_low() -> None:
    found = synthetic.speech(np.random.default_rng(0), 8.0, 16_000)
    frames = found[: len(found) // 320 * 320].reshape(-1, 320)
    loudness = np.sqrt((frames**2).mean(axis=1))
    assert np.percentile(loudness, 90) > 10 * np.percentile(loudness, 10)
    power = np.abs(np.fft.rfft(found)) ** 2
    assert power[: len(power) // 4].sum() > 0.8 * power.sum()  # below 2 kHz


def test_texts_are_of_common_words() -> None:
    vocabulary = ["[PAD]", "##s", "7", "a", *(f"{chr(97 + i % 26)}x" * (1 + i // 26) for i in range(900))]
    rng = np.random.default_rng(0)
    texts = [synthetic.text(rng, vocabulary.__getitem__, len(vocabulary)).split() for _ in range(300)]
    counted = Counter(word for text in texts for word in text)
    assert counted.keys() <= set(vocabulary[4:])
    assert sum(counted[word] for word in vocabulary[4:100]) > sum(counted[w] for w in vocabulary[-400:])
    lengths = [len(text) for text in texts]
    assert min(lengths) == 3
    assert 50 < max(lengths) <= 64


def test_a_vocabulary_without_words_ends_all_the_same() -> None:
    assert synthetic.text(np.random.default_rng(0), lambda _: "##", 100) == ""


def test_a_recording_is_long_enough() -> None:
    samples, rate = synthetic.recording(np.random.default_rng(0), 16_000, least=200_000)
    assert rate == 16_000
    assert len(samples) == 200_000
    assert 1.5 <= len(synthetic.recording(np.random.default_rng(0), 8_000)[0]) / 8_000 <= 8.0


def test_rows_are_taken_by_their_columns() -> None:
    kinds = ("boolean", "ordinal", "one-hot", "multi-hot")
    columns = columns_of(
        Column("age", mean=40.0, scale=10.0),
        *(Column(kind, kind, categories=("a", "b") if kind != "boolean" else ()) for kind in kinds),
    )
    rng = np.random.default_rng(0)
    fed = columns.feeds([columns.synthetic(rng) for _ in range(200)])["x"]
    assert fed.shape == (200, 7)
    assert abs(fed[:, 0].mean()) < 0.3
    assert 0.8 < fed[:, 0].std() < 1.2
    assert (np.ptp(fed[:, 1:], axis=0) == 1).all()  # no category is left out
    assert (fed[:, 3:5].sum(axis=1) == 1).all()


def test_users_are_known_ones(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for task in (recommender(folder), pairs(folder)):
        assert isinstance(task, SyntheticTask)
        asked = [task.synthetic(rng) for _ in range(20)]
        assert len({each["user"] for each in asked}) > 2
        assert {result.by for result in task(asked)} == {"model"}
    strangers = recommender(
        folder,
        (TensorSpec("age", "float32", ("batch", 1)),),
        lambda feeds: {"y": np.zeros((len(feeds["age"]), ITEMS))},
        user_input=None,
        users=None,
        seen=None,
        user_columns=[{"name": "age", "input": "age"}],
    )
    assert len(strangers([strangers.synthetic(rng)])[0].items) == 3


def test_pictures_of_several_sizes_where_the_task_takes_any() -> None:
    ran: list[tuple[int, ...]] = []
    task = detector(ran=ran)
    rng = np.random.default_rng(0)
    task([task.synthetic(rng) for _ in range(6)])
    assert len(set(ran)) > 1
    fixed = detector(steps=[{"op": "resize", "height": 20, "width": 30}])
    assert fixed.synthetic(rng).shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("scan", "spacing", "windows"),
    [
        ({"steps": [{"op": "window", "center": 40, "width": 400}]}, [], None),
        ({"steps": [{"op": "clip", "low": -1000, "high": 400}], "spacing_mm": [1.0, 1.0, 2.0]}, [], None),
        ({"steps": [{"op": "z_score"}]}, [0.5, 0.5, 0.5], {"size": [8, 12, 16]}),
    ],
)
def test_scans_have_the_intensities_that_the_task_looks_at(
    scan: dict[str, object], spacing: list[float], windows: dict[str, object] | None
) -> None:
    seen: list[np.ndarray] = []

    def answer(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return np.concatenate([x, -x], axis=1)

    task = segmenter(answer, {"scan": scan, "spacing_mm": spacing, "windows": windows}, axes=3)
    made = task.synthetic(np.random.default_rng(0))
    assert isinstance(made, Scan)
    task(made)
    assert seen[0].shape[2:] == ((8, 12, 16) if windows else (64, 64, 64))
    values = np.concatenate([x.ravel() for x in seen])
    assert np.percentile(values, 75) > np.percentile(values, 25)


def test_intensities_follow_the_first_step() -> None:
    ends = np.array([0.0, 1.0], np.float32)
    assert synthetic_intensities(ends, ScanSpec()).tolist() == pytest.approx([-(3**0.5), 3**0.5])
    step = IntensityStep("z_score", mean=100.0, std=10.0)
    spread = synthetic_intensities(np.linspace(0, 1, 1001, dtype=np.float32), ScanSpec((step,)))
    assert spread.mean() == pytest.approx(100.0)
    assert spread.std() == pytest.approx(10.0, rel=0.01)


def test_pictures_to_segment() -> None:
    task = segmenter(lambda x: x, {"steps": RESCALE}, classes=3)
    assert task(task.synthetic(np.random.default_rng(0))).mask.size
