"""`infer eval` of classifiers: metrics are scikit-learn's of the closed form's answers, and what does not
fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn import metrics as sklearn_metrics

import converters
import infer
from infer.errors import ArtifactError, InputError
from infer.evaluation import Dataset, evaluate, evaluate_task, read_dataset
from infer.manifest import TaskSpec
from infer.npz import save_npz
from tests.command import infer_command
from tests.tiny import classifier, classify, write

ROWS = np.random.default_rng(3).standard_normal((40, 10))
LABELS = ("no", "yes")

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return {"logits": self.layer(x)}
"""


def as_they_are(folder: Path, classes: int, **settings: Any) -> Path:
    """An artifact whose logits are the row's own numbers."""
    graph = f"g (float[batch, {classes}] x) => (float[batch, {classes}] logits) {{ logits = Identity(x) }}"
    columns = [{"name": f"c{i}"} for i in range(classes)]
    spec = {"input": "x", "output": "logits", "columns": columns, **settings}
    path = folder / "net.infer"
    converters.convert(write(folder, graph), path, task=TaskSpec("tabular-classification", spec))
    return path


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`classifier()` as a task with two named classes."""
    folder = tmp_path_factory.mktemp("binary")
    (folder / "net.onnx").write_bytes(classifier().SerializeToString())
    columns = [{"name": f"c{i}"} for i in range(10)]
    spec = {"input": "x", "output": "logits", "columns": columns, "labels": LABELS}
    converters.convert(
        folder / "net.onnx", folder / "net.infer", task=TaskSpec("tabular-classification", spec)
    )
    return folder / "net.infer"


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def truth_of(logits: np.ndarray, seed: int = 0) -> np.ndarray:
    """The classes called, a third of them changed."""
    rng = np.random.default_rng(seed)
    called = logits.argmax(axis=1)
    return np.where(rng.random(len(called)) < 0.3, rng.integers(0, logits.shape[1], len(called)), called)


def test_two_classes_in_every_form_of_data(binary: Path, tmp_path: Path) -> None:
    """A table, lines of JSON, arrays, and a Dataset of arrays or frames give the metrics of the closed
    form, to 1e-6; the confusion matrix has a row for what it is."""
    logits = classify(classifier(), ROWS)
    scores, called, truth = softmax(logits), logits.argmax(axis=1), truth_of(logits)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(truth, called),
        "precision": sklearn_metrics.precision_score(truth, called),
        "recall": sklearn_metrics.recall_score(truth, called),
        "f1": sklearn_metrics.f1_score(truth, called),
        "roc_auc": sklearn_metrics.roc_auc_score(truth, scores[:, 1]),
        "log_loss": sklearn_metrics.log_loss(truth, scores),
    }
    frame = pd.DataFrame(ROWS, columns=[f"c{i}" for i in range(10)])
    named = frame.assign(label=[LABELS[i] for i in truth])
    named.to_csv(tmp_path / "x.csv", index=False)
    named.to_json(tmp_path / "x.jsonl", orient="records", lines=True, double_precision=15)
    save_npz(tmp_path / "x.npz", {"inputs": ROWS, "labels": truth})
    save_npz(tmp_path / "hot.npz", {"inputs": ROWS, "labels": np.eye(2)[truth]})
    given: list[Any] = [tmp_path / name for name in ("x.csv", "x.jsonl", "x.npz", "hot.npz")]
    given += [Dataset("arrays", ROWS, truth), Dataset("frames", frame, named["label"])]  # type: ignore[arg-type]
    with infer.load(binary) as session:
        for data in given:
            found = evaluate(session, data)
            assert list(found.metrics) == list(expected), data
            np.testing.assert_allclose(list(found.metrics.values()), list(expected.values()), atol=1e-6)
            assert found.confusion == tuple(
                map(tuple, sklearn_metrics.confusion_matrix(truth, called).tolist())
            )
            assert [(row.label, row.support) for row in found.classes] == [
                (label, int((truth == i).sum())) for i, label in enumerate(LABELS)
            ]


def test_several_classes(tmp_path: Path) -> None:
    """Of six: means over the classes that are there, one against the rest, and the five best."""
    logits = np.random.default_rng(0).standard_normal((80, 6)).astype(np.float32)
    truth, called = truth_of(logits), logits.argmax(axis=1)
    scores = softmax(logits.astype(np.float64))
    with infer.load(as_they_are(tmp_path, 6)) as session:
        found = evaluate(session, Dataset("x", logits, truth)).metrics  # type: ignore[arg-type]
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(truth, called),
        "top5_accuracy": sklearn_metrics.top_k_accuracy_score(truth, scores, k=5),
        "precision": sklearn_metrics.precision_score(truth, called, average="macro"),
        "recall": sklearn_metrics.recall_score(truth, called, average="macro"),
        "f1": sklearn_metrics.f1_score(truth, called, average="macro"),
        "roc_auc": sklearn_metrics.roc_auc_score(truth, scores, multi_class="ovr"),
        "log_loss": sklearn_metrics.log_loss(truth, scores),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_several_labels_of_an_input(tmp_path: Path) -> None:
    """Names joined by |, lists, and rows of 0 and 1 say the same; scikit-learn's metrics of that."""
    rng = np.random.default_rng(1)
    logits, truth = rng.standard_normal((30, 3)).astype(np.float32), rng.random((30, 3)) < 0.4
    called = logits >= 0
    names = ["|".join("abc"[i] for i in np.flatnonzero(row)) for row in truth]
    save_npz(tmp_path / "x.npz", {"inputs": logits, "labels": truth.astype(np.int64)})
    expected = {
        "f1": sklearn_metrics.f1_score(truth, called, average="macro"),
        "precision": sklearn_metrics.precision_score(truth, called, average="macro"),
        "recall": sklearn_metrics.recall_score(truth, called, average="macro"),
        "average_precision": sklearn_metrics.average_precision_score(truth, logits),
        "all_right": (truth == called).all(axis=1).mean(),
    }
    path = as_they_are(tmp_path, 3, activation="sigmoid", labels=["a", "b", "c"])
    with infer.load(path) as session:
        for labels in (names, [np.flatnonzero(row).tolist() for row in truth], list(truth)):
            found = evaluate(session, Dataset("x", list(logits), labels)).metrics
            assert found == pytest.approx(expected, abs=1e-12)
        assert evaluate(session, tmp_path / "x.npz").metrics == found
        # a list of 0 and 1 might be numbers of classes, and is not taken for either
        for label, words in (
            ([1, 0, 1], "row 1 has a label twice"),
            (np.array([1, 0]), "a 0 or a 1 for each of 3 classes"),
            (np.array([1, 0, 2]), "a 0 or a 1 for each of 3 classes"),
            ("a|d", "row 1 has the label 'd', which the model does not know"),
        ):
            with pytest.raises(InputError, match=words):
                evaluate(session, Dataset("x", list(logits[:1]), [label]))
        with pytest.raises(InputError, match="no input of the data 'x' has a label"):
            evaluate(session, Dataset("x", list(logits[:2]), ["", ""]))


