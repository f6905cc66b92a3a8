"""Tables of examples: CSV with a header, JSON Lines, or arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infer.errors import InputError
from infer.npz import load_npz
from infer.signature import Array
from infer.tasks.table import read_rows


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of a .csv or .jsonl file by column. Raises `InputError`."""
    if path.suffix not in (".csv", ".jsonl"):
        if not path.exists():
            raise InputError(f"there is no data '{path}'; check the path")
        raise InputError(f"'{path}' is neither .csv nor .jsonl")
    records: list[dict[str, Any]] = read_rows(path, (), header=True)
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


def read_arrays(path: Path, *names: str) -> list[Array]:
    """The arrays called `names` of an .npz file, each with a row for each example. Raises `InputError`."""
    if not path.exists():
        raise InputError(f"there is no data '{path}'; check the path")
    arrays = load_npz(path)
    if not set(names) <= arrays.keys():
        wanted = " and ".join(f"'{name}'" for name in names)
        raise InputError(f"'{path}' must hold {wanted}, but holds {', '.join(arrays) or 'nothing'}")
    for name in names:
        if not arrays[name].ndim:
            raise InputError(f"'{name}' of '{path}' is a single value; it must have a row for each example")
    return [arrays[name] for name in names]
