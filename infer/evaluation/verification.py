"""How well vectors tell who is who: pairs of the same and of different ones, of voices, faces or things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError, missing_package
from infer.evaluation import Dataset, Evaluation, Progress, item_key, items_of
from infer.evaluation.tables import column, columns_named, read_records
from infer.signature import Array

try:
    from sklearn import metrics as sklearn_metrics
except (ImportError, OSError) as _error:
    raise missing_package("scikit-learn", "eval", _error) from _error

_AT_ONCE = 64  # inputs between two words of progress
_FALSE_ACCEPTS = (0.1, 0.01, 0.001)
_SAME = {True: ("1", "true", "yes", "same"), False: ("0", "false", "no", "different")}


def read(path: Path, task: Any, columns: Mapping[str, str]) -> Dataset:
    """A .csv or .jsonl with the columns first, second (files) and same (true or false); or a folder with a
    folder of files for each identity, of which all pairs are compared."""
    if path.is_dir():
        files = sorted(f for f in path.glob("*/*") if f.is_file() and not f.name.startswith("."))
        return pairs(path.name, files, [file.parent.name for file in files])
    records = read_records(path)
    first = column(path, records, "first", columns_named(columns, "first", "first", "file_a", "a"))
    second = column(path, records, "second", columns_named(columns, "second", "second", "file_b", "b"))
    same = column(path, records, "same", columns_named(columns, "same", "same", "label"))
    return Dataset(
        path.name,
        [
            (path.parent / str(record.get(first)), path.parent / str(record.get(second)))
            for record in records
        ],
        [record.get(same) for record in records],
    )


def pairs(name: str, inputs: Sequence[Any], identities: Sequence[Any]) -> Dataset:
    """All pairs of `inputs`, and whether the two have the same identity."""
    places = list(combinations(range(len(inputs)), 2))
    return Dataset(
        name,
        [(inputs[i], inputs[j]) for i, j in places],
        [identities[i] == identities[j] for i, j in places],
    )


def measure(task: Any, dataset: Dataset, progress: Progress) -> Evaluation:
    """By the cosine of the vectors of each pair: ROC AUC; the share of same pairs that are accepted where
    at most a tenth, hundredth, thousandth of different ones are (TAR at FAR, where there are that many);
    the error rate where both kinds of error are equally frequent (EER); accuracy at the threshold."""
    truth = np.array([_same(value, row) for row, value in enumerate(dataset.expected)])
    if truth.all() or not truth.any():
        raise InputError(
            f"the data '{dataset.name}' must have pairs of the same and of different ones, but all of its"
            f" {len(truth)} are {'the same' if len(truth) and truth[0] else 'different'}"
        )
    scores = _similarities(task, dataset, progress)
    false_accepts, accepts, _ = sklearn_metrics.roc_curve(truth, scores, drop_intermediate=False)
    metrics = {"roc_auc": float(sklearn_metrics.roc_auc_score(truth, scores))}
    for rate in _FALSE_ACCEPTS:
        if np.sum(~truth) * rate >= 1:  # else a single false accept would be more
            metrics[f"tar_at_far_{rate}"] = float(accepts[false_accepts <= rate].max())
    nearest = np.argmin(np.abs(false_accepts - (1 - accepts)))
    metrics["eer"] = float((false_accepts[nearest] + 1 - accepts[nearest]) / 2)
    threshold = getattr(task.spec, "threshold", None)
    if threshold is not None:
        metrics["accuracy"] = float(np.mean((scores >= threshold) == truth))
    return Evaluation(task.setting.name, dataset.name, len(truth), metrics)


def _similarities(task: Any, dataset: Dataset, progress: Progress) -> Array:
    """The cosine of each pair. An input that is in many pairs is answered once."""
    inputs: dict[Any, Any] = {}
    for pair in dataset.inputs:
        inputs.update(items_of(pair))
    keys, vectors = list(inputs), []
    for start in range(0, len(keys), _AT_ONCE):
        vectors.extend(task([inputs[key] for key in keys[start : start + _AT_ONCE]]))
        progress(f"{len(vectors)} of {len(keys)} answered")
    places = {key: i for i, key in enumerate(keys)}
    unit = np.stack(vectors).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    first, second = ([places[item_key(pair[side])] for pair in dataset.inputs] for side in (0, 1))
    return np.asarray(np.sum(unit[first] * unit[second], axis=1))


def _same(value: Any, row: int) -> bool:
    word = str(value).strip().lower()
    for answer, words in _SAME.items():
        if word in words:
            return answer
    raise InputError(f"pair {row} must be the same or not (true or false), but is {value!r:.60}")
