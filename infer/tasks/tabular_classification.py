"""tabular-classification: a row of named numbers in, its class out."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError
from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.labels import Classes, ScoredLabel, describe_labels, labels_to_json
from infer.tasks.rows import Part, answer, answer_parts, batches

_BATCH_SIZE = 4096


@dataclass(frozen=True)
class Column:
    """A numeric column, fed as (value - mean) / scale."""

    name: str
    mean: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class TabularClassificationSpec:
    """`columns` in the order the model was trained with; `input` has shape (batch, columns)."""

    input: str
    output: str
    columns: tuple[Column, ...]
    labels: tuple[str, ...] = ()
    activation: str = "softmax"


class TabularClassification:
    """An input is a mapping of column to number, or the numbers in order; a result is a list of
    `ScoredLabel`, best first."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(TabularClassificationSpec)
        self.classes = Classes(self.spec.labels, self.spec.activation)
        self._names = [column.name for column in self.spec.columns]
        self._means = np.array([column.mean for column in self.spec.columns])
        self._scales = np.array([column.scale for column in self.spec.columns])

    def __call__(self, inputs: Any) -> Any:
        # a list of numbers is one row; a list of rows is many
        if (
            isinstance(inputs, list)
            and inputs
            and not isinstance(inputs[0], (Mapping, list, tuple, np.ndarray))
        ):
            inputs = tuple(inputs)
        return answer(inputs, lambda many: answer_parts(self.setting, self.parts(many), self.decode))

    def parts(self, rows: Sequence[Any]) -> Iterator[Part]:
        """Feeds: float32, shape = (batch, columns). Raises `InputError`."""
        for places in batches(len(rows), _BATCH_SIZE, self.setting.signature):
            values = np.array([self._values(rows[i], i) for i in places], np.float64)
            scaled = (values - self._means) / self._scales
            yield Part(places, {self.spec.input: scaled.astype(np.float32)})

    def scores(self, outputs: Mapping[str, Array]) -> Array:
        """The score of every class, shape = (batch, classes)."""
        return self.classes.scores(outputs[self.spec.output])

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[list[ScoredLabel]]:
        return [self.classes.rank(row) for row in self.scores(outputs)]

    def read(self, path: Path) -> Sequence[Any]:
        """Rows of a CSV file, with a header of column names or without."""
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = [row for row in csv.reader(file) if row]
        except FileNotFoundError as error:
            raise InputError(f"there is no file '{path}'; check the path") from error
        except OSError as error:
            raise InputError(f"cannot read '{path}': {error.strerror}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"'{path}' is not a UTF-8 CSV file ({error})") from error
        if not rows:
            raise InputError(f"'{path}' is empty; expected rows of {', '.join(self._names)}")
        if not set(self._names) & set(rows[0]):
            return rows
        header, *rows = rows
        bad = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
        if bad is not None:
            raise InputError(
                f"row {bad + 1} of '{path}' has {len(rows[bad])} fields, but the header has {len(header)}"
            )
        return [dict(zip(header, row, strict=True)) for row in rows]

    def parse(self, text: str) -> Any:
        return next(csv.reader(io.StringIO(text)), [])

    def to_json(self, result: Any) -> Any:
        return labels_to_json(result)

    def describe(self, result: Any) -> str:
        return describe_labels(result)

    def _values(self, row: Any, index: int) -> list[float]:
        if isinstance(row, Mapping):
            if missing := [name for name in self._names if name not in row]:
                raise InputError(
                    f"row {index} lacks {', '.join(map(repr, missing))}; the columns are"
                    f" {', '.join(self._names)}"
                )
            row = [row[name] for name in self._names]
        if len(row) != len(self._names):
            raise InputError(
                f"row {index} has {len(row)} values, but the model takes {len(self._names)}:"
                f" {', '.join(self._names)}"
            )
        return [self._number(cell, name, index) for cell, name in zip(row, self._names, strict=True)]

    @staticmethod
    def _number(cell: Any, name: str, index: int) -> float:
        try:
            number = float(cell)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"row {index}, column '{name}' must be a finite number, but is {cell!r:.40}")
        return number
