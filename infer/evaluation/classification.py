"""Accuracy and its kin for tasks that give labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError, missing_package
from infer.evaluation import ClassMetrics, Dataset, Evaluation, Progress, gather, numbers
from infer.evaluation.tables import column, columns_named, read_arrays, read_records
from infer.signature import Array
from infer.tasks.labels import Classes

try:
    from sklearn import metrics as sklearn_metrics
except (ImportError, OSError) as _error:
    raise missing_package("scikit-learn", "eval", _error) from _error

_LABEL = ("label", "labels", "class", "target")
_INPUTS = {
    "image-classification": ("file", "path", "image"),
    "audio-classification": ("file", "path", "audio"),
    "text-classification": ("text", "sentence"),
}
"""Columns that usually hold the input. A row of a table is itself the input of the tabular tasks."""

_ROUNDED = 1e-3  # so far from 1 may the probabilities of an input add up, for what float16 rounds


def read(path: Path, task: Any, columns: Mapping[str, str]) -> Dataset:
    """A folder with a folder of files for each class; a .csv or .jsonl with a column for the label (several
    are joined by `|`), and for pairs of texts one called text_pair; or an .npz with `inputs` and
    `labels`, of shape (inputs,), or (inputs, classes) of 0 and 1."""
    if path.is_dir():
        inputs, labels = _class_folders(path)
    elif path.suffix == ".npz":
        arrays = read_arrays(path, "inputs", "labels")
        inputs, labels = list(arrays[0]), list(arrays[1])
    else:
        inputs, labels = _table(path, task.setting.name, columns)
    return Dataset(path.name, inputs, labels)


def _class_folders(path: Path) -> tuple[list[Any], list[Any]]:
    files = sorted(file for file in path.glob("*/*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise InputError(f"'{path}' holds no files in class folders, such as cat/1.jpg")
    return list(files), [file.parent.name for file in files]


def _table(path: Path, task: str, columns: Mapping[str, str]) -> tuple[list[Any], list[Any]]:
    records = read_records(path)
    label = column(path, records, "label", columns_named(columns, "label", *_LABEL))
    if task not in _INPUTS:
        rows = [{key: value for key, value in record.items() if key != label} for record in records]
        return list(rows), [record.get(label) for record in records]
    key = column(path, records, "input", columns_named(columns, "input", *_INPUTS[task]))
    inputs = [record.get(key) for record in records]
    if task != "text-classification":
        inputs = [path.parent / str(name) for name in inputs]
    elif "text_pair" in columns or "text_pair" in records[0]:
        other = column(path, records, "text_pair", columns_named(columns, "text_pair", "text_pair"))
        inputs = [(record.get(key), record.get(other)) for record in records]
    return inputs, [record.get(label) for record in records]


def measure(task: Any, dataset: Dataset, progress: Progress) -> Evaluation:
    """With softmax: accuracy, top-5 accuracy, precision, recall, F1 (of the second class if there are two,
    else the mean over classes), ROC AUC, log loss; the last two only of scores that are probabilities.
    With sigmoid, where an input may have several labels: F1 and the like, average precision, and the
    share of inputs with all labels right. A single class with sigmoid is two: it, and not it."""
    classes: Classes = task.classes
    scored = gather(task, dataset, lambda outputs, _: list(task.scores(outputs)), progress, classes.join)
    scores = numbers(scored)
    if scores.shape[1] == 1:
        if classes.activation != "sigmoid":
            raise InputError(
                "the model gives one number an input, which tells no classes apart; with the activation"
                " 'sigmoid' it is the probability of a class, and for values there is tabular-regression"
            )
        compared = _one_label(*_two_classes(classes, scores), dataset)
    elif classes.activation == "sigmoid":
        compared = _several_labels(classes, scores, dataset)
    else:
        compared = _one_label(classes, scores, scores.argmax(axis=1), dataset)
    return Evaluation(task.setting.name, dataset.name, len(scores), *compared)


_Compared = tuple[dict[str, float], tuple[ClassMetrics, ...], tuple[tuple[int, ...], ...]]


def _two_classes(classes: Classes, scores: Array) -> tuple[Classes, Array, Array]:
    """A single class with its opposite before it, the scores of both, and which each input was called."""
    labels = tuple(name for label in classes.labels for name in (f"not {label}", label))
    called = scores[:, 0] >= _threshold(classes)
    return replace(classes, labels=labels), np.hstack([1.0 - scores, scores]), called.astype(np.int64)


def _threshold(classes: Classes) -> float:
    return 0.5 if classes.threshold is None else classes.threshold


def _one_label(classes: Classes, scores: Array, called: Array, dataset: Dataset) -> _Compared:
    count = scores.shape[1]
    truth = np.array([_only(classes, label, count, i) for i, label in enumerate(dataset.expected)])
    everything = list(range(count))
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        truth, called, labels=everything, zero_division=0.0
    )
    confusion = sklearn_metrics.confusion_matrix(truth, called, labels=everything)
    present = support > 0  # classes nobody belongs to say nothing
    metrics = {"accuracy": float(np.mean(truth == called))}
    if count > 5:
        best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        metrics["top5_accuracy"] = float(np.mean((best == truth[:, None]).any(axis=1)))
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        metrics[name] = float(values[1] if count == 2 else values[present].mean())
    sums = scores.sum(axis=1)
    if (scores >= 0).all() and np.allclose(sums, 1.0, atol=_ROUNDED):
        shares = scores / sums[:, None]  # float32's probabilities add up to 1 but for rounding
        if present.all():
            metrics["roc_auc"] = float(
                sklearn_metrics.roc_auc_score(truth, shares[:, 1])
                if count == 2
                else sklearn_metrics.roc_auc_score(truth, shares, multi_class="ovr", labels=everything)
            )
        metrics["log_loss"] = float(sklearn_metrics.log_loss(truth, shares, labels=everything))
    return (
        metrics,
        _per_class(classes, precision, recall, f1, support),
        tuple(map(tuple, confusion.tolist())),
    )


def _several_labels(classes: Classes, scores: Array, dataset: Dataset) -> _Compared:
    truth = np.zeros(scores.shape, bool)
    for i, label in enumerate(dataset.expected):
        truth[i, _places(classes, label, scores.shape[1], i)] = True
    if not truth.any():
        raise InputError(f"no input of the data '{dataset.name}' has a label; some must have one")
    called = scores >= _threshold(classes)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        truth, called, zero_division=0.0
    )
    present = support > 0
    metrics = {
        "f1": float(f1[present].mean()),
        "precision": float(precision[present].mean()),
        "recall": float(recall[present].mean()),
        "average_precision": float(
            sklearn_metrics.average_precision_score(truth[:, present], scores[:, present])
        ),
        "all_right": float((truth == called).all(axis=1).mean()),
    }
    return metrics, _per_class(classes, precision, recall, f1, support), ()


def _only(classes: Classes, label: Any, count: int, row: int) -> int:
    """The place of the one class that an input has."""
    if not isinstance(label, (list, tuple, np.ndarray)):
        return _index(classes, label, count, row)
    places = _places(classes, label, count, row)
    if len(places) != 1:
        raise InputError(f"row {row + 1} must have one label, but has {len(places)}: {label!r:.60}")
    return places[0]


def _places(classes: Classes, label: Any, count: int, row: int) -> list[int]:
    """The places of an input's classes: names or numbers in a list, names joined by `|`, or an array with
    1 for each class it has and 0 for each other."""
    if isinstance(label, np.ndarray) and label.ndim == 1 and len(label) > 1:
        if len(label) != count or not np.isin(label, (0, 1)).all():
            raise InputError(
                f"row {row + 1} of the labels must have a 0 or a 1 for each of {count} classes, but is"
                f" {label.tolist()!r:.60}"
            )
        return np.flatnonzero(label).tolist()
    each = label.tolist() if isinstance(label, np.ndarray) else label
    if isinstance(each, str):
        each = [part for part in each.split("|") if part]
    places = [
        _index(classes, one, count, row) for one in (each if isinstance(each, (list, tuple)) else [each])
    ]
    if len(set(places)) < len(places):
        raise InputError(
            f"row {row + 1} has a label twice: {label!r:.60}; a list holds an input's labels, and only an"
            f" array a 0 or a 1 for each class"
        )
    return places


def _per_class(
    classes: Classes, precision: Array, recall: Array, f1: Array, support: Array
) -> tuple[ClassMetrics, ...]:
    rows = zip(precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    return tuple(ClassMetrics(classes.label(i), *row) for i, row in enumerate(rows))


def _index(classes: Classes, label: Any, count: int, row: int) -> int:
    """A class's place from its name, or from its number."""
    if label in classes.labels:
        return classes.labels.index(label)
    try:
        index = int(label)
        if not isinstance(label, str) and index != label:
            index = -1
    except (TypeError, ValueError, OverflowError):
        index = -1
    if not 0 <= index < count:
        known = ", ".join(classes.labels[:10]) + (", …" if len(classes.labels) > 10 else "")
        raise InputError(
            f"row {row + 1} has the label {label!r:.60}, which the model does not know; it knows"
            f" {known or 'no names'} and the numbers 0 to {count - 1}"
        )
    if str(index) in classes.labels and classes.labels[index] != str(index):
        raise InputError(
            f"row {row + 1} has the label {label!r:.60}, which is the number of the class"
            f" {classes.labels[index]!r:.60} and the name of another; give names, as text"
        )
    return index
