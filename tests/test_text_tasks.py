"""Text tasks answer as transformers' own pipelines do, on the same folders."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import converters
import infer
from converters.sources import SourceRequest, open_source
from infer.errors import ArtifactError, InputError
from infer.evaluation import evaluate_task, read_dataset
from infer.tasks import Setting, task_class
from infer.tasks.labels import Classes
from infer.tasks.lines import split_lines
from tests.command import infer_command
from tests.text_models import LONG, SENTENCES, TAGS, bert_folder, roberta_folder

NAMES = {0: "bad", 1: "so so", 2: "good"}
PAIRS = [
    ("A man is eating food.", "Someone is having a meal."),
    ("", ""),
    ("naïve 🙂", ""),
    ("short", LONG),
    (LONG, "short"),
    (LONG, LONG),
    ("one " * 31, "two " * 30),
    ("one " * 30, "two " * 31),
]


@dataclass(frozen=True)
class Converted:
    """A folder, the session of its artifact, and transformers' pipeline around the folder's model."""

    folder: Path
    session: infer.Session
    kind: str

    def task(self, **changes: Any) -> Any:
        """The artifact's task with another spec."""
        spec = self.session.artifact.manifest.task
        assert spec is not None
        settings = json.loads(json.dumps(spec.spec))
        settings["tokenizer"].update(changes.pop("tokenizer", {}))
        return self.with_spec({**settings, **changes})

    def with_spec(self, settings: dict[str, Any]) -> Any:
        manifest = self.session.artifact.manifest
        file = self.session.artifact.file
        return task_class(self.kind)(
            Setting(self.kind, settings, manifest.signature, None, file, self.session.run)
        )

    def oracle(self, **settings: Any) -> Any:
        from transformers import AutoTokenizer, pipeline

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        tokenizer.model_max_length = 64
        return pipeline(self.kind, model=str(self.folder), tokenizer=tokenizer, **settings)


def convert(folder: Path, kind: str) -> Iterator[Converted]:
    artifact = converters.convert(folder, folder.with_suffix(".infer"))
    assert artifact.manifest.task is not None, artifact.manifest.provenance
    assert artifact.manifest.task.name == kind
    with infer.load(artifact.path) as session:
        yield Converted(folder, session, kind)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    folder = bert_folder(tmp_path_factory.mktemp("bert") / "a", "SequenceClassification", id2label=NAMES)
    yield from convert(folder, "text-classification")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    folder = bert_folder(tmp_path_factory.mktemp("bert") / "b", "TokenClassification", id2label=TAGS)
    yield from convert(folder, "token-classification")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    folder = roberta_folder(tmp_path_factory.mktemp("rob") / "c", "TokenClassification", id2label=TAGS)
    yield from convert(folder, "token-classification")


def same_labels(ours: Any, theirs: Any) -> None:
    assert [item.label for item in ours] == [item["label"] for item in theirs]
    np.testing.assert_allclose([o.score for o in ours], [t["score"] for t in theirs], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_and_pairs_equal_the_pipeline(labels: Converted, side: str) -> None:
    """Scores of single texts and of pairs, short, empty and cut on either side, are the pipeline's."""
    classify = labels.oracle(top_k=None)
    classify.tokenizer.truncation_side = side
    cut = {"truncation": True, "max_length": 64}
    task = labels.task(tokenizer={"truncate_left": side == "left"})
    texts = [*SENTENCES, LONG]
    for ours, text in zip(task(texts), texts, strict=True):
        same_labels(ours, classify([text], **cut)[0])
    for ours, (first, second) in zip(task(PAIRS), PAIRS, strict=True):
        same_labels(ours, classify({"text": first, "text_pair": second}, **cut))
    assert task({"text": PAIRS[0][0], "text_pair": PAIRS[0][1]}) == task(PAIRS[0])
    assert task({"text": "ok"}) == task("ok")


@pytest.mark.parametrize("family", ["labels", "bert", "roberta"])
def test_many_callers_get_what_one_gets(family: str, request: Any) -> None:
    """Texts of all lengths, rows padded beside others': labels, and entities with their places."""
    session: infer.Session = request.getfixturevalue(family).session
    texts = [text for text in [*SENTENCES, *(sentence * 2 for sentence in SENTENCES)] if text] * 2
    alone = [session.task.to_json(session(text)) for text in texts]
    assert session.batcher.layout.length  # type: ignore[union-attr]
    for _ in range(50):  # on a busy machine, each may have been answered before the next one comes
        with ThreadPoolExecutor(12) as pool:
            together = list(pool.map(session.batcher, texts))
        for result, expected in zip(together, alone, strict=True):
            _nearly(session.task.to_json(result), expected)
        stats = session.batcher.stats()
        if stats.rows > stats.runs:
            return
    pytest.fail("no two were ever answered together")


def _nearly(ours: Any, theirs: Any) -> None:
    """The same, but for the rounding of numbers."""
    if isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-5)
    elif isinstance(theirs, (list, dict)):
        keys = theirs if isinstance(theirs, dict) else range(len(theirs))
        assert len(ours) == len(theirs)
        for key in keys:
            _nearly(ours[key], theirs[key])
    else:
        assert ours == theirs


