"""Columns as data: what the cells of a row mean, and how they become the numbers a model takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array, TensorSpec
from infer.tasks import Setting
from infer.tasks.rows import Part, batches
from infer.tasks.table import cells, is_not_available, parse_rows, read_rows

_BATCH_SIZE = 4096
_MOST_NAMED = 20  # categories that an error lists


@dataclass(frozen=True)
class Column:
    """One column. What its cells become depends on its `kind`:

    numeric     the number
    boolean     1 or 0
    ordinal     the place of the category in `categories`
    one-hot     as many numbers as there are categories: 1 at the cell's, 0 elsewhere
    multi-hot   the same for a cell with any number of categories: a list, or text joined by `|`

    Each number is then fed as (number - mean) / scale, to `input`, or to the task's own.

    `missing` is what an empty cell, None or NaN counts as; without it, they are refused. An empty
    multi-hot cell is none of its categories. `unknown` says what becomes of a category that is not
    listed: "refused"; "other", which is a place of its own after the last; or "zeros" for one-hot and
    multi-hot, which is no place at all.
    """

    name: str
    kind: str = "numeric"
    mean: float = 0.0
    scale: float = 1.0
    missing: float | str | bool | None = None
    categories: tuple[str, ...] = ()
    unknown: str = "refused"
    input: str | None = None

    @property
    def width(self) -> int:
        """How many numbers a cell becomes."""
        if self.kind not in ("one-hot", "multi-hot"):
            return 1
        return len(self.categories) + (self.unknown == "other")


@dataclass(frozen=True)
class _Input:
    """What one input gets: its columns by their places in a row, and for each number its column's."""

    spec: TensorSpec
    columns: tuple[int, ...]
    owners: tuple[int, ...]
    means: Array
    scales: Array


class Columns:
    """Rows in, feeds out: each input gets its columns side by side, in the order of the spec."""

    def __init__(self, columns: Sequence[Column], input: str | None, setting: Setting) -> None:
        self.names = [column.name for column in columns]
        self._setting = setting
        self._checked(columns)
        self._places = [{text.strip(): i for i, text in enumerate(column.categories)} for column in columns]
        self._columns = tuple(columns)
        groups: dict[str, list[int]] = {}
        specs = {spec.name: spec for spec in setting.signature.inputs}
        for index, column in enumerate(columns):
            name = column.input or input
            if name is None:
                raise ArtifactError(
                    f"the spec does not say which input column '{column.name}' goes to; the graph takes"
                    f' {", ".join(specs)}: add "input": "{next(iter(specs))}" to it'
                )
            if name not in specs:
                raise ArtifactError(
                    f"column '{column.name}' goes to the input '{name}', which the graph lacks; it takes"
                    f" {', '.join(specs)}; convert the model again"
                )
            groups.setdefault(name, []).append(index)
        self._inputs = {name: self._input(specs[name], indices) for name, indices in groups.items()}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that the columns feed."""
        return tuple(self._inputs)

    def check_feeds_all(self, setting: Setting) -> None:
        """Raise `ArtifactError` if an input of the graph gets no column."""
        if unfed := [spec.name for spec in setting.signature.inputs if spec.name not in self._inputs]:
            raise ArtifactError(
                f"no column goes to the input {', '.join(map(repr, unfed))}; convert the model again"
            )

    def parts(self, rows: Sequence[Any]) -> Iterator[Part]:
        """Feeds for all `rows`, in batches. Raises `InputError`."""
        if not isinstance(rows, (list, tuple)):
            raise InputError(f"rows must come in a list, but a {type(rows).__name__} came")
        for places in batches(len(rows), _BATCH_SIZE, self._setting.signature):
            yield Part(places, self.feeds([rows[i] for i in places], places.start + 1))

    def feeds(self, rows: Sequence[Any], first: int = 1) -> dict[str, Array]:
        """An array for each input, shape = (rows, numbers) or (rows,). `first` numbers the first row."""
        table = [cells(row, self.names, number) for number, row in enumerate(rows, first)]
        return {name: self._feed(group, table, first) for name, group in self._inputs.items()}

    def synthetic(self, rng: np.random.Generator) -> dict[str, Any]:
        """A row: numbers about the column's mean, any of its categories."""
        return {column.name: _synthetic(column, rng) for column in self._columns}

    def read(self, path: Path) -> Sequence[Any]:
        """Rows of a .csv file, with a header of column names or without, or of a .jsonl file."""
        return read_rows(path, self.names)

    def parse_stream(self, lines: Iterable[str], where: str) -> Sequence[Any]:
        """Rows of CSV lines, with a header of column names or without."""
        return parse_rows(lines, where, self.names)

    def parse(self, text: str) -> Any:
        """The one row that a line of CSV holds."""
        rows = parse_rows([text], "the text", self.names, header=False)
        if not rows:
            raise InputError(f"the text is empty; expected a row of {', '.join(self.names)}")
        return rows[0]

    def _feed(self, group: _Input, table: Sequence[Sequence[Any]], first: int) -> Array:
        """The columns of one input side by side, scaled, in its dtype."""
        numbers = np.zeros((len(table), len(group.owners)))
        start = 0
        for index in group.columns:
            column, places = self._columns[index], self._places[index]
            convert = _KINDS[column.kind]
            block = numbers[:, start : start + column.width]
            start += column.width
            for row, cells_of_row in enumerate(table):
                try:
                    convert(cells_of_row[index], column, places, block[row])
                except _RefusedError as error:
                    raise InputError(f"row {first + row}, column '{column.name}' {error}") from None
        with np.errstate(all="ignore"):  # what overflows is found, and named
            scaled = (numbers - group.means) / group.scales
            array = scaled.astype(group.spec.numpy_dtype)
        bad = ~_fits(scaled, array)
        if bad.any():
            row, place = (int(i) for i in np.argwhere(bad)[0])
            name, value = self.names[group.owners[place]], scaled[row, place]
            raise InputError(
                f"row {first + row}, column '{name}' is {value:g} for the model (mean and scale applied),"
                f" which does not fit {group.spec.dtype}"
            )
        return array[:, 0] if len(group.spec.dims) == 1 else array

    def _input(self, spec: TensorSpec, indices: Sequence[int]) -> _Input:
        columns = [self._columns[i] for i in indices]
        owners = tuple(i for i in indices for _ in range(self._columns[i].width))
        takes = 1 if len(spec.dims) == 1 else spec.dims[1] if len(spec.dims) == 2 else None
        if takes is None or (isinstance(takes, int) and takes != len(owners)) or spec.dtype == "string":
            raise ArtifactError(
                f"the columns {', '.join(c.name for c in columns)} make {len(owners)} numbers a row, which"
                f" do not fit the input {spec}; convert the model again"
            )
        means = np.array([self._columns[i].mean for i in owners])
        scales = np.array([self._columns[i].scale for i in owners])
        return _Input(spec, tuple(indices), owners, means, scales)

    def _checked(self, columns: Sequence[Column]) -> None:
        if not columns:
            raise ArtifactError(f"the spec of task '{self._setting.name}' has no columns")
        if len(set(self.names)) != len(self.names):
            raise ArtifactError(f"the spec names a column twice: {', '.join(self.names)}")
        for column in columns:
            if problem := _problem(column):
                raise ArtifactError(f"column '{column.name}' {problem}; convert the model again")


