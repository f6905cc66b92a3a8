"""NIfTI-1 and -2 files, .nii and .nii.gz, read by nibabel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infer.errors import missing_package
from infer.tasks.scans import Scan, check_size

try:
    import nibabel
except (ImportError, OSError) as _error:
    raise missing_package("nibabel", "medical", _error) from _error

_MM = {"mm": 1.0, "meter": 1000.0, "micron": 1e-3, "unknown": 1.0}


def read(path: Path) -> Scan:
    """The volume in the order it is stored in, with the file's own slope and intercept applied."""
    image = nibabel.load(path, mmap=False)
    check_size(image.shape, f"'{path}'")
    unit = _MM[image.header.get_xyzt_units()[0]]
    array = image.get_fdata(dtype=np.float32, caching="unchanged")
    zooms = [float(mm) * unit for mm in image.header.get_zooms()[:3]]
    zooms += [1.0] * (array.ndim - len(zooms))  # time and the like have no length
    return Scan(array, tuple(zooms[: array.ndim]))