def test_huge_pairs_are_cut_at_once(labels: Converted) -> None:
    """A pair of a megabyte each is cut like any other, without joining its pieces in every way."""
    huge = ("one " * 250_000, "two " * 250_000)
    assert labels.session(huge) == labels.session(("one " * 100, "two " * 100))


def test_pairs_that_are_none_are_refused(labels: Converted) -> None:
    """Three texts, a mapping of something else and a number are errors that say which text."""
    for bad, message in (
        (("a", "b", "c"), "text 1 is a tuple of 3; a pair has 2 texts"),
        (("a", 5), "text 1 must be a str, but is a int: 5"),
        ({"sentence": "a"}, "text 1 is a mapping with 'sentence'; a pair has 'text' and 'text_pair'"),
        (b"bytes", "text 1 must be a str, but is a bytes"),
    ):
        with pytest.raises(InputError, match=message):
            labels.session(["fine", bad])


@pytest.mark.parametrize("windows", ["mean", "max"])
def test_long_texts_are_answered_by_windows(labels: Converted, windows: str) -> None:
    """With a stride, a text's scores are the mean or maximum of what the pipeline says of its windows."""
    task = labels.task(tokenizer={"stride": 10}, windows=windows)
    pipe = labels.oracle()
    encoded = pipe.tokenizer(
        LONG,
        truncation=True,
        max_length=64,
        stride=10,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    )
    encoded.pop("overflow_to_sample_mapping")
    assert len(encoded["input_ids"]) > 3
    with torch.no_grad():
        scores = pipe.model(**encoded).logits.softmax(-1).numpy()
    expected = scores.mean(0) if windows == "mean" else scores.max(0)
    ours, short = task([LONG, "ok"])
    np.testing.assert_allclose([i.score for i in ours], expected[[i.index for i in ours]], atol=1e-5)
    assert [item.label for item in short] == [item.label for item in labels.session("ok")]
    # a batcher may decode whole inputs by itself
    (part,) = task.parts([LONG])
    (decoded,) = task.decode(labels.session.run(part.feeds), part.about)
    np.testing.assert_allclose([i.score for i in decoded], [i.score for i in ours], atol=1e-6)


def test_several_labels_by_a_threshold(labels: Converted) -> None:
    """With sigmoid the scores are the pipeline's; with a threshold only what reaches it is a result."""
    classify = labels.oracle(top_k=None, function_to_apply="sigmoid")
    free = labels.task(activation="sigmoid")
    middle = float(np.median([item.score for result in free(SENTENCES) for item in result]))
    middle += 1e-4  # no score lies on it
    task = labels.task(activation="sigmoid", threshold=middle)
    count = 0
    for text in SENTENCES:
        theirs = classify([text])[0]
        same_labels(free(text), theirs)
        same_labels(task(text), [item for item in theirs if item["score"] >= middle])
        count += len(task(text))
    assert 0 < count < len(SENTENCES) * len(NAMES)
    nothing = labels.task(activation="sigmoid", threshold=1.0)
    assert nothing("ok") == []
    assert nothing.describe([]) == "no label reaches 100.00%"


