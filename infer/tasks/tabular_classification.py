"""tabular-classification: a row of numbers and categories in, its class out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.columns import Column, Columns
from infer.tasks.labels import Classes, ScoredLabel, describe_labels, labels_to_json
from infer.tasks.rows import Part, answer, answer_parts
from infer.tasks.table import rows_of


@dataclass(frozen=True)
class TabularClassificationSpec:
    """`columns` in the order the model was trained with; they go to `input`, shape = (batch, numbers),
    unless they name another. `output` holds the logits."""

    output: str
    columns: tuple[Column, ...]
    input: str | None = None
    labels: tuple[str, ...] = ()
    activation: str = "softmax"


class TabularClassification:
    """An input is a mapping of column to value, or the values in order; a result is a list of
    `ScoredLabel`, best first. A data frame or a 2-D array is a list of rows."""

    row_by_row = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(TabularClassificationSpec)
        self.classes = Classes(self.spec.labels, self.spec.activation)
        self.columns = Columns(self.spec.columns, self.spec.input, setting)
        self.columns.check_feeds_all(setting)
        setting.output(self.spec.output)

    def __call__(self, inputs: Any) -> Any:
        return answer(
            self.listed(inputs), lambda many: answer_parts(self.setting, self.parts(many), self.decode)
        )

    def listed(self, inputs: Any) -> Any:
        """A list of rows, of what may be a table; one row as it came."""
        return rows_of(inputs)

    def parts(self, rows: Sequence[Any]) -> Iterator[Part]:
        return self.columns.parts(rows)

    def scores(self, outputs: Mapping[str, Array]) -> Array:
        """The score of every class, shape = (batch, classes)."""
        return self.classes.scores(outputs[self.spec.output])

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[list[ScoredLabel]]:
        return [self.classes.rank(row) for row in self.scores(outputs)]

    def synthetic(self, rng: np.random.Generator) -> dict[str, Any]:
        return self.columns.synthetic(rng)

    def read(self, path: Path) -> Sequence[Any]:
        return self.columns.read(path)

    def parse(self, text: str) -> Any:
        return self.columns.parse(text)

    def parse_stream(self, lines: Iterable[str], where: str) -> Sequence[Any]:
        return self.columns.parse_stream(lines, where)

    def to_json(self, result: Any) -> Any:
        return labels_to_json(result)

    def describe(self, result: Any) -> str:
        return describe_labels(result)
