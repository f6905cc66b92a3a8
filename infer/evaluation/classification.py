"""Accuracy and its kin for tasks that give labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError, missing_package
from infer.evaluation import ClassMetrics, Dataset, Evaluation, Progress, gather
from infer.evaluation.tables import column, columns_named, read_records
from infer.npz import load_npz
from infer.signature import Array
from infer.tasks.labels import Classes

try:
    from sklearn import metrics as sklearn_metrics
except ImportError as _error:
    raise missing_package("scikit-learn", "eval") from _error

_LABEL = ("label", "labels", "class", "target")
_INPUTS = {
    "image-classification": ("file", "path", "image"),
    "audio-classification": ("file", "path", "audio"),
    "text-classification": ("text", "sentence"),
}
"""Columns that usually hold the input. A row of a table is itself the input of the tabular tasks."""


def read(path: Path, task: Any, columns: Mapping[str, str]) -> Dataset:
    """A folder with a folder of files for each class; a .csv or .jsonl with a column for the label (several
    are joined by `|`); or an .npz with `inputs` and `labels`."""
    if path.is_dir():
        inputs, labels = _class_folders(path)
    elif path.suffix == ".npz":
        arrays = load_npz(path)
        if not {"inputs", "labels"} <= arrays.keys():
            raise InputError(f"'{path}' must hold 'inputs' and 'labels', but holds {', '.join(arrays)}")
        inputs, labels = list(arrays["inputs"]), arrays["labels"].tolist()
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
    return inputs, [record.get(label) for record in records]


def measure(task: Any, dataset: Dataset, progress: Progress) -> Evaluation:
    """With softmax: accuracy, top-5 accuracy, precision, recall, F1 (of the second class if there are two,
    else the mean over classes), ROC AUC, log loss. With sigmoid, where an input may have
    several labels: F1 and the like, average precision, and the share of inputs with all labels right."""
    classes: Classes = task.classes
    scored = gather(task, dataset, lambda outputs, _: list(task.scores(outputs)), progress, classes.join)
    scores = np.stack(scored)
    many = classes.activation == "sigmoid" and scores.shape[1] > 1
    compare = _several_labels if many else _one_label
    metrics, per_class, confusion = compare(classes, scores, dataset)
    return Evaluation(task.setting.name, dataset.name, len(scores), metrics, per_class, confusion)


_Compared = tuple[dict[str, float], tuple[ClassMetrics, ...], tuple[tuple[int, ...], ...]]


def _one_label(classes: Classes, scores: Array, dataset: Dataset) -> _Compared:
    count = scores.shape[1]
    truth = np.array([_index(classes, label, count, i) for i, label in enumerate(dataset.expected)])
    called = scores.argmax(axis=1)
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
    if present.all():
        metrics["roc_auc"] = float(
            sklearn_metrics.roc_auc_score(truth, scores[:, 1])
            if count == 2
            else sklearn_metrics.roc_auc_score(truth, scores, multi_class="ovr", labels=everything)
        )
    metrics["log_loss"] = float(sklearn_metrics.log_loss(truth, scores, labels=everything))
    return (
        metrics,
        _per_class(classes, precision, recall, f1, support),
        tuple(map(tuple, confusion.tolist())),
    )


def _several_labels(classes: Classes, scores: Array, dataset: Dataset) -> _Compared:
    truth = np.zeros(scores.shape, bool)
    for i, label in enumerate(dataset.expected):
        for each in _labels_of(label):
            truth[i, _index(classes, each, scores.shape[1], i)] = True
    called = scores >= (0.5 if classes.threshold is None else classes.threshold)
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


def _labels_of(label: Any) -> Sequence[Any]:
    if isinstance(label, str):
        return [part for part in label.split("|") if part]
    return label if isinstance(label, (list, tuple)) else [label]


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
    except (TypeError, ValueError):
        index = -1
    if not 0 <= index < count:
        known = ", ".join(classes.labels[:10]) + (", …" if len(classes.labels) > 10 else "")
        raise InputError(
            f"example {row} has the label {label!r:.60}, which the model does not know; it knows"
            f" {known or 'no names'} and the numbers 0 to {count - 1}"
        )
    return index
