"""Scans: pictures and volumes of one channel with any number of bits, and the size of a voxel.

One file a format, one table. A reader says how large a scan is before it decodes it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from infer.errors import InferError, InputError
from infer.signature import Array

MAX_VOXELS = 2**28
"""A scan may have this many voxels (1 GiB as float32)."""

READERS: dict[str, str] = {
    ".nii": "infer.tasks.scans.nifti",
    ".nii.gz": "infer.tasks.scans.nifti",
    ".dcm": "infer.tasks.scans.dicom",
    ".tif": "infer.tasks.scans.tiff",
    ".tiff": "infer.tasks.scans.tiff",
    ".png": "infer.tasks.scans.grey",
    ".npz": "infer.tasks.scans.arrays",
}
"""End of a file's name → the module whose `read(path) -> Scan` reads it. A folder is a DICOM series."""


@dataclass(frozen=True, eq=False)
class Scan:
    """Intensities, and how far apart they were measured.

    `array` has shape (H, W) or (D, H, W), as the file has them: NIfTI (i, j, k), DICOM (slice, row,
    column), TIFF (page, row, column). `spacing_mm` has a number for each axis, or is empty if unknown.
    """

    array: Array
    spacing_mm: tuple[float, ...] = ()


def open_scan(source: Any, axes: int) -> Scan:
    """A scan of `axes` axes as float32, from a path, an array or a `Scan`. Raises `InputError`."""
    if isinstance(source, (str, Path)):
        scan, where = read_scan(source), f"'{source}'"
    elif isinstance(source, (Scan, np.ndarray)):
        scan, where = source if isinstance(source, Scan) else Scan(source), "the scan"
    else:
        raise InputError(f"a scan must be a path, an array or a Scan, but a {type(source).__name__} came")
    array, spacing = scan.array, tuple(float(mm) for mm in scan.spacing_mm)
    if array.dtype.kind not in "buif":
        raise InputError(f"{where} must hold real numbers, but holds {array.dtype}")
    for axis in range(array.ndim - 1, -1, -1):  # a single slice, a single time
        if array.ndim > axes and array.shape[axis] == 1:
            array = array.squeeze(axis)
            spacing = spacing[:axis] + spacing[axis + 1 :]
    if array.ndim != axes or 0 in array.shape:
        raise InputError(
            f"{where} has shape {list(scan.array.shape)}, but the model takes scans of {axes} axes and one"
            f" channel; give it {'a single slice' if axes == 2 else 'the whole volume'}"
        )
    if spacing and (len(spacing) != axes or not all(0 < mm < math.inf for mm in spacing)):
        raise InputError(f"{where} must have {axes} positive spacings in mm, but has {list(spacing)}")
    check_size(array.shape, where)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(
            f"{where} has voxels that are not finite; say what they are with numpy.nan_to_num, and hand"
            f" the array over"
        )
    return Scan(array, spacing)


def check_size(shape: Sequence[int], where: str) -> None:
    """Raises `InputError` if a scan of `shape` is too large to decode."""
    if math.prod(int(n) for n in shape) > MAX_VOXELS:
        raise InputError(
            f"{where} says it has {' × '.join(str(n) for n in shape)} voxels, more than {MAX_VOXELS}; cut"
            f" it into smaller ones"
        )


def read_scan(source: str | Path, *, mask: bool = False) -> Scan:
    """What a file or folder holds, as it is there. A `mask` may have a palette. Raises `InputError`."""
    path = Path(source)
    where = f"'{path}'"
    name = path.name.lower()
    ends = [end for end in READERS if name.endswith(end)]
    if not path.exists():
        raise InputError(f"there is no scan {where}; check the path")
    if not path.is_dir() and not (path.is_file() and ends):
        raise InputError(
            f"{where} is no scan that can be read; expected a file that ends with {', '.join(READERS)}, or"
            f" a folder with a DICOM series"
        )
    reader = importlib.import_module("infer.tasks.scans.dicom" if path.is_dir() else READERS[ends[0]])
    try:
        return cast(
            Scan, reader.read(path, palette=True) if mask and ends == [".png"] else reader.read(path)
        )
    except InferError:
        raise
    except Exception as error:  # readers raise many kinds for damaged files
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{where} cannot be read as a scan ({said})") from error
