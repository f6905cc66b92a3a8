"""DICOM: a file, or a folder with the slices of one series, read by pydicom.

Values are in the modality's unit: rescale slope and intercept, or its table, are applied. Where
low values are meant to be shown white (MONOCHROME1), the stored values are turned over within the
range of their bits first, the same way in every slice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError, missing_package
from infer.signature import Array
from infer.tasks.scans import Scan, check_size

try:
    import pydicom
    from pydicom.pixels import apply_modality_lut
    from pydicom.uid import DeflatedExplicitVRLittleEndian
except (ImportError, OSError) as _error:
    raise missing_package("pydicom", "medical", _error) from _error

# neighbours in a series may be this much further apart than the others: positions are rounded
_UNEVEN = 0.1


def read(path: Path) -> Scan:
    """A slice (row, column), or a volume (slice, row, column), slices in the order of their place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that break the standard, but not the picture
        if path.is_file():
            return _single(path)
        return _series(path)


def _single(path: Path) -> Scan:
    found = _file(path)
    array = _values(found, path)
    spacing = _in_plane(found)
    if array.ndim == 3 and spacing:
        between = found.get("SpacingBetweenSlices") or found.get("SliceThickness")
        spacing = (float(between), *spacing) if between else ()
    return Scan(array, spacing)


def _series(path: Path) -> Scan:
    files = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
    files = [file for file in files if file.name != "DICOMDIR"]
    if not files:
        raise InputError(f"the folder '{path}' holds no DICOM files")
    # headers first: what does not belong together is not decoded
    heads = [_file(file, stop_before_pixels=True) for file in files]
    for what in ("SeriesInstanceUID", "Rows", "Columns"):
        kinds = sorted({str(head.get(what)) for head in heads})
        if len(kinds) > 1:
            raise InputError(
                f"the files in '{path}' are not one series: their {what} is {', '.join(kinds[:3])}; put"
                f" each series into a folder of its own"
            )
    check_size((len(heads), int(heads[0].get("Rows", 0)), int(heads[0].get("Columns", 0))), f"'{path}'")
    along, placed = _places(heads, path)
    order = np.argsort(along, kind="stable")
    array = np.stack([_values(_file(files[i]), files[i]) for i in order])
    if array.ndim != 3:
        raise InputError(f"the files in '{path}' have several frames each; give one file")
    in_plane = _in_plane(heads[0])
    if not placed or not in_plane:
        return Scan(array)
    return Scan(array, (_step(np.asarray(along)[order], heads[0], path), *in_plane))


def _file(path: Path, stop_before_pixels: bool = False) -> Any:
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise InputError(
            f"'{path}' is deflated as a whole, which is refused; save it without (dcmconv +te)"
        )
    return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)


def _places(heads: Sequence[Any], path: Path) -> tuple[list[float], bool]:
    """Where each slice lies along the normal of the slices, in mm; else its number."""
    if all(head.get("ImagePositionPatient") and head.get("ImageOrientationPatient") for head in heads):
        turned = np.array([head.ImageOrientationPatient for head in heads], np.float64)
        if not np.allclose(turned, turned[0], atol=1e-3):
            raise InputError(f"the slices in '{path}' are not parallel; put each stack into its own folder")
        normal = np.cross(turned[0, :3], turned[0, 3:])
        return [float(np.dot(normal, np.array(h.ImagePositionPatient, np.float64))) for h in heads], True
    if all(head.get("InstanceNumber") is not None for head in heads):
        return [float(head.InstanceNumber) for head in heads], False
    raise InputError(f"the slices in '{path}' say neither their position nor their number")


def _step(along: Array, head: Any, path: Path) -> float:
    if len(along) == 1:
        return float(head.get("SpacingBetweenSlices") or head.get("SliceThickness") or 1.0)
    steps = np.diff(along)
    usual = float(np.median(steps))
    if usual <= 0 or np.abs(steps - usual).max() > _UNEVEN * usual:
        raise InputError(
            f"the slices in '{path}' lie {steps.min():.4g} to {steps.max():.4g} mm apart: some are missing"
            f" or there twice"
        )
    return usual


def _in_plane(head: Any) -> tuple[float, ...]:
    spacing = head.get("PixelSpacing") or head.get("ImagerPixelSpacing") or ()
    return tuple(float(mm) for mm in spacing)


def _values(found: Any, path: Path) -> Array:
    if int(found.get("SamplesPerPixel", 1)) != 1:
        raise InputError(f"'{path}' has {found.SamplesPerPixel} channels, but a scan must have one")
    frames = int(found.get("NumberOfFrames") or 1)
    check_size((frames, int(found.get("Rows", 0)), int(found.get("Columns", 0))), f"'{path}'")
    stored = found.pixel_array
    if found.get("PhotometricInterpretation") == "MONOCHROME1":
        # signed values run from -2^(n-1) to 2^(n-1) - 1, whose sum is -1
        ends = -1 if found.get("PixelRepresentation") else 2 ** int(found.BitsStored) - 1
        stored = ends - stored.astype(np.int64)
    return np.asarray(apply_modality_lut(stored, found), np.float32)