def _synthetic(column: Column, rng: np.random.Generator) -> Any:
    if column.kind == "numeric":
        return column.mean + column.scale * float(rng.standard_normal())
    if column.kind == "boolean":
        return bool(rng.integers(2))
    if column.kind == "multi-hot":
        few = rng.integers(1, 1 + min(3, len(column.categories)))
        return [column.categories[i] for i in rng.permutation(len(column.categories))[:few]]
    return column.categories[rng.integers(len(column.categories))]


def _fits(scaled: Array, array: Array) -> Array:
    """Which numbers `array`, of the input's dtype, holds as they are meant."""
    if array.dtype.kind == "f":
        return np.isfinite(array)
    low, high = (
        (0, 1) if array.dtype.kind == "b" else (np.iinfo(array.dtype).min, np.iinfo(array.dtype).max)
    )
    # above 2^53, float64 does not hold every integer
    within = (scaled >= max(low, -(2**53))) & (scaled <= min(high, 2**53))
    return np.asarray(within & (scaled == np.floor(scaled)))


class _RefusedError(Exception):
    """A cell that its column does not take; the message goes on after "row 1, column 'x'"."""


def _problem(column: Column) -> str | None:
    """What is wrong with a column of a spec."""
    if column.kind not in _KINDS:
        return f"has the unknown kind '{column.kind}'; use one of {', '.join(_KINDS)}"
    if not (math.isfinite(column.mean) and math.isfinite(column.scale)) or column.scale == 0:
        return f"has mean {column.mean:g} and scale {column.scale:g}; both must be finite, scale not 0"
    if column.kind in ("numeric", "boolean"):
        if column.categories or column.unknown != "refused":
            return f"is {column.kind}, and so has no categories"
    else:
        if not column.categories:
            return f"is {column.kind}, but has no categories"
        if len({text.strip() for text in column.categories}) != len(column.categories):
            return "lists a category twice"
        allowed = ("refused", "other") if column.kind == "ordinal" else ("refused", "other", "zeros")
        if column.unknown not in allowed:
            return f"has unknown '{column.unknown}'; use one of {', '.join(allowed)}"
    if column.missing is not None:
        if column.kind == "multi-hot":
            return "is multi-hot, whose empty cells are none of its categories, and so has no 'missing'"
        try:
            places = {text.strip(): i for i, text in enumerate(column.categories)}
            _KINDS[column.kind](column.missing, column, places, np.zeros(column.width))
        except _RefusedError as error:
            return f"has a value for missing cells that {error}"
    return None


