"""Sliding windows: a picture or volume too large for one run is answered window by window, and the
answers are blended where windows overlap. In any number of dimensions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infer.errors import ArtifactError
from infer.signature import Array

BLENDS = ("gaussian", "linear", "constant")
PADDINGS = ("reflect", "edge", "constant")

# an overlap of 0.9 answers each pixel of a picture 100 times, of a volume 1,000 times
_MAX_OVERLAP = 0.9
_MAX_NUMBERS = 2**28

# MONAI: a window's sigma is an eighth of its size, and no weight is below 1e-3
_SIGMA_SHARE = 0.125
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Windows:
    """`size` of a window, one number a spatial axis; `overlap` of neighbours as a share of it.

    `blend` says how much a window counts where it overlaps another: "gaussian" and "linear" count its
    centre more than its border, where the model sees less; "constant" counts all the same.
    """

    size: tuple[int, ...]
    overlap: float = 0.25
    blend: str = "gaussian"

    def check(self, axes: int) -> None:
        """Raises `ArtifactError` if these are no windows of `axes` spatial axes."""
        if len(self.size) != axes or min(self.size) < 1 or math.prod(self.size) > _MAX_NUMBERS:
            raise ArtifactError(
                f"a window's size must be {axes} positive numbers of product at most {_MAX_NUMBERS},"
                f" but is {list(self.size)}"
            )
        if not 0.0 <= self.overlap <= _MAX_OVERLAP:
            raise ArtifactError(
                f"windows may overlap by a share from 0 to {_MAX_OVERLAP}, not {self.overlap}"
            )
        if self.blend not in BLENDS:
            raise ArtifactError(f"unknown blend '{self.blend}'; use one of {', '.join(BLENDS)}")


def places(shape: Sequence[int], windows: Windows) -> Iterator[tuple[slice, ...]]:
    """Where the windows lie in a grid of `shape`, which is at least as large as one.

    They are int(size * (1 - overlap)) apart; the last of a row is moved back to end with it. These
    are the places of MONAI's `dense_patch_slices`.
    """
    starts = []
    for length, size in zip(shape, windows.size, strict=True):
        step = max(1, int(size * (1 - windows.overlap)))
        count = -(-(length - size) // step) + 1
        starts.append([min(i * step, length - size) for i in range(count)])
    for corner in itertools.product(*starts):
        yield tuple(slice(at, at + size) for at, size in zip(corner, windows.size, strict=True))


def importance(windows: Windows) -> Array:
    """How much each position of a window counts, float32, shape = `windows.size`, all above 0.

    "gaussian" is MONAI's `compute_importance_map`: the product over axes of exp(-x² / 2σ²), where x
    is the distance from the window's centre and σ = size / 8, and at least 1e-3. "linear" falls
    from the centre to one step beyond the border.
    """
    weight = np.ones((), np.float32)
    for size in windows.size:
        x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        if windows.blend == "gaussian":
            line = np.exp(x**2 / np.float32(-2 * (_SIGMA_SHARE * size) ** 2))
        elif windows.blend == "linear":
            line = 1 - np.abs(x) / np.float32((size + 1) / 2)
        else:
            line = np.ones(size, np.float32)
        weight = weight[..., None] * line
    return np.maximum(weight, np.float32(_LEAST_WEIGHT)).astype(np.float32)


class Canvas:
    """What windows answered, laid over each other: a weighted mean at every position."""

    def __init__(self, shape: Sequence[int], windows: Windows) -> None:
        self._weight = importance(windows)
        self._total = np.zeros(tuple(shape), np.float32)
        self._shape = tuple(shape)
        self._sum: Array | None = None

    def lay(self, place: tuple[slice, ...], scores: Array) -> None:
        """Add the scores of one window, shape = (C, *window)."""
        if self._sum is None:
            self._sum = np.zeros((len(scores), *self._shape), np.float32)
        self._sum[(slice(None), *place)] += scores * self._weight
        self._total[place] += self._weight

    def blended(self) -> Array:
        """Scores of the whole grid, shape = (C, *shape), once every window was laid."""
        assert self._sum is not None, "no window was laid"
        self._sum /= self._total
        return self._sum


def padded(array: Array, shape: Sequence[int], mode: str) -> tuple[Array, tuple[slice, ...]]:
    """`array`, shape = (C, *spatial), grown on all sides to at least `shape`; and where it lies in that."""
    grow = [max(0, want - has) for has, want in zip(array.shape[1:], shape, strict=True)]
    at = tuple(slice(g // 2, g // 2 + has) for g, has in zip(grow, array.shape[1:], strict=True))
    if not any(grow):
        return array, at
    widths = [(0, 0), *((g // 2, g - g // 2) for g in grow)]
    return np.pad(array, widths, mode=mode), at  # type: ignore[call-overload]