KINDS: list[tuple[dict[str, Any], str]] = [
    ({"num_labels": 1}, "sigmoid"),
    ({"num_labels": 1, "problem_type": "regression"}, "none"),
    ({"num_labels": 3, "problem_type": "regression"}, "none"),
    ({"num_labels": 3, "problem_type": "multi_label_classification"}, "sigmoid"),
    ({"num_labels": 3, "problem_type": "single_label_classification"}, "softmax"),
]


@pytest.mark.parametrize(("config", "activation"), KINDS, ids=str)
def test_the_activation_is_the_pipelines(tmp_path: Path, config: dict[str, Any], activation: str) -> None:
    """Regression, one label, several labels: a folder's scores are those its pipeline gives."""
    from transformers import pipeline

    folder = bert_folder(tmp_path / "model", "SequenceClassification", **config)
    source = open_source(SourceRequest(source=folder, name="model"))
    assert source.task is not None
    assert source.task.spec["activation"] == activation
    classify = pipeline("text-classification", model=str(folder), top_k=None)
    theirs = classify(["It was fine"])[0]
    encoded = classify.tokenizer("It was fine", return_tensors="pt")
    with torch.no_grad():
        logits = source.module(**encoded).logits.numpy()
    classes = Classes(tuple(source.task.spec["labels"]), activation)
    same_labels(classes.rank(classes.scores(logits)[0]), theirs)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "tokenizer.json"])