def test_a_single_class_is_two(tmp_path: Path) -> None:
    """What one logit with sigmoid tells is whether an input has the class: the metrics are those of two
    classes, and "not spam" is the first."""
    logits = np.random.default_rng(2).standard_normal((30, 1)).astype(np.float32)
    truth = truth_of(np.hstack([np.zeros_like(logits), logits]))
    likely = 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(truth, likely >= 0.5),
        "precision": sklearn_metrics.precision_score(truth, likely >= 0.5),
        "recall": sklearn_metrics.recall_score(truth, likely >= 0.5),
        "f1": sklearn_metrics.f1_score(truth, likely >= 0.5),
        "roc_auc": sklearn_metrics.roc_auc_score(truth, likely),
        "log_loss": sklearn_metrics.log_loss(truth, likely),
    }
    path = as_they_are(tmp_path, 1, activation="sigmoid", labels=["spam"])
    with infer.load(path) as session:
        for labels in (truth.tolist(), [("not spam", "spam")[i] for i in truth]):
            found = evaluate(session, Dataset("x", logits.tolist(), labels))
            assert found.metrics == pytest.approx(expected, abs=1e-12)
            assert [row.label for row in found.classes] == ["not spam", "spam"]
            assert np.array(found.confusion).shape == (2, 2)
        with pytest.raises(
            InputError, match="'ham', which the model does not know; it knows not spam, spam"
        ):
            evaluate(session, Dataset("x", [[1.0]], ["ham"]))


def test_softmax_of_a_single_class_is_refused(tmp_path: Path) -> None:
    """It would be sure of everything."""
    with pytest.raises(ArtifactError, match=r"of which softmax always makes 1; .* activation 'sigmoid'"):
        infer.load(as_they_are(tmp_path, 1))([[0.3]])


