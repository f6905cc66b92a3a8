"""Arrays in .npz files: `array`, or the only one there is, and `spacing_mm` if it is known."""

from __future__ import annotations

from pathlib import Path

from infer.errors import ArtifactError, InputError
from infer.npz import load_npz
from infer.tasks.scans import Scan


def read(path: Path) -> Scan:
    """The array as it is."""
    try:
        arrays = load_npz(path)
    except ArtifactError as error:
        raise InputError(str(error)) from error
    spacing = arrays.pop("spacing_mm", None)
    if len(arrays) != 1 and "array" not in arrays:
        raise InputError(f"'{path}' must hold 'array', or one array only, but holds {', '.join(arrays)}")
    array = arrays["array"] if "array" in arrays else next(iter(arrays.values()))
    return Scan(array, () if spacing is None else tuple(spacing.ravel().tolist()))
