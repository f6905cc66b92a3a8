"""Segments of speech equal silero-vad's own, whole and as they arrive, without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import silero_vad
import torch
from silero_vad.utils_vad import get_speech_timestamps_from_probs

import converters
import infer
from bench.zoo import silero_vad as zoo
from infer.errors import ArtifactError, InputError
from infer.evaluation import Dataset, evaluate, evaluate_task
from infer.manifest import TaskSpec
from infer.tasks.speech_segments import Segmenter, SegmentRules, SpeechSegment
from infer.tasks.voice_activity import VoiceActivity
from tests import recordings
from tests.tiny import edit_manifest

RATES = (16_000, 8_000)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    made = {}
    for rate in RATES:
        made[rate] = tmp_path_factory.mktemp("vad") / f"{rate}.infer"
        model, example = zoo.build(rate)
        converters.convert(model, made[rate], example_inputs=example, task=zoo.task(rate))
    return made


def sounds(rate: int) -> list[np.ndarray]:
    """Ten recordings, and all of them in a row with soft noise between; 8 kHz is every other sample."""
    real = [recordings.samples(path) for kind in ("librivox", "cards") for path in recordings.files(kind)]
    rng = np.random.default_rng(0)
    noise = [(rng.standard_normal(n) * 0.002).astype(np.float32) for n in rng.integers(4_000, 30_000, 10)]
    together = np.concatenate([part for pair in zip(noise, real, strict=True) for part in pair])
    return [sound[:: 16_000 // rate] for sound in (*real, together)]


def in_samples(segments: list[SpeechSegment], rate: int) -> list[tuple[int, int]]:
    return [(round(s.start_s * rate), round(s.end_s * rate)) for s in segments]


def task_of(session: infer.Session) -> VoiceActivity:
    assert isinstance(session.task, VoiceActivity)
    return session.task


def original_probabilities(sound: np.ndarray, rate: int) -> np.ndarray:
    """Those of the whole TorchScript program, which keeps its state itself."""
    program, window = zoo.program(), zoo.WINDOWS[rate][0]
    padded = np.pad(sound, (0, -len(sound) % window)).reshape(-1, window)
    with torch.no_grad():
        return np.array([program(torch.from_numpy(row), rate).item() for row in padded], np.float32)


@pytest.mark.parametrize("rate", [16_000, pytest.param(8_000, marks=pytest.mark.slow)])
def test_probabilities_equal_the_original_program(artifacts: dict[int, Path], rate: int) -> None:
    """Over 40 s of speech and noise, the state carried on, each window is within 1e-5 of TorchScript."""
    sound = sounds(rate)[-1]
    with infer.load(artifacts[rate]) as session:
        ours = task_of(session).probabilities((sound, rate))
    theirs = original_probabilities(sound, rate)
    assert len(ours) > 1000
    assert 0.2 < np.mean(theirs > 0.5) < 0.9
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


STRICT: dict[str, Any] = {"threshold": 0.8, "max_speech_s": 2.0, "pad_ms": 80.0}


@pytest.mark.parametrize(
    ("rate", "settings"),
    [
        pytest.param(16_000, {}, id="16 kHz"),
        pytest.param(8_000, STRICT, id="8 kHz, strict"),
        pytest.param(8_000, {}, id="8 kHz", marks=pytest.mark.slow),
        pytest.param(16_000, STRICT, id="16 kHz, strict", marks=pytest.mark.slow),
    ],
)
def test_segments_equal_the_originals(
    artifacts: dict[int, Path], tmp_path: Path, rate: int, settings: dict[str, Any]
) -> None:
    """silero-vad's own `get_speech_timestamps` finds the same samples in six recordings."""
    path = tmp_path / "vad.infer"
    shutil.copytree(artifacts[rate], path)
    edit_manifest(path, lambda data: data["task"]["spec"].update(rules=settings))
    program, found = zoo.program(), 0
    given = {"speech_pad_ms": settings["pad_ms"]} if settings else {}
    given |= {key: settings[key] for key in ("threshold", "max_speech_s") if key in settings}
    renamed = {"max_speech_s": "max_speech_duration_s"}
    with infer.load(path) as session:
        for sound in sounds(rate)[5:]:
            theirs = silero_vad.get_speech_timestamps(
                torch.from_numpy(sound.copy()),
                program,
                sampling_rate=rate,
                **{renamed.get(key, key): value for key, value in given.items()},
            )
            ours = session((sound, rate))
            assert in_samples(ours, rate) == [(s["start"], s["end"]) for s in theirs]
            found += len(ours)
    assert found > 10


