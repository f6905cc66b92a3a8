"""How good an artifact is at its task: data with known answers in, metrics out.

dataset → the task answers every input → the evaluator of that task compares.

One file an evaluator, one table. Metrics come from scikit-learn where it has them, so evaluating
needs the extra `eval`.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from infer.errors import InputError
from infer.session import Session
from infer.signature import Array
from infer.tasks.rows import Join, Part, answer_parts
from infer.tasks.table import rows_of

Progress = Callable[[str], None]

EVALUATORS: dict[str, str] = {
    "image-classification": "infer.evaluation.classification",
    "object-detection": "infer.evaluation.detection",
    "image-embedding": "infer.evaluation.verification",
    "face-embedding": "infer.evaluation.verification",
    "image-segmentation": "infer.evaluation.segmentation",
    "text-classification": "infer.evaluation.classification",
    "token-classification": "infer.evaluation.token_classification",
    "tabular-classification": "infer.evaluation.classification",
    "tabular-regression": "infer.evaluation.regression",
    "recommendation": "infer.evaluation.ranking",
    "audio-classification": "infer.evaluation.classification",
    "voice-activity": "infer.evaluation.voice_activity",
    "speaker-embedding": "infer.evaluation.verification",
}
"""Task → the module that evaluates it."""

_PAIRED = "infer.evaluation.verification"

_UNBOUNDED = re.compile("log_loss|mae|rmse(_.*)?", re.DOTALL)
"""Errors that may have any size; all other metrics are shares, or nearly so."""


def lower_is_better(metric: str) -> bool:
    """Whether less of it is better: of errors."""
    return metric == "eer" or is_unbounded(metric)


def is_unbounded(metric: str) -> bool:
    """Whether its size says nothing by itself, so that a percent of it is of its value."""
    return _UNBOUNDED.fullmatch(metric) is not None


@dataclass(frozen=True)
class Dataset:
    """Inputs as the task takes them, and what is true of each, as its evaluator takes it."""

    name: str
    inputs: Sequence[Any]
    expected: Sequence[Any]


@dataclass(frozen=True)
class ClassMetrics:
    """One class: of those called so, how many are (precision); of those that are, how many were
    called so (recall); their harmonic mean (f1); how many are (support); and of masks, what both have
    of what either has (iou)."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    iou: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What came of it. The first metric is the task's main one.

    `confusion[i][j]` counts inputs of class i that were called j, in the order of `classes`.
    """

    task: str
    dataset: str
    count: int
    metrics: dict[str, float]
    classes: tuple[ClassMetrics, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()


class Evaluator(Protocol):
    """What the module of an evaluator has."""

    def read(self, path: Path, task: Any, columns: Mapping[str, str]) -> Dataset:
        """The data at `path`. `columns` renames columns of a table: what it is → what it is called there.
        Raises `InputError`."""
        ...

    def measure(self, task: Any, dataset: Dataset, progress: Progress) -> Evaluation:
        """Let `task` answer, and compare. Raises `InputError`."""
        ...


def evaluate(session: Session, data: Dataset | str | os.PathLike[str]) -> Evaluation:
    """Metrics of a session on a `Dataset`, or on one of the files or folders that `infer eval` takes.

    Raises `InputError` if the data cannot be read or does not fit the task.
    """
    if not isinstance(data, Dataset):
        data = read_dataset(session.task, Path(data))
    return evaluate_task(session.task, data)


def read_dataset(task: Any, path: Path, columns: Mapping[str, str] | None = None) -> Dataset:
    """The data at `path` for `task`. Raises `InputError`."""
    return _evaluator(task).read(path, task, columns or {})


def is_paired(task: Any) -> bool:
    """Whether an input of its datasets is a pair of what the task itself takes."""
    return EVALUATORS.get(task.setting.name) == _PAIRED


def item_key(item: Any) -> Any:
    """By which an input that is in several pairs is known."""
    return item if isinstance(item, (str, Path)) else id(item)


def items_of(pair: Iterable[Any]) -> dict[Any, Any]:
    """What the task is asked of a pair, by `item_key`."""
    return {item_key(item): item for item in pair}


def evaluate_task(task: Any, dataset: Dataset, progress: Progress = lambda _: None) -> Evaluation:
    """Metrics of a task, whatever runs its graph: a session, or the PyTorch original.

    Raises `InputError`.
    """
    # lists, so that arrays and data frames will do
    dataset = Dataset(dataset.name, list(rows_of(dataset.inputs)), list(dataset.expected))
    count, answers = len(dataset.inputs), len(dataset.expected)
    if not count:
        raise InputError(f"the data '{dataset.name}' is empty")
    if count != answers:
        raise InputError(
            f"the data '{dataset.name}' has {count} inputs, but answers for {answers}; it must have one for"
            f" each"
        )
    return _evaluator(task).measure(task, dataset, progress)


def numbers(rows: Sequence[Array]) -> Array:
    """What the model gives for each input, as one array. Raises `InputError` if it is NaN somewhere: no
    metric can count that."""
    found = np.stack(rows)
    if np.isnan(found).any():
        first = int(np.isnan(found).reshape(len(found), -1).any(axis=1).argmax())
        raise InputError(
            f"the model's answer for input {first + 1} is NaN, which no metric can count; is there NaN in"
            f" the input, or infinity in the model?"
        )
    return np.asarray(found)


def gather(
    task: Any,
    dataset: Dataset,
    decode: Callable[[Mapping[str, Array], Sequence[Any]], Sequence[Any]],
    progress: Progress,
    join: Join | None = None,
) -> list[Any]:
    """What `decode` makes of every input's outputs, and `join` of those of its windows, telling how far
    it is."""

    def told() -> Iterator[Part]:
        done: set[int] = set()
        for part in task.parts(dataset.inputs):
            yield part
            done.update(part.places)
            progress(f"{len(done)} of {len(dataset.inputs)} answered")

    return answer_parts(task.setting, told(), decode, join)


def _evaluator(task: Any) -> Evaluator:
    name = task.setting.name
    if name not in EVALUATORS:
        raise InputError(f"the task '{name}' cannot be evaluated; those that can: {', '.join(EVALUATORS)}")
    return cast(Evaluator, importlib.import_module(EVALUATORS[name]))