def test_the_truncation_side_is_read(tmp_path: Path, where: str) -> None:
    """A tokenizer that cuts on the left, by its config or as saved in tokenizer.json, does so here."""
    left = {"truncation_side": "left"} if where == "tokenizer_config.json" else {}
    folder = bert_folder(tmp_path / "model", "SequenceClassification", tokenizer=left)
    if not left:
        saved = json.loads((folder / "tokenizer.json").read_text())
        saved["truncation"] = {
            "direction": "Left", "max_length": 64, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip
        (folder / "tokenizer.json").write_text(json.dumps(saved))
    task = open_source(SourceRequest(source=folder, name="model")).task
    assert task is not None
    assert task.spec["tokenizer"]["truncate_left"] is True


def test_a_task_that_answers_otherwise_is_not_attached(tmp_path: Path) -> None:
    """Where tokenizer.json lowers letters and the folder's config does not, transformers follows the
    config: there is a note and no task, rather than a wrong one."""
    cased = {"do_lower_case": False}
    for kind in ("SequenceClassification", "TokenClassification"):
        folder = bert_folder(tmp_path / kind, kind, tokenizer=cased)
        source = open_source(SourceRequest(source=folder, name="model"))
        assert source.task is None
        assert not source.files
        (note,) = source.notes
        assert note.startswith("no task: its tokenizer does not answer as transformers'")
        assert "'input_ids' differs for texts such as" in note


def test_a_folder_without_tokenizer_json_says_what_to_do(tmp_path: Path) -> None:
    """Without tokenizer.json there is a note that names the cure."""
    folder = bert_folder(tmp_path / "model", "SequenceClassification")
    (folder / "tokenizer.json").unlink()
    source = open_source(SourceRequest(source=folder, name="model"))
    assert source.task is None
    assert any("save_pretrained" in note for note in source.notes)


FAMILIES = ["bert", pytest.param("roberta", marks=pytest.mark.slow)]


def same_entities(ours: Any, theirs: Any, text: str) -> None:
    assert [(o.label, o.start, o.end) for o in ours] == [
        (t.get("entity_group", t.get("entity")), t["start"], t["end"]) for t in theirs
    ]
    np.testing.assert_allclose([o.score for o in ours], [t["score"] for t in theirs], atol=1e-5)
    assert [o.text for o in ours] == [text[t["start"] : t["end"]] for t in theirs]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_entities_equal_the_pipeline(family: str, aggregation: str, request: Any) -> None:
    """Each aggregation finds the pipeline's entities: accents, emoji, subwords, empty texts, cut ones."""
    converted: Converted = request.getfixturevalue(family)
    texts = [*SENTENCES, LONG]
    task = converted.task(aggregation=aggregation, tokenizer={"stride": None})
    find = converted.oracle(aggregation_strategy=aggregation)
    count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that byte-level tokens are no words
        for ours, text in zip(task(texts), texts, strict=True):
            theirs = find([text])[0]
            same_entities(ours, theirs, text)
            count += len(theirs)
    assert count > 10  # where words are joined, there are fewer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("aggregation", ["simple", "max"])
def test_windows_of_long_texts_equal_the_pipeline(family: str, aggregation: str, request: Any) -> None:
    """With a stride, entities are found in the whole text, those of overlaps once, as the pipeline's."""
    converted: Converted = request.getfixturevalue(family)
    task = converted.task(aggregation=aggregation, tokenizer={"stride": 16})
    find = converted.oracle(aggregation_strategy=aggregation, stride=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs = find([LONG])[0]
    same_entities(task([LONG, "ok"])[0], theirs, LONG)
    assert theirs[-1]["end"] > len(LONG) * 0.9
    # a batcher may decode whole inputs by itself
    parts = list(task.parts([LONG]))
    outputs = [converted.session.run(part.feeds) for part in parts]
    if len(parts) == 1:
        same_entities(task.decode(outputs[0], parts[0].about)[0], theirs, LONG)
    rows = [row for o, part in zip(outputs, parts, strict=True) for row in task.rows(o, part.about)]
    same_entities(task.join(rows), theirs, LONG)


def test_entities_are_evaluated_by_span_and_label(bert: Converted, tmp_path: Path) -> None:
    """F1, precision and recall count exact spans with the right label: here by hand."""
    task = bert.session.task
    texts = [SENTENCES[0], SENTENCES[1], "ok"]
    results = task(texts)
    entities = [[{"start": e.start, "end": e.end, "label": e.label} for e in found] for found in results]
    found = sum(map(len, entities))
    assert len(entities[0]) > 2
    entities[0].pop()  # one found that is not there
    entities[0][0]["label"] = "ELSE"  # one found under another name
    entities[1].append({"start": 0, "end": 3, "label": "PER"})  # one that is not found
    path = tmp_path / "data.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": t, "entities": e}) for t, e in zip(texts, entities, strict=True))
    )
    evaluation = evaluate_task(task, read_dataset(task, path))
    right, true = found - 2, found
    assert evaluation.metrics == pytest.approx(
        {"f1": 2 * right / (found + true), "precision": right / found, "recall": right / true}
    )
    assert sum(row.support for row in evaluation.classes) == true
    (other,) = (row for row in evaluation.classes if row.label == "ELSE")
    assert (other.precision, other.recall, other.f1, other.support) == (0.0, 0.0, 0.0, 1)
    path.write_text('{"text": "a", "entities": [{"begin": 0}]}')
    with pytest.raises(InputError, match="example 0 has the entities"):
        evaluate_task(task, read_dataset(task, path))


def test_entities_on_the_command_line(bert: Converted) -> None:
    """`infer run` prints entities with their places, and as JSON what the task gives."""
    artifact = bert.session.artifact.path
    done = infer_command("run", artifact, "--text", SENTENCES[0], "--json")
    assert done.code == 0
    (result,) = json.loads(done.out)["results"]
    expected = bert.session(SENTENCES[0])
    assert [(e["start"], e["end"], e["label"]) for e in result["entities"]] == [
        (e.start, e.end, e.label) for e in expected
    ]
    done = infer_command("run", artifact, "--text", SENTENCES[0])
    assert f"{expected[0].start}-{expected[0].end}" in done.out


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer": {"inputs": {}}}, "the tokenizer spec feeds nothing, but the graph takes input_ids"),
    ({"tokenizer": {"inputs": {"x": "ids"}}}, "feeds x, but the graph takes"),
    ({"tokenizer": {"max_length": -1}}, "cuts texts to -1 tokens"),
    ({"tokenizer": {"max_length": 2}}, "more than the 2 special ones"),
    ({"tokenizer": {"max_length": 2**40}}, "at most 2147483647"),
    ({"tokenizer": {"max_length": 10**30}}, "max_length must be a number that fits 64 bits"),
    ({"tokenizer": {"pad_id": 10**30}}, "pad_id must be a number that fits 64 bits"),
    ({"tokenizer": {"pad_id": -1}}, "pads 'input_ids' with -1"),
    ({"tokenizer": {"pad_type_id": -(2**40)}}, "pads 'token_type_ids'"),
    ({"tokenizer": {"stride": -1}}, "cannot share -1"),
    ({"tokenizer": {"stride": 62}}, "cannot share 62; 'stride' must be 0 to 61"),
    ({"tokenizer": {"stride": 2**40}}, "cannot share 1099511627776"),
    ({"output": "scores"}, "names the output 'scores', which the graph lacks; it has logits"),
    ({"labels": ["one"]}, "has 1 labels, but the model gives"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=str)
