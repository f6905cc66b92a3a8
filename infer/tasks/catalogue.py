"""What a recommender's indices mean: its items and its users, and what each user has seen.

Items and users are CSV files with a header: `id`; of items `title` and `popularity`, if there are any; and
the columns the model takes. The row's place is the model's index. What users have seen is an .npz
file: `items[offsets[u]:offsets[u + 1]]` are the places of the items that user u has seen.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.npz import load_npz
from infer.signature import Array
from infer.tasks.table import parse_rows, read_text

T = TypeVar("T")


@dataclass(frozen=True)
class Catalogue:
    """The rows of a file, in order, and where each id is."""

    rows: tuple[Mapping[str, Any], ...]
    places: Mapping[str, int]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.places)

    def column(self, name: str) -> tuple[str, ...] | None:
        """The cells of a column; None if the file has no such column."""
        if name not in self.rows[0]:
            return None
        return tuple(row[name].strip() for row in self.rows)


def read_catalogue(path: Path, what: str) -> Catalogue:
    """The rows of a CSV file with a column `id`; `what` names them in errors. Raises `ArtifactError`."""
    lines = in_artifact(lambda: io.StringIO(read_text(path), newline=""))
    rows = in_artifact(lambda: parse_rows(lines, f"'{path}'", ("id",), header=True))
    if not rows:
        raise ArtifactError(f"'{path}' lists no {what}; convert the model again")
    if "id" not in rows[0]:
        raise ArtifactError(f"'{path}' has no column 'id' for its {what}; it has {', '.join(rows[0])}")
    places: dict[str, int] = {}
    for place, row in enumerate(rows):
        key = row["id"].strip()
        if not key:
            raise ArtifactError(f"'{path}' has no id in row {place + 1}")
        if key in places:
            raise ArtifactError(
                f"'{path}' lists the id '{key:.60}' twice, in rows {places[key] + 1} and {place + 1}"
            )
        places[key] = place
    return Catalogue(tuple(rows), places)


def read_popularity(catalogue: Catalogue, path: Path) -> Array | None:
    """How popular each item is, float64; None if the file does not say. Raises `ArtifactError`."""
    cells = catalogue.column("popularity")
    if cells is None:
        return None
    try:
        numbers = np.array([float(cell) for cell in cells])
    except ValueError as error:
        raise ArtifactError(f"the column 'popularity' of '{path}' must hold numbers: {error}") from error
    if not all(map(math.isfinite, numbers)):
        raise ArtifactError(f"the column 'popularity' of '{path}' must hold finite numbers")
    return numbers


@dataclass(frozen=True)
class Seen:
    """Places of the items that each user has seen."""

    offsets: Array
    items: Array

    def of(self, user: int) -> Array:
        return np.asarray(self.items[self.offsets[user] : self.offsets[user + 1]])


def read_seen(path: Path, users: int, items: int) -> Seen:
    """What each of `users` has seen of `items`. Raises `ArtifactError` if the file is not of that size."""
    arrays = load_npz(path)
    offsets, places = arrays.get("offsets"), arrays.get("items")
    if offsets is None or places is None or offsets.ndim != 1 or places.ndim != 1:
        raise ArtifactError(f"'{path}' must hold 'offsets' and 'items', each with one axis")
    if offsets.dtype.kind not in "iu" or places.dtype.kind not in "iu":
        raise ArtifactError(f"'{path}' must hold integers, but has {offsets.dtype} and {places.dtype}")
    if len(offsets) != users + 1:
        raise ArtifactError(
            f"'{path}' has {len(offsets)} offsets; for {users} users it must have {users + 1}"
        )
    rising = bool((offsets[1:] >= offsets[:-1]).all())
    if offsets[0] != 0 or offsets[-1] != len(places) or not rising:
        raise ArtifactError(f"the offsets in '{path}' must rise from 0 to its {len(places)} items")
    strange = places[(places < 0) | (places >= items)]
    if len(strange):
        raise ArtifactError(f"'{path}' must name items from 0 to {items - 1}, but names {strange[0]}")
    return Seen(offsets, places)


def in_artifact(read: Callable[[], T]) -> T:
    """What `read` gives; an `InputError` is about a file of the artifact, and so an `ArtifactError`."""
    try:
        return read()
    except InputError as error:
        raise ArtifactError(
            f"{error}; the artifact does not fit together, convert the model again"
        ) from error
