"""Vectors of voices equal Resemblyzer's own, on real recordings, without torch."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve
from transformers import audio_utils

import converters
import infer
from bench.zoo import convert
from bench.zoo import resemblyzer as zoo
from infer.errors import ArtifactError, InputError
from infer.evaluation import Dataset, evaluate, evaluate_task
from infer.evaluation.verification import pairs
from infer.tasks.speaker_embedding import SpeakerEmbedding
from tests import recordings
from tests.tiny import edit_manifest

RATE = 16_000


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo's encoder, by way of TorchScript: dynamo takes twenty times as long for its LSTMs."""
    path = tmp_path_factory.mktemp("voices") / "resemblyzer.infer"
    model, example = zoo.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript on each call
        scripted = torch.jit.script(model)
    converters.convert(scripted, path, example_inputs=example, task=zoo.task())
    return path


@pytest.mark.slow
def test_the_zoos_family_gives_the_same_vectors(artifact: Path, tmp_path: Path) -> None:
    """The family as it is built, by way of dynamo, is within 1e-6 of the graph the other tests use."""
    every = [(sound, RATE) for sound in sounds()]
    built = convert("resemblyzer", tmp_path / "family.infer")
    with infer.load(built.path) as family, infer.load(artifact) as session:
        np.testing.assert_allclose(family(every), session(every), atol=1e-6)


def sounds() -> list[np.ndarray]:
    return [recordings.samples(path) for kind in ("librivox", "cards") for path in recordings.files(kind)]


def task_of(session: infer.Session) -> SpeakerEmbedding:
    assert isinstance(session.task, SpeakerEmbedding)
    return session.task


def librosas_mel(*, y: np.ndarray, sr: int, n_fft: int, hop_length: int, n_mels: int) -> np.ndarray:
    """`librosa.feature.melspectrogram` by transformers, whose filter bank is librosa's to the bit."""
    bank = audio_utils.mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, sr / 2, sr, "slaney", "slaney")
    window = audio_utils.window_function(n_fft, "hann")
    return audio_utils.spectrogram(
        y, window, n_fft, hop_length, power=2.0, pad_mode="constant", mel_filters=bank
    )


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package itself; of the packages it imports, only librosa's mel spectrogram is used here."""
    stand_ins = {
        name: types.ModuleType(name) for name in ("librosa", "webrtcvad", "scipy.ndimage.morphology")
    }
    stand_ins["librosa"].feature = types.SimpleNamespace(melspectrogram=librosas_mel)  # type: ignore[attr-defined]
    stand_ins["scipy.ndimage.morphology"].binary_dilation = None  # type: ignore[attr-defined]
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("resemblyzer")
    for name in [name for name in sys.modules if name.partition(".")[0] == "resemblyzer"]:
        del sys.modules[name]


def test_vectors_equal_resemblyzers_own(artifact: Path, original: Any, tmp_path: Path) -> None:
    """On ten recordings, all of them in a row, and two soft ones: `embed_utterance` after the package's own
    volume, and without; cosine at least 0.999999, no value more than 2e-6 away."""
    encoder = original.VoiceEncoder("cpu", verbose=False)
    soft = [sounds()[2] * np.float32(0.05), sounds()[7] * np.float32(0.001)]
    every = [*sounds(), np.concatenate(sounds()), *soft]
    louder = [original.normalize_volume(sound, -30, increase_only=True) for sound in every]
    assert sum(not np.array_equal(a, b) for a, b in zip(every, louder, strict=True)) == 2
    bare = tmp_path / "bare.infer"
    shutil.copytree(artifact, bare)
    edit_manifest(bare, lambda data: data["task"]["spec"].update(volume_db=None))
    for path, heard in ((artifact, louder), (bare, every)):
        with infer.load(path) as session:
            ours = session([(sound, RATE) for sound in every])
        theirs = np.stack([encoder.embed_utterance(sound) for sound in heard])
        assert ours.dtype == np.float32
        assert float(np.min(np.sum(ours * theirs, axis=1))) >= 0.999999
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("per_second", [0.7, 1.3, 4.0])
@pytest.mark.parametrize("min_coverage", [0.1, 0.75, 1.0])
def test_partial_utterances_begin_where_the_originals_do(
    artifact: Path, original: Any, tmp_path: Path, per_second: float, min_coverage: float
) -> None:
    """200 lengths from a sample to a minute are cut into the slices of `compute_partial_slices`."""
    path = tmp_path / "a.infer"
    shutil.copytree(artifact, path)
    settings = {"per_second": per_second, "min_coverage": min_coverage}
    edit_manifest(path, lambda data: data["task"]["spec"].update(settings))
    lengths = np.unique(np.geomspace(1, 60 * RATE, 200).astype(int))
    with infer.load(path) as session:
        task = task_of(session)
        for length in lengths.tolist():
            _, slices = original.VoiceEncoder.compute_partial_slices(length, per_second, min_coverage)
            assert list(task._starts(length)) == [s.start for s in slices]


