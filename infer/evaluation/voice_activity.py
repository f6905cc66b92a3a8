"""How well speech is told from the rest: window by window, against segments that people marked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError, missing_package
from infer.evaluation import Dataset, Evaluation, Progress
from infer.evaluation.tables import column, columns_named, read_records
from infer.signature import Array

try:
    from sklearn import metrics as sklearn_metrics
except (ImportError, OSError) as _error:
    raise missing_package("scikit-learn", "eval", _error) from _error


def read(path: Path, task: Any, columns: Mapping[str, str]) -> Dataset:
    """A .jsonl with the columns file, and segments: a list of [start, end] in seconds."""
    records = read_records(path)
    file = column(path, records, "file", columns_named(columns, "file", "file", "path", "audio"))
    marked = column(path, records, "segments", columns_named(columns, "segments", "segments", "speech"))
    return Dataset(
        path.name,
        [path.parent / str(record.get(file)) for record in records],
        [_segments(record.get(marked), row) for row, record in enumerate(records)],
    )


def measure(task: Any, dataset: Dataset, progress: Progress) -> Evaluation:
    """Each window is speech if its middle lies in a segment. F1, precision, recall and accuracy of the
    task's own segments, ROC AUC of its probabilities."""
    truths, calls, scores = [], [], []
    for row, (recording, expected) in enumerate(zip(dataset.inputs, dataset.expected, strict=True)):
        probabilities = task.probabilities(recording)
        middles = (np.arange(len(probabilities)) + 0.5) * task.spec.window / task.spec.sample_rate
        truths.append(_inside(middles, _segments(expected, row)))
        calls.append(_inside(middles, [(found.start_s, found.end_s) for found in task(recording)]))
        scores.append(probabilities)
        progress(f"{row + 1} of {len(dataset.inputs)} answered")
    truth, called = np.concatenate(truths), np.concatenate(calls)
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
        truth, called, average="binary", zero_division=0.0
    )
    metrics = {"f1": float(f1), "precision": float(precision), "recall": float(recall)}
    metrics["accuracy"] = float(np.mean(truth == called))
    if truth.any() and not truth.all():
        metrics["roc_auc"] = float(sklearn_metrics.roc_auc_score(truth, np.concatenate(scores)))
    return Evaluation(task.setting.name, dataset.name, len(dataset.inputs), metrics)


def _inside(middles: Array, segments: list[tuple[float, float]]) -> Array:
    found = np.zeros(len(middles), bool)
    for start, end in segments:
        found |= (start <= middles) & (middles < end)
    return found


def _segments(value: Any, row: int) -> list[tuple[float, float]]:
    try:
        segments = [(float(start), float(end)) for start, end in value]
    except (TypeError, ValueError):
        segments = [(1.0, 0.0)]
    if not all(0 <= start <= end < np.inf for start, end in segments):
        raise InputError(
            f"example {row} must have a list of segments [start, end] in seconds, but has {value!r:.60}"
        )
    return segments
