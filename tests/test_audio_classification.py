"""Classifiers of sound answer as transformers' own pipeline does, on real recordings, without torch."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import converters
import infer
from bench.zoo import convert, source, voices
from bench.zoo.debian import NoDataError
from converters.original import original_task
from converters.sources import SourceRequest, open_source
from infer.errors import ArtifactError, InputError
from infer.evaluation import Dataset, evaluate, evaluate_task
from tests import recordings
from tests.serving import serving
from tests.tiny import edit_manifest

# 128 bands over 257 bins: the lowest fall between two bins, in the original too
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")

LABELS = {0: "speech", 1: "music", 2: "silence"}


def wav2vec2(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        id2label=LABELS,
        **settings,
    )
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    layers = settings.get("feat_extract_norm") == "layer"
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=layers).save_pretrained(folder)
    return folder


def ast(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        id2label=LABELS,
        max_length=256,
        **settings,
    )
    transformers.ASTForAudioClassification(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(max_length=256).save_pretrained(folder)
    return folder


def whisper(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        classifier_proj_size=16,
        id2label=LABELS,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        max_source_positions=150,
    )
    transformers.WhisperForAudioClassification(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(chunk_length=3).save_pretrained(folder)
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {"wav2vec2": wav2vec2, "ast": ast, "whisper": whisper}


SPEED = [pytest.param(name, marks=() if name == "ast" else pytest.mark.slow) for name in MODELS]


class Converted:
    """Folders of models and their artifacts, each made when it is first asked for."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def folder(self, name: str) -> Path:
        path = self.place / name
        return path if path.exists() else MODELS[name](path)

    def artifact(self, name: str) -> Path:
        path = self.place / f"{name}.infer"
        if not path.exists():
            converters.convert(self.folder(name), path)
        return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(tmp_path_factory.mktemp("models"))


def pipeline_scores(folder: Path, sounds: list[np.ndarray]) -> np.ndarray:
    """Scores of transformers' pipeline, asked one recording at a time, in the order of the classes."""
    model = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    classify = transformers.pipeline(
        "audio-classification", model=model, feature_extractor=extractor, top_k=None
    )
    found = [{item["label"]: item["score"] for item in classify(sound)} for sound in sounds]
    return np.array([[scores[label] for label in LABELS.values()] for scores in found])


def our_scores(results: list[Any]) -> np.ndarray:
    return np.array([[{r.index: r.score for r in ranked}[i] for i in LABELS] for ranked in results])


@pytest.mark.parametrize("name", SPEED)
def test_scores_equal_transformers_pipeline(made: Converted, name: str) -> None:
    """`infer convert` of a folder attaches the task; ten recordings of ten lengths, together and alone,
    have the pipeline's scores within 1e-5, and its labels."""
    paths = [*recordings.files("librivox"), *recordings.files("cards")]
    theirs = pipeline_scores(made.folder(name), [recordings.samples(path) for path in paths])
    with infer.load(made.artifact(name)) as session:
        together = session(paths)
        np.testing.assert_allclose(our_scores(together), theirs, atol=1e-5)
        np.testing.assert_allclose(our_scores([session(paths[3])]), theirs[3:4], atol=1e-5)
        assert [ranked[0].label for ranked in together] == [LABELS[int(i)] for i in theirs.argmax(axis=1)]
        assert session([]) == []


@pytest.mark.slow
def test_recordings_are_padded_only_with_a_mask(tmp_path: Path) -> None:
    """A model that was trained with an attention mask, converted with it, answers recordings of different
    lengths in one batch, and as the pipeline does each alone."""
    folder = wav2vec2(tmp_path / "model", feat_extract_norm="layer", do_stable_layer_norm=True)
    example = {
        "input_values": torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.ones(2, 16_000, dtype=torch.int64),
    }
    example["attention_mask"][1, 9_000:] = 0
    artifact = converters.convert(folder, tmp_path / "masked.infer", example_inputs=example)
    paths = recordings.files("cards")
    with infer.load(artifact.path) as session:
        (part,) = session.task.parts(paths)  # type: ignore[attr-defined]
        assert sorted(part.feeds) == ["attention_mask", "input_values"]
        results = session(paths)
    theirs = pipeline_scores(folder, [recordings.samples(path) for path in paths])
    np.testing.assert_allclose(our_scores(results), theirs, atol=1e-5)


