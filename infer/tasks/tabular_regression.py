"""tabular-regression: a row of numbers and categories in, the values it predicts out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError
from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.columns import Column, Columns
from infer.tasks.rows import Part, answer, answer_parts
from infer.tasks.table import rows_of


@dataclass(frozen=True)
class Target:
    """A value to predict; the model gives (value - mean) / scale."""

    name: str
    mean: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class TabularRegressionSpec:
    """`columns` in the order the model was trained with; they go to `input`, shape = (batch, numbers),
    unless they name another. `output` holds the `targets`, shape = (batch, targets), or (batch,) of one."""

    output: str
    columns: tuple[Column, ...]
    targets: tuple[Target, ...]
    input: str | None = None


class TabularRegression:
    """An input is a mapping of column to value, or the values in order; a result is a dict of target
    to value, a float. A data frame or a 2-D array is a list of rows."""

    row_by_row = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(TabularRegressionSpec)
        self.columns = Columns(self.spec.columns, self.spec.input, setting)
        self.columns.check_feeds_all(setting)
        self.names = [target.name for target in self.spec.targets]
        self._means = np.array([target.mean for target in self.spec.targets])
        self._scales = np.array([target.scale for target in self.spec.targets])
        self._check()

    def __call__(self, inputs: Any) -> Any:
        return answer(
            self.listed(inputs), lambda many: answer_parts(self.setting, self.parts(many), self.decode)
        )

    def listed(self, inputs: Any) -> Any:
        """A list of rows, of what may be a table; one row as it came."""
        return rows_of(inputs)

    def parts(self, rows: Sequence[Any]) -> Iterator[Part]:
        return self.columns.parts(rows)

    def values(self, outputs: Mapping[str, Array]) -> Array:
        """The targets with their scaling undone, float64, shape = (batch, targets)."""
        array = outputs[self.spec.output].astype(np.float64)
        if array.size != len(array) * len(self.names):
            raise ArtifactError(
                f"the output '{self.spec.output}' has shape {list(array.shape)}, but the spec names"
                f" {len(self.names)} targets; convert the model again"
            )
        return np.asarray(array.reshape(len(array), -1) * self._scales + self._means)

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[dict[str, float]]:
        return [dict(zip(self.names, row.tolist(), strict=True)) for row in self.values(outputs)]

    def synthetic(self, rng: np.random.Generator) -> dict[str, Any]:
        return self.columns.synthetic(rng)

    def read(self, path: Path) -> Sequence[Any]:
        return self.columns.read(path)

    def parse(self, text: str) -> Any:
        return self.columns.parse(text)

    def parse_stream(self, lines: Iterable[str], where: str) -> Sequence[Any]:
        return self.columns.parse_stream(lines, where)

    def to_json(self, result: Any) -> Any:
        # JSON has no word for what is not a number
        return {"values": {name: x if math.isfinite(x) else None for name, x in result.items()}}

    def describe(self, result: Any) -> str:
        return "\n".join(f"{value:12.6g}  {name}" for name, value in result.items())

    def _check(self) -> None:
        names, output = self.names, self.setting.output(self.spec.output)
        if not names or len(set(names)) != len(names):
            raise ArtifactError(f"the spec must name its targets, each once, but names {names}")
        for target in self.spec.targets:
            if not (math.isfinite(target.mean) and math.isfinite(target.scale)) or target.scale == 0:
                raise ArtifactError(
                    f"target '{target.name}' has mean {target.mean:g} and scale {target.scale:g}; both must"
                    f" be finite, scale not 0; convert the model again"
                )
        width = output.dims[1] if len(output.dims) == 2 else 1 if len(output.dims) == 1 else None
        if width is None or (isinstance(width, int) and width != len(names)):
            raise ArtifactError(
                f"the spec names {len(names)} targets ({', '.join(names)}), but the graph gives {output};"
                f" convert the model again"
            )
