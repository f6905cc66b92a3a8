"""How far predicted values are from the true ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError, missing_package
from infer.evaluation import Dataset, Evaluation, Progress, gather, numbers
from infer.evaluation.tables import column, columns_named, read_arrays, read_records
from infer.signature import Array

try:
    from sklearn import metrics as sklearn_metrics
except ImportError as _error:
    raise missing_package("scikit-learn", "eval", _error) from _error

_TARGET = ("target", "label", "value")


def read(path: Path, task: Any, columns: Mapping[str, str]) -> Dataset:
    """A .csv or .jsonl with the model's columns and one for each target; or an .npz with `inputs` and
    `targets`. What is expected of a row is its targets, in the order of the spec."""
    if path.suffix == ".npz":
        inputs, targets = read_arrays(path, "inputs", "targets")
        return Dataset(path.name, list(inputs), targets.tolist())
    records = read_records(path)
    usual = _TARGET if len(task.names) == 1 else ()
    found = [
        column(
            path,
            records,
            name,
            columns_named(columns, "target" if len(task.names) == 1 else name, name, *usual),
        )
        for name in task.names
    ]
    return Dataset(path.name, records, [[record.get(name) for name in found] for record in records])


def measure(task: Any, dataset: Dataset, progress: Progress) -> Evaluation:
    """Root mean squared error, mean absolute error, and the share of the variance explained (R2). With
    several targets, each one's own error follows, and the first three are means over targets."""
    truth = np.array(
        [_targets(task.names, expected, row) for row, expected in enumerate(dataset.expected, 1)]
    )
    values = numbers(gather(task, dataset, lambda outputs, _: list(task.values(outputs)), progress))
    return Evaluation(task.setting.name, dataset.name, len(values), _metrics(task.names, truth, values))


def _metrics(names: list[str], truth: Array, values: Array) -> dict[str, float]:
    metrics = {
        "rmse": float(sklearn_metrics.root_mean_squared_error(truth, values)),
        "mae": float(sklearn_metrics.mean_absolute_error(truth, values)),
    }
    if len(truth) > 1:  # one row has no variance to explain
        metrics["r2"] = float(sklearn_metrics.r2_score(truth, values))
    if len(names) > 1:
        errors = sklearn_metrics.root_mean_squared_error(truth, values, multioutput="raw_values")
        metrics.update({f"rmse_{name}": float(error) for name, error in zip(names, errors, strict=True)})
    return metrics


def _targets(names: list[str], expected: Any, row: int) -> list[float]:
    given = expected if isinstance(expected, (list, tuple, np.ndarray)) else [expected]
    if len(given) != len(names):
        raise InputError(f"row {row} has {len(given)} targets, but the model gives {', '.join(names)}")
    numbers = []
    for name, value in zip(names, given, strict=True):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"row {row}, target '{name}' must be a finite number, but is {value!r:.40}")
        numbers.append(number)
    return numbers