def test_scores_that_are_no_probabilities_have_no_log_loss(tmp_path: Path) -> None:
    """Without an activation, only labels count, unless the graph itself gives probabilities."""
    logits = np.random.default_rng(4).standard_normal((20, 3)).astype(np.float32)
    truth = truth_of(logits)
    scores = softmax(logits.astype(np.float64)).astype(np.float32)
    with infer.load(as_they_are(tmp_path, 3, activation="none")) as session:
        plain = evaluate(session, Dataset("x", list(logits), truth)).metrics  # type: ignore[arg-type]
        likely = evaluate(session, Dataset("x", list(scores), truth)).metrics  # type: ignore[arg-type]
    assert list(plain) == ["accuracy", "precision", "recall", "f1"]
    assert plain.items() <= likely.items()
    assert likely["log_loss"] == pytest.approx(sklearn_metrics.log_loss(truth, softmax(logits)), rel=1e-6)


def test_numbers_that_are_also_names_are_refused(tmp_path: Path) -> None:
    """Stars from 1 to 5: as text they are names; the number 1 might be the first class or the second."""
    stars = [str(i) for i in range(1, 6)]
    with infer.load(as_they_are(tmp_path, 5, labels=stars)) as session:
        rows = np.eye(5).tolist()
        assert evaluate(session, Dataset("x", rows, stars)).metrics["accuracy"] == 1.0
        with pytest.raises(InputError, match="the number of the class '2' and the name of another"):
            evaluate(session, Dataset("x", rows, [1, 2, 3, 4, 4]))
        with pytest.raises(InputError, match="row 5 has the label 5, which the model does not know"):
            evaluate(session, Dataset("x", rows, ["1", "2", "3", "4", 5]))


