"""Tables of examples: CSV with a header, or JSON Lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infer.errors import InputError


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of a .csv or .jsonl file by column. Raises `InputError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"there is no data '{path}'; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read '{path}' as UTF-8 text ({error})") from error
    if path.suffix == ".csv":
        records = _csv_records(path, text)
    elif path.suffix == ".jsonl":
        records = _json_records(path, text)
    else:
        raise InputError(f"'{path}' is neither .csv nor .jsonl")
    if not records:
        raise InputError(f"'{path}' has no rows")
    return records


def column(path: Path, records: list[dict[str, Any]], wanted: str, usual: Iterable[str]) -> str:
    """The name of the column that holds `wanted`: the first of `usual` there is. Raises `InputError`."""
    present = list(records[0])
    for name in usual:
        if name in present:
            return name
    raise InputError(
        f"'{path}' has no column for the {wanted}; it has {', '.join(present)}; say which it is with"
        f" --column {wanted}=NAME"
    )


def columns_named(columns: Mapping[str, str], wanted: str, *usual: str) -> tuple[str, ...]:
    """The column the caller named for `wanted`, or the usual names."""
    return (columns[wanted],) if wanted in columns else usual


def _csv_records(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        header, *rows = [row for row in csv.reader(text.splitlines(keepends=True)) if row] or [[]]
    except csv.Error as error:
        raise InputError(f"'{path}' is not a CSV file ({error})") from error
    if len(set(header)) != len(header):
        raise InputError(f"'{path}' names a column twice: {', '.join(header)}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise InputError(
                f"row {number} of '{path}' has {len(row)} fields, the header has {len(header)}"
            )
    return [dict(zip(header, row, strict=True)) for row in rows]


def _json_records(path: Path, text: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} of '{path}' is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"line {number} of '{path}' must be an object, but is {line[:40]}")
        records.append(record)
    return records