def test_segment_rules_equal_the_originals() -> None:
    """600 random sequences of probabilities under random rules: the same segments, to the sample."""
    rng = np.random.default_rng(0)
    cut = 0
    for _ in range(600):
        rate = int(rng.choice([8_000, 16_000]))
        window = 512 if rate == 16_000 else 256
        # long runs with noise on top, so that pauses of all lengths occur
        runs = np.repeat(rng.random(rng.integers(1, 40)), rng.integers(1, 12))
        probabilities = np.clip(runs + rng.normal(0, 0.15, len(runs)), 0, 1)
        length = len(probabilities) * window - int(rng.integers(0, window))
        longest = None if rng.random() < 0.3 else float(rng.uniform(0.4, 3))
        end = None if rng.random() < 0.5 else float(rng.uniform(0.05, 0.6))
        rules = SegmentRules(
            threshold=float(rng.uniform(0.1, 0.9)),
            end_threshold=end,
            min_speech_ms=float(rng.integers(0, 500)),
            max_speech_s=longest,
            min_silence_ms=float(rng.integers(0, 400)),
            min_pause_ms=float(rng.integers(0, 150)),
            pad_ms=float(rng.integers(0, 150)),
        )
        theirs = get_speech_timestamps_from_probs(
            probabilities.tolist(),
            threshold=rules.threshold,
            sampling_rate=rate,
            min_speech_duration_ms=rules.min_speech_ms,
            max_speech_duration_s=float("inf") if longest is None else longest,
            min_silence_duration_ms=rules.min_silence_ms,
            speech_pad_ms=rules.pad_ms,
            neg_threshold=end,
            min_silence_at_max_speech=rules.min_pause_ms,
            audio_length_samples=length,
        )
        segmenter = Segmenter(rules, rate, window)
        for probability in probabilities:
            segmenter.add(float(probability))
        ours = in_samples(segmenter.segments(length), rate)
        assert ours == [(s["start"], s["end"]) for s in theirs]
        cut += longest is not None and len(ours) > 1
    assert cut > 100


