"""Rows of a table: from files, from streams of lines, and from what Python has.

A row is a mapping of names to cells, or the cells in order.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError


def rows_of(inputs: Any) -> Any:
    """`inputs` as a list of rows if it holds many, or a tuple if it is the cells of one row.

    Many are a list of rows, a 2-D array, an array of records, or a data frame, whose rows come by
    name. Whatever is left is one row, or none.
    """
    if isinstance(inputs, list):
        return tuple(inputs) if inputs and all(map(is_cell, inputs)) else inputs
    if isinstance(inputs, np.ndarray):
        many = inputs.ndim == 2 or (inputs.ndim == 1 and inputs.dtype.names is not None)
        return list(inputs) if many else inputs
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):  # a pandas DataFrame
        names = [str(name) for name in inputs.columns]
        if len(set(names)) != len(names):
            raise InputError(f"the data frame names a column twice: {', '.join(names)}; rename one")
        return inputs.to_dict(orient="records")
    return inputs


def is_cell(value: Any) -> bool:
    """Whether `value` is what a cell may hold: text, a number, a truth value, or nothing."""
    return value is None or isinstance(value, (str, Number, np.bool_)) or is_not_available(value)


def is_not_available(value: Any) -> bool:
    """Whether `value` is pandas' way to say that a cell is missing (pandas is not imported here)."""
    return type(value).__name__ in ("NAType", "NaTType")


def cells(row: Any, names: Sequence[str], number: int) -> Sequence[Any]:
    """The cells of a row, in the order of `names`. `number` counts rows from 1, for errors.

    What has names is read by name: mappings, named tuples, records, pandas Series. Raises `InputError`.
    """
    named = by_name(row)
    if named is not None:
        if missing := [name for name in names if name not in named]:
            raise InputError(
                f"row {number} lacks {', '.join(map(repr, missing))}; the columns are {', '.join(names)}"
            )
        return [named[name] for name in names]
    if not isinstance(row, (list, tuple)) and not (isinstance(row, np.ndarray) and row.ndim == 1):
        raise InputError(
            f"row {number} must be a mapping of names to values, or a list of values, but is a"
            f" {type(row).__name__}: {row!r:.60}"
        )
    if len(row) != len(names):
        raise InputError(
            f"row {number} has {len(row)} values, but the model takes {len(names)}: {', '.join(names)}"
        )
    return row.tolist() if isinstance(row, np.ndarray) else row


def by_name(row: Any) -> Mapping[Any, Any] | None:
    """A row that has names as a mapping; None if it has none."""
    if isinstance(row, Mapping):
        return row
    if isinstance(row, tuple) and hasattr(row, "_asdict"):
        return dict(row._asdict())
    if isinstance(row, np.void) and row.dtype.names:
        return dict(zip(row.dtype.names, row.item(), strict=True))
    if hasattr(row, "index") and hasattr(row, "items"):  # a pandas Series
        return dict(row.items())
    return None


def read_rows(path: Path, names: Sequence[str], *, header: bool | None = None) -> list[Any]:
    """Rows of a .jsonl file, or of a CSV file as `parse_rows` reads it. Raises `InputError`."""
    text = read_text(path)
    if path.suffix == ".jsonl":
        return list(parse_records(text, f"'{path}'"))
    try:
        rows = parse_rows(io.StringIO(text, newline=""), f"'{path}'", names, header=header)
    except UnreadableTableError as error:
        raise InputError(f"'{path}' is not a UTF-8 CSV file ({error})") from error
    if not rows and not text.strip():
        raise InputError(f"'{path}' is empty; expected rows of {', '.join(names) or 'a table'}")
    return rows


class UnreadableTableError(InputError):
    """What came is no CSV at all."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises `InputError`."""
    try:
        return path.read_bytes().decode("utf-8-sig")  # line ends within quotes stay as they are
    except FileNotFoundError as error:
        raise InputError(f"there is no file '{path}'; check the path") from error
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        kind = "JSON Lines" if path.suffix == ".jsonl" else "CSV"
        raise InputError(f"'{path}' is not a UTF-8 {kind} file ({error})") from error


def parse_rows(
    lines: Iterable[str], where: str, names: Sequence[str], *, header: bool | None = None
) -> list[Any]:
    """Rows of CSV lines: by name if the first is a header, else in order. `where` names them in errors.

    The first row is a header if it holds one of `names` and no number. Where names are themselves
    numbers, it must hold all of them. `header` says so outright. Raises `InputError`.
    """
    try:
        rows = [row for row in csv.reader(_without_mark(lines), strict=True) if any(map(str.strip, row))]
    except csv.Error as error:
        raise UnreadableTableError(f"{where} is not CSV ({error}); quote cells as CSV does") from error
    if not rows:
        return []
    if header is None:
        header = _is_header(rows[0], names)
    if not header:
        return list(rows)
    first = [name.strip() for name in rows[0]]
    if twice := sorted({name for name in first if first.count(name) > 1}):
        raise InputError(f"{where} names a column twice: {', '.join(map(repr, twice))}; rename one of each")
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(first):
            raise InputError(
                f"row {number} of {where} has {len(row)} fields, but the header has {len(first)}"
            )
    return [dict(zip(first, row, strict=True)) for row in rows[1:]]


def parse_records(text: str, where: str) -> list[dict[str, Any]]:
    """The objects of JSON Lines. Raises `InputError`."""
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} of {where} is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"line {number} of {where} must be an object, but is {line[:40]}")
        records.append(record)
    return records


def is_number(text: str) -> bool:
    """Whether a cell's text reads as a number; "nan" and "inf" do."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_header(row: Sequence[str], names: Sequence[str]) -> bool:
    found = {cell.strip() for cell in row}
    if any(map(is_number, names)):
        return found.issuperset(names)
    return bool(found.intersection(names)) and not any(map(is_number, found))


def _without_mark(lines: Iterable[str]) -> Iterable[str]:
    for index, line in enumerate(lines):
        yield line.removeprefix("\ufeff") if index == 0 else line