def test_one_voice_is_told_from_another(artifact: Path) -> None:
    """Two sentences of a reader are one voice, a reader and somebody else are not; both ways around."""
    reader, other = recordings.files("librivox"), recordings.files("cards")
    with infer.load(artifact) as session:
        task = task_of(session)
        same, different = task.verify(reader[0], reader[2]), task.verify(reader[0], other[1])
        assert same.same
        assert not different.same
        assert same.threshold == different.threshold == zoo.THRESHOLD
        assert same.similarity == pytest.approx(task.compare(reader[2], reader[0]), abs=1e-6)
        first, second = session([reader[0], reader[2]])
        assert same.similarity == pytest.approx(float(first @ second), abs=1e-6)


def test_the_zoos_threshold_was_chosen_on_other_recordings(artifact: Path) -> None:
    """It is where both errors are equally frequent on two recordings of each voice, and the data it is
    judged on has none of their samples."""
    chosen, voices = zoo.pieces(range(2))
    with infer.load(artifact) as session:
        vectors = session(chosen)
    first, second = np.triu_indices(len(chosen), 1)
    scores = np.sum(vectors[first] * vectors[second], axis=1)
    same = np.array(voices)[first] == np.array(voices)[second]
    wrong, right, thresholds = roc_curve(same, scores, drop_intermediate=False)
    assert thresholds[np.argmin(np.abs(wrong - (1 - right)))] == pytest.approx(zoo.THRESHOLD, abs=5e-3)
    known = {samples.tobytes() for samples, _ in chosen}
    judged = {samples.tobytes() for pair in zoo.dataset().inputs for samples, _ in pair}
    assert len(judged) > 10
    assert not known & judged


def test_vectors_do_not_depend_on_their_company(artifact: Path) -> None:
    """Alone, in a list, or after an hour's worth of partial utterances: the same vector of length 1."""
    path = recordings.files("librivox")[0]
    long = np.tile(np.concatenate(sounds()), 2)
    with infer.load(artifact) as session:
        parts = list(task_of(session).parts([(long, RATE), path]))
        assert len(parts) > 3
        alone, (first, second) = session(path), session([(long, RATE), path])
        np.testing.assert_allclose(second, alone, atol=1e-6)
        assert float(np.linalg.norm(first)) == pytest.approx(1.0, abs=1e-6)
        assert session([]).shape[0] == 0
        assert len(json.loads(json.dumps(session.task.to_json(alone)))["vector"]) == zoo.SIZE
        assert session.task.describe(alone).startswith("vector of 256: [")


def test_a_recording_without_a_voice_is_refused(artifact: Path) -> None:
    """Silence is an error with the recording's place: two silent files must not be one voice. A single loud
    sample is answered, padded with silence."""
    good = recordings.files("cards")[0]
    with infer.load(artifact) as session:
        with pytest.raises(InputError, match="recording 1: it holds nothing but silence"):
            session([good, (np.zeros(RATE, np.float32), RATE)])
        with pytest.raises(InputError, match="recording 0: there is no sound"):
            session(Path("none.wav"))
        assert session((np.ones(1, np.float32), RATE)).shape == (256,)


def test_verify_needs_a_threshold(artifact: Path, tmp_path: Path) -> None:
    """Without a threshold in the spec, comparing works and verifying is refused."""
    path, voice = tmp_path / "a.infer", recordings.files("cards")[0]
    shutil.copytree(artifact, path)
    edit_manifest(path, lambda data: data["task"]["spec"].update(threshold=None))
    with infer.load(path) as session:
        assert task_of(session).compare(voice, voice) == pytest.approx(1.0, abs=1e-6)
        with pytest.raises(ArtifactError, match="has no threshold, so it cannot verify"):
            task_of(session).verify(voice, voice)


class Vectors:
    """A task whose inputs are their own vectors."""

    def __init__(self, threshold: float | None = None) -> None:
        self.setting = types.SimpleNamespace(name="speaker-embedding")
        self.spec = types.SimpleNamespace(threshold=threshold)
        self.asked = 0

    def __call__(self, inputs: list[Any]) -> np.ndarray:
        self.asked += len(inputs)
        return np.stack(inputs)


def at_angle(cosine: float) -> np.ndarray:
    return np.array([cosine, np.sqrt(1 - cosine**2)])