@pytest.mark.parametrize("family", ["labels", "bert"])
def test_hostile_specs_are_refused_when_loaded(
    family: str, change: dict[str, Any], message: str, request: Any
) -> None:
    """A spec that does not fit the graph or the tokenizer is an `ArtifactError` before any text."""
    converted: Converted = request.getfixturevalue(family)
    with pytest.raises(ArtifactError, match=message):
        converted.task(**change)


def test_settings_that_do_not_exist_are_refused(labels: Converted, bert: Converted) -> None:
    """Unknown activations, aggregations, joinings and kinds of feed are errors when the task is loaded."""
    inputs = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "numbers"}
    for change, message in (
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"windows": "median"}, "windows cannot be joined by 'median'"),
        ({"threshold": 2.0}, "the threshold 2.0 must be 0 to 1"),
        ({"tokenizer": {"inputs": inputs}}, "feeds 'token_type_ids' 'numbers'"),
    ):
        with pytest.raises(ArtifactError, match=message):
            labels.task(**change)
    with pytest.raises(ArtifactError, match="unknown aggregation 'last'"):
        bert.task(aggregation="last")
    with pytest.raises(ArtifactError, match="would be found twice"):
        bert.task(aggregation="none")


def test_lines_are_read_alike_from_a_file_and_from_stdin(labels: Converted, tmp_path: Path) -> None:
    r"""Only \n and \r\n end a line; blank lines and a byte order mark are skipped, in both ways."""
    text = "\ufeffone\u2028still one\r\n\n  \t \ntwo\x0cand\x85so\x0bon\r\nleft\tright\nlast"
    path = tmp_path / "texts.txt"
    path.write_bytes(text.encode())
    artifact = labels.session.artifact.path
    from_file = infer_command("run", artifact, path, "--json")
    from_stdin = infer_command("run", artifact, "--json", stdin=text.encode())
    assert (from_file.code, from_stdin.code) == (0, 0)
    assert from_file.out == from_stdin.out
    inputs = ["one\u2028still one", "two\x0cand\x85so\x0bon", ("left", "right"), "last"]
    expected = [labels.session.task.to_json(result) for result in labels.session(inputs)]
    assert json.loads(from_file.out)["results"] == expected


def test_invalid_utf8_names_the_byte(labels: Converted, tmp_path: Path) -> None:
    """Text that is not UTF-8 is an error with the position of the first bad byte, from file and stdin."""
    data = b"\xef\xbb\xbffine\nnot \xff fine\n"
    path = tmp_path / "texts.txt"
    path.write_bytes(data)
    artifact = labels.session.artifact.path
    for done in (infer_command("run", artifact, path), infer_command("run", artifact, stdin=data)):
        assert done.code == 1
        assert f"is not UTF-8 text (invalid start byte at byte {data.index(0xFF)})" in done.err


def test_closed_stdin_is_wrong_usage(labels: Converted) -> None:
    """`infer run ART <&-` says what to give and exits with 2."""
    command = [sys.executable, "-c", "from infer.cli import main; main()"]
    command += ["run", str(labels.session.artifact.path)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "give files, --text or --feeds" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("data", [b"", b"\n\r\n \n", b"\xef\xbb\xbf"])
def test_no_lines_are_no_texts(data: bytes) -> None:
    """Nothing but blank lines is no input."""
    assert split_lines(data, "stdin") == []