@pytest.mark.slow
def test_independent_labels_and_regression_are_the_pipelines(tmp_path: Path) -> None:
    """The config's problem type decides between softmax, sigmoid and the model's bare numbers."""
    paths = recordings.files("cards")[:2]
    for problem in ("multi_label_classification", "regression"):
        folder = ast(tmp_path / problem, problem_type=problem)
        artifact = converters.convert(folder, tmp_path / f"{problem}.infer")
        theirs = pipeline_scores(folder, [recordings.samples(path) for path in paths])
        with infer.load(artifact.path) as session:
            np.testing.assert_allclose(our_scores(session(paths)), theirs, atol=1e-5)


@pytest.mark.parametrize("joined", ["mean", "max"])
def test_long_recordings_are_heard_in_windows(made: Converted, tmp_path: Path, joined: str) -> None:
    """With windows of 2 s every second, scores are the mean or highest of the pipeline's over the same
    slices, the last one at the end; a short recording is one window; metrics see the same scores."""
    path = tmp_path / "a.infer"
    shutil.copytree(made.artifact("ast"), path)
    settings = {"window_s": 2.0, "hop_s": 1.0, "windows": joined}
    edit_manifest(path, lambda data: data["task"]["spec"].update(settings))
    long, short = (recordings.samples(recordings.files(kind)[0]) for kind in ("librivox", "cards"))
    assert (len(long), len(short)) == (113_600, 17_526)  # 7.1 s and 1.1 s
    starts = [0, 16_000, 32_000, 48_000, 64_000, 80_000, 81_600]
    each = pipeline_scores(made.folder("ast"), [long[start : start + 32_000] for start in starts])
    expected = np.stack(
        [getattr(np, joined)(each, axis=0), pipeline_scores(made.folder("ast"), [short])[0]]
    )
    inputs = [(long, 16_000), (short, 16_000)]
    with infer.load(path) as session:
        np.testing.assert_allclose(our_scores(session(inputs)), expected, atol=1e-5)
        if joined == "mean":
            found = evaluate_task(session.task, Dataset("two", inputs, [0, 1])).metrics
            assert found["log_loss"] == pytest.approx(-np.log(expected[[0, 1], [0, 1]]).mean(), abs=1e-4)


def test_windows_without_end_are_refused(made: Converted, tmp_path: Path) -> None:
    """A window for each sample of ten seconds is an error that says how many there would be."""
    path = tmp_path / "a.infer"
    shutil.copytree(made.artifact("ast"), path)
    edit_manifest(path, lambda data: data["task"]["spec"].update(window_s=1.0, hop_s=1 / 16_000))
    with infer.load(path) as session, pytest.raises(InputError, match="cut into 144000 windows, more than"):
        session((np.zeros(160_000, np.float32), 16_000))


def test_every_form_of_a_recording_is_answered(made: Converted, tmp_path: Path) -> None:
    """Path, bytes, arrays at 16 and 48 kHz: the same labels, and scores within what resampling changes."""
    path = recordings.files("librivox")[2]
    sound = recordings.samples(path)
    fast = (np.repeat(sound, 3), 48_000)  # three equal samples in place of one
    with infer.load(made.artifact("ast")) as session:
        results = session([path, path.read_bytes(), (sound, 16_000), fast])
        assert results[0] == results[1] == results[2]
        np.testing.assert_allclose(our_scores(results[3:]), our_scores(results[:1]), atol=0.05)
        assert session(session.task.parse(str(path))) == results[0]
        assert session(session.task.read(path)) == results[:1]
        assert (
            json.loads(json.dumps(session.task.to_json(results[0])))["labels"][0]["label"]
            in LABELS.values()
        )


def test_a_server_hears_recordings(made: Converted, tmp_path: Path) -> None:
    """As a body and as base64: the session's own answers; what is no recording is the client's fault."""
    sound = recordings.files("librivox")[2].read_bytes()
    with infer.load(made.artifact("ast")) as session:
        expected = json.loads(json.dumps(session.task.to_json(session(sound))))
    inputs = [{"b64": base64.b64encode(sound).decode()}]
    with serving(tmp_path, made.artifact("ast")) as served:
        for sent in (
            {"content": sound, "headers": {"content-type": "audio/wav"}},
            {"json": {"inputs": inputs}},
        ):
            response = served.post("/v1/models/ast:predict", **sent)
            assert response.status_code == 200, response.text
            (result,) = response.json()["results"]
            for got, wanted in zip(result["labels"], expected["labels"], strict=True):
                assert got["label"] == wanted["label"]
                assert got["score"] == pytest.approx(wanted["score"], abs=1e-6)
        wrong = {"content": b"no sound", "headers": {"content-type": "audio/wav"}}
        response = served.post("/v1/models/ast:predict", **wrong)
        assert (response.status_code, "cannot be read as a sound" in response.text) == (400, True)


