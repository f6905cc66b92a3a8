"""Arrays in `.npz` files: golden points, feeds and outputs. Never unpickles, never inflates without end."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError
from infer.signature import Array

# How much larger than its file the arrays of an .npz may be; those of np.savez are not larger.
_MAX_INFLATED_BYTES = 256 * 2**20


def load_npz(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` file by name; strings come back as object arrays of `str`.

    Raises `ArtifactError` if it is not such a file. Never unpickles.
    """
    try:
        with zipfile.ZipFile(path) as members:
            grown = sum(m.file_size for m in members.infolist()) - path.stat().st_size
        if grown > _MAX_INFLATED_BYTES:
            raise ValueError(
                f"its arrays would take {grown} bytes more than the file, and compression may save"
                f" {_MAX_INFLATED_BYTES}; save large ones with np.savez"
            )
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if stray := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"'{stray[0]}' in it is no array")
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for damaged files
        raise ArtifactError(f"'{path}' is not a readable .npz file of plain arrays ({error})") from error
    return {
        name: array.astype(object) if array.dtype.kind == "U" else array for name, array in arrays.items()
    }


def save_npz(path: Path, arrays: dict[str, Array]) -> None:
    """Write arrays so that `load_npz` gives them back; object arrays of `str` are kept as text."""
    plain: dict[str, Any] = {n: a.astype(np.str_) if a.dtype == object else a for n, a in arrays.items()}
    with path.open("wb") as file:
        np.savez(file, **plain)
