"""Grey PNG pictures of 1 to 16 bits, read by pillow."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from infer.errors import InputError, missing_package
from infer.tasks.scans import Scan, check_size

try:
    from PIL import Image
except (ImportError, OSError) as _error:
    raise missing_package("pillow", "image", _error) from _error


def read(path: Path, *, palette: bool = False) -> Scan:
    """The values as stored; with `palette`, also the numbers of colours. Colours are refused."""
    modes = ("1", "L", "I;16", "I", *(("P",) if palette else ()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_size sets the limit
        with Image.open(path, formats=("PNG",)) as picture:
            check_size(picture.size[::-1], f"'{path}'")
            if picture.mode not in modes:
                raise InputError(
                    f"'{path}' has the mode {picture.mode}, but one channel is expected; convert it to grey"
                )
            return Scan(np.asarray(picture))
