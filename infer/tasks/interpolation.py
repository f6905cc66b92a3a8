"""Linear interpolation of maps of scores and volumes, in any number of dimensions.

The sample positions are those of torch's `interpolate(mode="bilinear" or "trilinear",
align_corners=False, antialias=False)`: pixels are areas, and what lies outside is the border.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from infer.signature import Array

# numbers of a strip: large enough to be fast, and small beside the picture it is part of
_STRIP_NUMBERS = 2**22


class Taps(NamedTuple):
    """For each output position: its two neighbours, and how much the second counts."""

    low: Array
    high: Array
    weight: Array


def taps(size_in: int, size_out: int) -> Taps:
    """The neighbours of `size_out` positions, spread evenly over `size_in` pixels.

    Rounded as torch rounds them, which multiplies and subtracts in one step: the scale and the result
    are float32, what is between is exact.
    """
    scale = float(np.float32(size_in) / np.float32(size_out))
    source = np.maximum(scale * (np.arange(size_out) + 0.5) - 0.5, 0.0).astype(np.float32)
    low = np.minimum(source.astype(np.int64), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    return Taps(low, high, np.clip(source - low.astype(np.float32), 0, 1).astype(np.float32))


def resized(array: Array, size: Sequence[int]) -> Array:
    """`array`, float32, shape = (C, *spatial), with the spatial shape `size`."""
    out = np.empty((array.shape[0], *size), np.float32)
    for rows, strip in strips(array, size):
        out[:, rows] = strip
    return out


def strips(array: Array, size: Sequence[int]) -> Iterator[tuple[slice, Array]]:
    """`resized`, some rows of the first spatial axis at a time: the result itself may be too large."""
    count = max(1, _STRIP_NUMBERS // max(1, array.shape[0] * int(np.prod(size[1:]))))
    low, high, weight = taps(array.shape[1], size[0])
    for start in range(0, size[0], count):
        rows = slice(start, min(start + count, size[0]))
        first, last = int(low[rows][0]), int(high[rows][-1])
        part = np.asarray(array[:, first : last + 1], np.float32)
        for axis in range(array.ndim - 1, 1, -1):
            if array.shape[axis] != size[axis - 1]:
                part = _along(part, axis, taps(array.shape[axis], size[axis - 1]))
        if array.shape[1] != size[0]:
            part = _along(part, 1, Taps(low[rows] - first, high[rows] - first, weight[rows]))
        yield rows, part


def _along(array: Array, axis: int, at: Taps) -> Array:
    weight = at.weight.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    below, above = np.take(array, at.low, axis), np.take(array, at.high, axis)
    return np.asarray(below * (np.float32(1) - weight) + above * weight)
