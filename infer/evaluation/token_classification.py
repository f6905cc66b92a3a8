"""Precision, recall and F1 of entities: found is what has the very span and the very label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infer.errors import InputError
from infer.evaluation import ClassMetrics, Dataset, Evaluation, Progress, gather
from infer.evaluation.tables import column, columns_named, read_records

_Span = tuple[int, int, str]


def read(path: Path, task: Any, columns: Mapping[str, str]) -> Dataset:
    """A .jsonl file of objects with `text` and `entities`, a list of {"start", "end", "label"} in
    characters."""
    records = read_records(path)
    text = column(path, records, "text", columns_named(columns, "text", "text", "sentence"))
    entities = column(path, records, "entities", columns_named(columns, "entities", "entities"))
    return Dataset(path.name, [r.get(text) for r in records], [r.get(entities) for r in records])


def measure(task: Any, dataset: Dataset, progress: Progress) -> Evaluation:
    """F1, precision and recall over all entities, and for each label."""
    results = gather(task, dataset, task.rows, progress, task.join)
    found: list[set[_Span]] = [{(e.start, e.end, e.label) for e in entities} for entities in results]
    true = [_spans(given, i) for i, given in enumerate(dataset.expected)]
    labels = sorted({label for spans in (*found, *true) for _, _, label in spans})
    classes = []
    for label in labels:
        ours = [{span for span in spans if span[2] == label} for spans in found]
        theirs = [{span for span in spans if span[2] == label} for spans in true]
        classes.append(ClassMetrics(label, *_scores(ours, theirs), sum(map(len, theirs))))
    precision, recall, f1 = _scores(found, true)
    metrics = {"f1": f1, "precision": precision, "recall": recall}
    return Evaluation(task.setting.name, dataset.name, len(results), metrics, tuple(classes))


def _scores(found: list[set[_Span]], true: list[set[_Span]]) -> tuple[float, float, float]:
    """Precision, recall and F1 of one set of spans a text; 0 where there is nothing to divide by."""
    right = sum(len(ours & theirs) for ours, theirs in zip(found, true, strict=True))
    called, are = sum(map(len, found)), sum(map(len, true))
    precision = right / called if called else 0.0
    recall = right / are if are else 0.0
    return precision, recall, 2 * right / (called + are) if called + are else 0.0


def _spans(entities: Any, row: int) -> set[_Span]:
    try:
        return {(int(e["start"]), int(e["end"]), str(e["label"])) for e in entities}
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"example {row} has the entities {entities!r:.60}; expected a list of"
            f' {{"start": 0, "end": 5, "label": "PER"}}'
        ) from error