def chunks(sound: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """`sound` in pieces of 0 to 3000 samples."""
    ends = np.cumsum(rng.integers(0, 3000, len(sound) // 1000))
    return np.split(sound, ends[ends < len(sound)])


def test_a_stream_hears_what_the_whole_recording_holds(artifacts: dict[int, Path]) -> None:
    """In chunks of any length, also empty ones and ones of int16, probabilities and segments are those of
    the whole, bit by bit; on the way, segments are those of the recording so far."""
    sound = sounds(16_000)[-1]
    whole = np.round(sound * 2**15).astype(np.int16)
    with infer.load(artifacts[16_000]) as session:
        task = task_of(session)
        expected, segments = task.probabilities((whole, 16_000)), session((whole, 16_000))
        stream = task.stream()
        heard = []
        for i, chunk in enumerate(chunks(whole, np.random.default_rng(0))):
            heard.append(stream.add(chunk if i % 2 else chunk / np.float32(2**15)))
            if i == 150:
                so_far = sum(map(len, heard)) * 512
                assert stream.segments == session((whole[:so_far], 16_000))
                assert len(stream.segments) > 1
        np.testing.assert_array_equal(np.concatenate(heard), expected[: sum(map(len, heard))])
        assert stream.finish() == segments
        assert not stream.speaking
        with pytest.raises(InputError, match="the stream is finished"):
            stream.add(whole)


def test_two_streams_of_a_session_do_not_disturb_each_other(artifacts: dict[int, Path]) -> None:
    """Fed in turns, with a whole recording answered between, each hears what it hears alone."""
    first, second = sounds(16_000)[0], sounds(16_000)[5]
    with infer.load(artifacts[16_000]) as session:
        task = task_of(session)
        alone = [task.probabilities((sound, 16_000)) for sound in (first, second)]
        one, two = task.stream(), task.stream()
        heard: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for start in range(0, len(first), 700):
            heard[0].append(one.add(first[start : start + 700]))
            heard[1].append(two.add(second[start : start + 700]))
            if start == 7000:
                session((second, 16_000))
        for ours, expected in zip(heard, alone, strict=True):
            together = np.concatenate(ours)
            assert len(together) >= len(expected) - 1
            np.testing.assert_array_equal(together, expected[: len(together)])
        assert one.finish() == session((first, 16_000))
        assert two.finish() == session((second, 16_000))


def test_a_stream_knows_whether_somebody_speaks(artifacts: dict[int, Path]) -> None:
    """Quiet before, speaking in the middle of a sentence, quiet after a second of silence."""
    sound, silence = sounds(16_000)[0], np.zeros(16_000, np.float32)
    with infer.load(artifacts[16_000]) as session:
        stream = task_of(session).stream()
        stream.add(silence)
        assert (stream.speaking, stream.segments) == (False, [])
        stream.add(sound[:32_000])
        assert stream.speaking
        stream.add(silence)
        assert not stream.speaking
        assert len(stream.segments) >= 1


def test_a_stream_at_another_rate_is_resampled_as_a_whole(artifacts: dict[int, Path]) -> None:
    """Chunks at 44.1 kHz give the segments that the whole recording at 44.1 kHz gives."""
    from scipy.signal import resample_poly

    fast = resample_poly(sounds(16_000)[0], 441, 160).astype(np.float32)
    with infer.load(artifacts[16_000]) as session:
        task = task_of(session)
        stream = task.stream(44_100)
        heard = np.concatenate([stream.add(chunk) for chunk in chunks(fast, np.random.default_rng(1))])
        expected = task.probabilities((fast, 44_100))
        np.testing.assert_allclose(heard, expected[: len(heard)], atol=1e-3)
        assert stream.finish() == session((fast, 44_100))
        with pytest.raises(InputError, match="sample rate of 10 Hz"):
            task.stream(10)


def test_bad_chunks_are_refused_and_the_stream_goes_on(artifacts: dict[int, Path]) -> None:
    """NaN, complex numbers and no array are errors; they leave no trace in the stream."""
    sound = sounds(16_000)[0]
    with infer.load(artifacts[16_000]) as session:
        stream = task_of(session).stream()
        for bad in (np.array([0.0, np.nan]), np.zeros(3, np.complex64), [0.0, 1.0], None):
            stream.add(sound[:1000]) if bad is None else None
            with pytest.raises(InputError):
                stream.add(bad)  # type: ignore[arg-type]
        stream.add(sound[1000:])
        assert stream.finish() == session((sound, 16_000))


def test_silence_and_a_lone_sample_hold_no_speech(artifacts: dict[int, Path]) -> None:
    """Silence, noise and a single sample give no segments, and say so."""
    noise = (np.random.default_rng(0).standard_normal(32_000) * 0.001).astype(np.float32)
    with infer.load(artifacts[16_000]) as session:
        for quiet in (np.zeros(16_000, np.float32), noise, np.zeros(1, np.float32)):
            assert session((quiet, 16_000)) == []
        assert session.task.describe([]) == "no speech"
        assert task_of(session).stream().finish() == []
        found = session(recordings.files("librivox")[0])
        assert json.loads(json.dumps(session.task.to_json(found)))["segments"][0]["start_s"] >= 0
        assert session.task.describe(found).count(" s") == 2 * len(found)


def test_the_originals_own_graph_is_adopted(artifacts: dict[int, Path], tmp_path: Path) -> None:
    """silero-vad's ONNX file, which takes the rate as a constant, serves both rates; segments are those of
    the converted TorchScript."""
    graph = tmp_path / "silero_vad.onnx"
    shutil.copy(Path(silero_vad.__file__).parent / "data/silero_vad.onnx", graph)
    for rate in RATES:
        spec = zoo.task(rate).spec
        spec = {**spec, "input": "input", "output": "output", "states": {"state": "stateN"}}
        task = TaskSpec("voice-activity", {**spec, "constants": {"sr": rate}})
        window = np.zeros((1, sum(zoo.WINDOWS[rate])), np.float32)
        example = {"input": window, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(rate)}
        adopted = converters.convert(graph, tmp_path / f"{rate}.infer", task=task, example_inputs=example)
        with infer.load(adopted.path) as theirs, infer.load(artifacts[rate]) as ours:
            for sound in sounds(rate)[:3]:
                assert theirs((sound, rate)) == ours((sound, rate))


def test_several_streams_can_share_a_batch(tmp_path: Path) -> None:
    """Converted with a batch that varies, the network answers as it does alone; the task takes it too."""
    model, _ = zoo.build()
    generator = torch.Generator().manual_seed(0)
    example = {"x": torch.randn(3, 576, generator=generator), "state": torch.zeros(2, 3, 128)}
    artifact = converters.convert(
        model,
        tmp_path / "batch.infer",
        example_inputs=example,
        dynamic={"x": {0: "batch"}, "state": {1: "batch"}},
        task=zoo.task(),
    )
    sound = sounds(16_000)[0]
    with infer.load(artifact.path) as session:
        theirs = original_probabilities(sound, 16_000)
        np.testing.assert_allclose(task_of(session).probabilities((sound, 16_000)), theirs, atol=1e-5)


def test_an_evaluation_compares_windows(artifacts: dict[int, Path], tmp_path: Path) -> None:
    """F1 and ROC AUC of a .jsonl file are those counted by hand from segments; a file whose segments are no
    numbers is refused."""
    path = recordings.files("librivox")[0]
    shutil.copy(path, tmp_path / "a.wav")
    marked = [[0.5, 3.0], [4.0, 6.0]]
    (tmp_path / "a.jsonl").write_text(json.dumps({"file": "a.wav", "segments": marked}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"file": "a.wav", "segments": [[1, "x"]]}) + "\n")
    with infer.load(artifacts[16_000]) as session:
        found = evaluate(session, tmp_path / "a.jsonl").metrics
        scores, segments = task_of(session).probabilities(path), session(path)
        middles = [(i + 0.5) * 0.032 for i in range(len(scores))]
        truth = [any(start <= t < end for start, end in marked) for t in middles]
        called = [any(s.start_s <= t < s.end_s for s in segments) for t in middles]
        both = sum(t and c for t, c in zip(truth, called, strict=True))
        assert found["f1"] == pytest.approx(2 * both / (sum(truth) + sum(called)))
        pairs = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~np.array(truth)]]
        assert found["roc_auc"] == pytest.approx(np.mean(pairs))
        with pytest.raises(InputError, match=r"example 0 must have a list of segments"):
            evaluate(session, tmp_path / "b.jsonl")
        silent = Dataset("silence", [(np.zeros(16_000, np.float32), 16_000)], [[]])
        assert evaluate_task(session.task, silent).metrics["accuracy"] == 1.0


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"input": "none"}, "names the input 'none', which the graph lacks"),
    ({"output": "none"}, "names the output 'none', which the graph lacks"),
    ({"states": {}}, "does not feed the graph's input 'state'"),
    ({"states": {"state": "none"}}, "names the output 'none', which the graph lacks"),
    ({"states": {"state": "output_0"}}, "needs an output of float32 with 3 dims"),
    ({"constants": {"rate": 5}}, "names the input 'rate', which the graph lacks"),
    ({"window": 0}, "window of task 'voice-activity' must be 1 to"),
    ({"window": 10**12}, "window of task 'voice-activity' must be 1 to"),
    ({"context": -1}, "context 0 to"),
    ({"window": 256}, r"feeds windows \[1, 320\], but the graph takes"),
    ({"rules": {"threshold": 2.0}}, "thresholds of the segment rules must be 0 to 1"),
    ({"rules": {"pad_ms": -1.0}}, "must be finite and at least 0 ms"),
    ({"rules": {"max_speech_s": 0.01}}, "must be more than its padding"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE, ids=str)
def test_specs_that_do_not_fit_the_graph_are_refused(
    artifacts: dict[int, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """A manifest that names tensors the graph lacks, or windows it does not take, is an `ArtifactError`."""
    path = tmp_path / "a.infer"
    shutil.copytree(artifacts[16_000], path)
    edit_manifest(path, lambda data: data["task"]["spec"].update(changes))
    with infer.load(path) as session, pytest.raises(ArtifactError, match=message):
        session((np.zeros(16_000, np.float32), 16_000))