WRONG: dict[str, tuple[Any, str]] = {
    "fewer labels": ([0], "the data 'x' has 2 inputs, but answers for 1"),
    "more labels": ([0, 1, 1], "the data 'x' has 2 inputs, but answers for 3"),
    "unknown name": (
        [0, "maybe"],
        "row 2 has the label 'maybe', .* it knows no, yes and the numbers 0 to 1",
    ),
    "unknown number": ([0, 2], "row 2 has the label 2,"),
    "infinite": ([0, float("inf")], "row 2 has the label inf,"),
    "no whole number": ([0, 0.7], "row 2 has the label 0.7,"),
    "none": ([0, None], "row 2 has the label None,"),
    "two of one": ([0, [0, 1]], "row 2 must have one label, but has 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_answers_that_do_not_fit_are_refused(binary: Path, case: str) -> None:
    """The row is named, and what would fit."""
    labels, words = WRONG[case]
    with infer.load(binary) as session, pytest.raises(InputError, match=words):
        evaluate(session, Dataset("x", ROWS[:2].tolist(), labels))


ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"inputs": ROWS}, "must hold 'inputs' and 'labels', but holds inputs"),
    "nothing": ({}, "must hold 'inputs' and 'labels', but holds nothing"),
    "a lone value": ({"inputs": np.array(1.0), "labels": np.array(1)}, "'inputs' of .* is a single value"),
    "no examples": ({"inputs": ROWS[:0], "labels": np.zeros(0)}, "is empty"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_are_no_examples_are_refused(binary: Path, tmp_path: Path, case: str) -> None:
    """The file is named; one that is not there is said to be."""
    arrays, words = ARRAYS[case]
    save_npz(tmp_path / "x.npz", arrays)
    with infer.load(binary) as session:
        with pytest.raises(InputError, match=words):
            evaluate(session, tmp_path / "x.npz")
        with pytest.raises(InputError, match="there is no data"):
            evaluate(session, tmp_path / "nowhere.npz")


def test_a_model_that_answers_nan_is_not_measured(tmp_path: Path) -> None:
    """The first such input is named."""
    graph = "g (float[batch, 2] x) => (float[batch, 2] logits) { logits = Sqrt(x) }"
    spec = {"input": "x", "output": "logits", "columns": [{"name": "a"}, {"name": "b"}]}
    task = TaskSpec("tabular-classification", spec)
    converters.convert(write(tmp_path, graph), tmp_path / "net.infer", task=task, allow_mismatch=True)
    data = Dataset("x", [[1.0, 2.0], [-1.0, 2.0]], [0, 1])
    with (
        infer.load(tmp_path / "net.infer") as session,
        pytest.raises(InputError, match="for input 2 is NaN"),
    ):
        evaluate(session, data)


def test_the_command_shows_the_original_beside_the_artifact(tmp_path: Path, monkeypatch: Any) -> None:
    """People get metrics, differences, a row for each class and the confusion matrix; --json one document
    with both. The original's metrics are those of PyTorch's own answers."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    scope: dict[str, Any] = {}
    exec(NET, scope)  # the module that the command imports
    torch.manual_seed(0)
    net = scope["Net"]()
    torch.save(net.state_dict(), "net.pt")
    rows = np.random.default_rng(0).standard_normal((30, 4))
    with torch.no_grad():
        logits = net(torch.from_numpy(rows).float())["logits"].numpy()
    truth = truth_of(logits)
    columns = [{"name": f"c{i}"} for i in range(4)]
    spec = {"input": "x", "output": "logits", "columns": columns, "labels": ["cat", "dog", "owl"]}
    converters.convert(
        net,
        "net.infer",
        example_inputs={"x": torch.randn(2, 4)},
        task=TaskSpec("tabular-classification", spec),
    )
    frame = pd.DataFrame(rows, columns=[f"c{i}" for i in range(4)])
    frame.assign(kind=[spec["labels"][i] for i in truth]).to_csv("x.csv", index=False)
    line = ["eval", "net.infer", "--data", "x.csv", "--column", "label=kind"]
    line += ["--against", "net.py:Net", "--weights", "net.pt"]
    accuracy = float((logits.argmax(axis=1) == truth).mean())
    document = json.loads(infer_command(*line, "--json").out)
    assert document["schema_version"] == 1
    ours, theirs = (document["evaluations"][name] for name in ("artifact", "original"))
    assert theirs["metrics"]["accuracy"] == accuracy
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-6)
    assert ours["confusion"] == sklearn_metrics.confusion_matrix(truth, logits.argmax(axis=1)).tolist()
    outcome = infer_command(*line)
    assert outcome.code == 0
    assert "artifact    original  difference" in outcome.out
    assert f"accuracy       {accuracy:.4f}      {accuracy:.4f}    +0.0e+00" in outcome.out
    told = [text.split() for text in outcome.out.splitlines()]
    for i, label in enumerate(spec["labels"]):
        assert [label, *map(str, ours["confusion"][i])] in told
        assert any(words[:1] == [label] and words[-1] == str(int((truth == i).sum())) for words in told)


def test_class_folders_of_pictures(tmp_path: Path) -> None:
    """A folder's name is the class; a folder of no class and a file that is no picture are named."""
    graph = (
        "g (float[batch, 3, 4, 4] x) => (float[batch, 3] logits) {"
        " logits = ReduceMean<axes = [2, 3], keepdims = 0>(x) }"
    )
    spec = {"input": "x", "output": "logits", "labels": ["red", "green", "blue"]}
    steps = [{"op": "resize", "height": 4, "width": 4}, {"op": "rescale", "factor": 1 / 255}]
    task = TaskSpec("image-classification", {**spec, "steps": steps})
    converters.convert(write(tmp_path, graph), tmp_path / "net.infer", task=task)
    for place, label in enumerate(spec["labels"]):
        (tmp_path / "data" / label).mkdir(parents=True)
        for n in range(2):
            colour = [0, 0, 0]
            # the second blue picture is red
            colour[0 if (label, n) == ("blue", 1) else place] = 255
            Image.new("RGB", (9, 7), tuple(colour)).save(tmp_path / "data" / label / f"{n}.png")
    with infer.load(tmp_path / "net.infer") as session:
        found = evaluate_task(session.task, read_dataset(session.task, tmp_path / "data"))
        assert found.metrics["accuracy"] == pytest.approx(5 / 6)
        assert found.confusion == ((2, 0, 0), (0, 2, 0), (1, 0, 1))
        (tmp_path / "data/blue/notes.txt").write_text("hello")
        with pytest.raises(InputError, match=r"picture 2: '.*notes.txt' cannot be read as an image"):
            evaluate(session, tmp_path / "data")
        (tmp_path / "data/blue/notes.txt").unlink()
        (tmp_path / "data/blue").rename(tmp_path / "data/violet")
        with pytest.raises(InputError, match="the label 'violet', which the model does not know"):
            evaluate(session, tmp_path / "data")
        (tmp_path / "none").mkdir()
        with pytest.raises(InputError, match="holds no files in class folders"):
            evaluate(session, tmp_path / "none")