def test_recordings_that_cannot_be_answered_are_named(made: Converted) -> None:
    """Too short for a frame, or no recording: an error with the recording's place."""
    good = recordings.files("cards")[0]
    with infer.load(made.artifact("ast")) as session:
        with pytest.raises(InputError, match="recording 1: a recording of 399 samples is shorter than"):
            session([good, (np.zeros(399, np.float32), 16_000)])
        with pytest.raises(InputError, match="recording 0: the given bytes cannot be read as a sound"):
            session(b"no sound")


@pytest.mark.slow
def test_recordings_shorter_than_the_models_view_are_refused(made: Converted) -> None:
    """Wav2Vec2's convolutions see 400 samples: fewer are an error that says so; 0.05 s are answered."""
    with infer.load(made.artifact("wav2vec2")) as session:
        with pytest.raises(InputError, match=r"399 samples .* needs at least 400 \(0\.025 s\)"):
            session((np.zeros(399, np.float32), 16_000))
        # between the two lies what the conversion was not proved for, which is an error of its own
        assert len(session((np.zeros(800, np.float32), 16_000))) == 3


def test_an_evaluation_reads_class_folders_and_tables(made: Converted, tmp_path: Path) -> None:
    """Folders of recordings by class, and a table of files, give the accuracy counted by hand."""
    with infer.load(made.artifact("ast")) as session:
        rows = []
        for i, path in enumerate(recordings.files("cards")):
            label = "speech" if i % 2 else session(path)[0].label
            (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "data" / label / f"{i}.wav")
            rows.append((f"data/{label}/{i}.wav", label, session(path)[0].label == label))
        (tmp_path / "test.csv").write_text(
            "file,label\n" + "".join(f"{file},{label}\n" for file, label, _ in rows)
        )
        expected = np.mean([right for _, _, right in rows])
        for data in (tmp_path / "data", tmp_path / "test.csv"):
            assert evaluate(session, data).metrics["accuracy"] == pytest.approx(expected)


def test_a_folder_whose_features_are_unknown_has_no_task(tmp_path: Path) -> None:
    """An extractor that infer does not know leaves arrays in, arrays out, and a note that says why."""
    folder = ast(tmp_path / "model")
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["feature_extractor_type"] = "SeamlessM4TFeatureExtractor"
    path.write_text(json.dumps(settings))
    source = open_source(SourceRequest(source=str(folder), name="model"))
    assert source.task is None
    assert any("infer does not know SeamlessM4TFeatureExtractor" in note for note in source.notes)


@pytest.mark.slow
def test_the_zoos_voices_are_told_apart_as_by_the_original(tmp_path: Path) -> None:
    """The classifier trained on two voices names held-out recordings right, and the artifact's metrics are
    those of the original in torch."""
    try:
        artifact = convert("voices", tmp_path / "voices.infer")
    except NoDataError as error:
        pytest.skip(str(error))
    with infer.load(artifact.path) as session, original_task(source("voices"), artifact) as original:
        ours, theirs = (evaluate_task(task, voices.dataset()) for task in (session.task, original))
    assert ours.metrics["accuracy"] > 0.9
    assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-6)


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"input": "none"}, "names the input 'none', which the graph lacks; it has input_values"),
    ({"output": "none"}, "names the output 'none', which the graph lacks; it has logits"),
    ({"mask": "input_values"}, "needs an input of int64 or int32 or bool with 2 dims"),
    ({"labels": ["one"]}, "has 1 labels, but the model gives 3 classes"),
    ({"window_s": 0.0}, "window_s of task 'audio-classification' must be at least one sample"),
    ({"window_s": 1.0, "hop_s": -1.0}, "hop_s of task 'audio-classification' must be at least one"),
    ({"windows": "median"}, "windows cannot be joined by 'median'"),
    ({"top_k": 0}, "must be at least 1"),
    ({"steps": []}, r"unknown keys \['steps'\]"),
    ({"features": {"sample_rate": 16_000}}, "needs an input of float32 with 2 dims"),
    ({"features": {"sample_rate": 10**12}}, "must be 1 to"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE, ids=str)
def test_specs_that_do_not_fit_the_graph_are_refused(
    made: Converted, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """A manifest that names tensors the graph lacks, or sizes it does not take, is an `ArtifactError`."""
    path = tmp_path / "a.infer"
    shutil.copytree(made.artifact("ast"), path)
    edit_manifest(path, lambda data: data["task"]["spec"].update(changes))
    with infer.load(path) as session, pytest.raises(ArtifactError, match=message):
        session((np.zeros(16_000, np.float32), 16_000))