def test_verification_metrics_are_the_closed_forms() -> None:
    """Of pairs with known cosines, ROC AUC is the share of rightly ordered ones, TAR at FAR the share of
    same pairs above the allowed number of different ones, EER where both errors meet."""
    base = np.array([1.0, 0.0])
    same, different = [0.95, 0.9, 0.8, 0.55], [0.85, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, -0.1, -0.2]
    inputs = [(base, at_angle(c)) for c in (*same, *different)]
    dataset = Dataset("angles", inputs, [True] * 4 + [False] * 10)
    task = Vectors(threshold=0.7)
    found = evaluate_task(task, dataset)
    assert task.asked == 15  # the vector in all pairs once
    assert found.count == 14
    # misordered: 0.8 below one, 0.55 below two
    assert found.metrics["roc_auc"] == pytest.approx(37 / 40)
    # one false accept of ten, 0.85, lets 0.95, 0.9 and 0.8 in
    assert found.metrics["tar_at_far_0.1"] == pytest.approx(3 / 4)
    assert "tar_at_far_0.01" not in found.metrics
    # at 0.6: two of ten accepted, one of four refused; at 0.8: one of ten, one of four
    assert found.metrics["eer"] == pytest.approx((2 / 10 + 1 / 4) / 2)
    assert found.metrics["accuracy"] == pytest.approx(12 / 14)
    assert "accuracy" not in evaluate_task(Vectors(), dataset).metrics


def test_an_evaluation_reads_tables_and_folders(artifact: Path, tmp_path: Path) -> None:
    """All pairs of folders of voices, and a table of them, give the same metrics; other words than true and
    false, and pairs of one kind only, are refused."""
    rows = []
    for voice in ("librivox", "cards"):
        (tmp_path / "data" / voice).mkdir(parents=True)
        for path in recordings.files(voice)[:3]:
            shutil.copy(path, tmp_path / "data" / voice)
            rows.append((f"data/{voice}/{path.name}", voice))
    listed = pairs("x", rows, [voice for _, voice in rows])
    lines = [f"{a[0]},{b[0]},{same}" for (a, b), same in zip(listed.inputs, listed.expected, strict=True)]
    (tmp_path / "pairs.csv").write_text("\n".join(["first,second,same", *lines]))
    with infer.load(artifact) as session:
        folder, table = evaluate(session, tmp_path / "data"), evaluate(session, tmp_path / "pairs.csv")
        assert folder.count == 15
        assert folder.metrics == pytest.approx(table.metrics)
        assert folder.metrics["roc_auc"] > 0.9
        (tmp_path / "odd.csv").write_text(f"first,second,same\n{rows[0][0]},{rows[1][0]},maybe\n")
        with pytest.raises(InputError, match=r"pair 0 must be the same or not .* but is 'maybe'"):
            evaluate(session, tmp_path / "odd.csv")
        (tmp_path / "one.csv").write_text(f"first,second,same\n{rows[0][0]},{rows[1][0]},1\n")
        with pytest.raises(InputError, match="all of its 1 are the same"):
            evaluate(session, tmp_path / "one.csv")


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"input": "none"}, "names the input 'none', which the graph lacks"),
    ({"output": "none"}, "names the output 'none', which the graph lacks"),
    ({"frames": 100}, r"feeds \[batch, 100, 40\], but the graph takes"),
    ({"per_second": 0.0}, "leaves gaps between partial utterances"),
    ({"per_second": 0.1}, "leaves gaps between partial utterances"),
    ({"per_second": 1e-300}, "leaves gaps between partial utterances"),
    ({"per_second": 1e9}, "or no frame from one to the next"),
    ({"min_coverage": 0.0}, "min_coverage of task"),
    ({"volume_db": 5.0}, "volume_db of task"),
    ({"threshold": 2.0}, "the threshold must be -1 to 1"),
    ({"features": {"sample_rate": RATE}}, "must be a mel spectrogram"),
    ({"weights": "x"}, r"unknown keys \['weights'\]"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE, ids=str)
def test_specs_that_do_not_fit_the_graph_are_refused(
    artifact: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """A manifest that names tensors the graph lacks, or sizes it does not take, is an `ArtifactError`."""
    path = tmp_path / "a.infer"
    shutil.copytree(artifact, path)
    edit_manifest(path, lambda data: data["task"]["spec"].update(changes))
    with infer.load(path) as session, pytest.raises(ArtifactError, match=message):
        session((np.ones(RATE, np.float32), RATE))


def test_the_zoos_encoder_is_the_originals(original: Any) -> None:
    """The module that is converted answers as the package's own, bit by bit."""
    model, example = zoo.build()
    with torch.no_grad():
        ours = model(example["mels"])["vectors"]
        theirs = original.VoiceEncoder("cpu", verbose=False)(example["mels"])
    assert torch.equal(ours, theirs)
