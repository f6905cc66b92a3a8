"""Arrays in `.npz` files: golden points, feeds and outputs. Never unpickles, never inflates without end."""

from __future__ import annotations

import zipfile
from pathlib import Path

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
            arrays = {m.filename.removesuffix(".npy"): _read_member(members, m) for m in members.infolist()}
            if len(arrays) != len(members.infolist()):
                raise ValueError("two arrays in it have one name")
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for damaged files
        raise ArtifactError(f"'{path}' is not a readable .npz file of plain arrays ({error})") from error
    return {
        name: array.astype(object) if array.dtype.kind == "U" else array for name, array in arrays.items()
    }


def _read_member(members: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with members.open(member) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def save_npz(path: Path, arrays: dict[str, Array]) -> None:
    """Write arrays so that `load_npz` gives them back; object arrays of `str` are kept as text.

    Not by `np.savez`, which takes names such as "file" for its own arguments. Raises `ArtifactError`.
    """
    if nul := [name for name in arrays if "\0" in name]:
        raise ArtifactError(f"an .npz file cannot hold an array named {nul[0]!r}: the name ends at its NUL")
    with zipfile.ZipFile(path, "w") as members:
        for name, array in arrays.items():
            plain = array.astype(np.str_) if array.dtype == object else array
            with members.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, plain, allow_pickle=False)
