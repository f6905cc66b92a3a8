"""TIFF files of one channel, a page a slice, read by tifffile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError, missing_package
from infer.tasks.scans import Scan, check_size

try:
    import tifffile
except (ImportError, OSError) as _error:
    raise missing_package("tifffile", "medical", _error) from _error

_MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "micron": 1e-3, "um": 1e-3, "µm": 1e-3, "\\u00B5m": 1e-3}


def read(path: Path) -> Scan:
    """The pages of this file; OME's references to other files are not followed.

    The size of a pixel is taken from ImageJ's metadata only: the resolution that other programs
    write is most often that of a screen.
    """
    where = f"'{path}'"
    with tifffile.TiffFile(path, _multifile=False) as file:
        first = file.pages[0]
        shape = (len(file.pages), *first.shape)
        check_size(shape, where)
        if len(first.shape) != 2 or any(page.shape != first.shape for page in file.pages):
            raise InputError(
                f"{where} must have pages of one channel and one size, but has {len(file.pages)} of"
                f" {list(first.shape)} and the like"
            )
        array = np.stack([page.asarray() for page in file.pages])
        spacing = _spacing(file, first)
    return Scan(array, spacing) if len(array) > 1 else Scan(array[0], spacing[1:])


def _spacing(file: Any, page: Any) -> tuple[float, ...]:
    about = file.imagej_metadata or {}
    mm = _MM.get(str(about.get("unit", "")))
    tags = page.tags
    if mm is None or "XResolution" not in tags or "YResolution" not in tags:
        return ()
    across, down = (tags[name].value for name in ("XResolution", "YResolution"))
    return (
        float(about.get("spacing", 1.0)) * mm,
        mm * down[1] / down[0],
        mm * across[1] / across[0],
    )