Convert = Callable[[Any, Column, Mapping[str, int], Array], None]
"""Writes what a cell becomes into its row of zeros. Raises `_RefusedError`."""


def _numeric(cell: Any, column: Column, places: Mapping[str, int], into: Array) -> None:
    into[0] = _number(_present(cell, column))


def _number(cell: Any) -> float:
    # float() would take bytes and arrays of one number, too
    plain: Any = cell if isinstance(cell, (str, Number, np.bool_)) else None
    try:
        number = float(plain)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _RefusedError(f"must be a finite number, but is {_shown(cell)}")
    return number


_TRUTHS = {"true": 1.0, "yes": 1.0, "t": 1.0, "y": 1.0, "false": 0.0, "no": 0.0, "f": 0.0, "n": 0.0}


def _boolean(cell: Any, column: Column, places: Mapping[str, int], into: Array) -> None:
    cell = _present(cell, column)
    truth = _TRUTHS.get(cell.strip().lower()) if isinstance(cell, str) else None
    if truth is None:
        try:
            truth = _number(cell)
        except _RefusedError:
            truth = math.nan
    if truth not in (0.0, 1.0):
        raise _RefusedError(f"must be true or false, yes or no, 1 or 0, but is {_shown(cell)}")
    into[0] = truth


def _ordinal(cell: Any, column: Column, places: Mapping[str, int], into: Array) -> None:
    place = _place(_present(cell, column), column, places)
    assert place is not None, "an ordinal column has no 'zeros'"
    into[0] = place


def _one_hot(cell: Any, column: Column, places: Mapping[str, int], into: Array) -> None:
    place = _place(_present(cell, column), column, places)
    if place is not None:
        into[place] = 1.0


def _multi_hot(cell: Any, column: Column, places: Mapping[str, int], into: Array) -> None:
    if isinstance(cell, (list, tuple, set, frozenset)):
        several = list(cell)
    elif _is_missing(cell):
        several = []
    else:
        several = [text for text in cell.split("|") if text.strip()] if isinstance(cell, str) else [cell]
    for each in several:
        place = _place(each, column, places)
        if place is not None:
            into[place] = 1.0


def _place(cell: Any, column: Column, places: Mapping[str, int]) -> int | None:
    """Where a category is listed; None if nowhere, and that is no matter."""
    for text in _texts(cell):
        if text in places:
            return places[text]
    if column.unknown == "refused" or not isinstance(cell, (str, Number, np.bool_)):
        known = ", ".join(column.categories[:_MOST_NAMED])
        more = len(column.categories) - _MOST_NAMED
        raise _RefusedError(
            f"has the unknown category {_shown(cell)}; known are {known}"
            f"{f' and {more} more' if more > 0 else ''}"
        )
    return len(places) if column.unknown == "other" else None


def _texts(cell: Any) -> Iterator[str]:
    """How a category may be written; data frames make 3.0 of 3 where other cells are empty."""
    if isinstance(cell, str):
        yield cell.strip()
    elif isinstance(cell, (Number, np.bool_)):
        yield str(cell)
        if isinstance(cell, (float, np.floating)) and float(cell).is_integer():
            yield str(int(cell))


def _present(cell: Any, column: Column) -> Any:
    """The cell, or what an empty one counts as."""
    if not _is_missing(cell):
        return cell
    if column.missing is None:
        raise _RefusedError(
            f"is empty ({_shown(cell)}), and the model has no value for missing cells; fill it in"
        )
    return column.missing


def _is_missing(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell.strip().lower() in ("", "nan")
    if isinstance(cell, (float, np.floating)):
        return math.isnan(cell)
    return cell is None or is_not_available(cell)


def _shown(cell: Any) -> str:
    try:
        return f"{cell!r:.40}"
    except ValueError:  # an int of more digits than Python prints
        return f"an {type(cell).__name__} too long to print"


_KINDS: dict[str, Convert] = {
    "numeric": _numeric,
    "boolean": _boolean,
    "ordinal": _ordinal,
    "one-hot": _one_hot,
    "multi-hot": _multi_hot,
}
