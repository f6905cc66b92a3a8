"""What goes into a graph and what comes out: tensor specs and symbolic dims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Dim = int | str
"""A size: an int when fixed, a name when it may vary. The same name means the same size."""

DTYPES: dict[str, np.dtype[Any]] = {
    **{
        name: np.dtype(name)
        for name in (
            "float32", "float64", "float16", "int8", "int16", "int32", "int64",
            "uint8", "uint16", "uint32", "uint64", "bool",
        )
    },
    "string": np.dtype(object),
}  # fmt: skip
"""Tensor dtypes by name. Strings travel as object arrays of `str`, as ONNX Runtime wants them."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and dims of one tensor; dims are ints or names."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]"

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The native numpy dtype that holds this tensor."""
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Range:
    """The sizes a dim may have: from `least` to `most`, without an upper end if that is None."""

    least: int = 1
    most: int | None = None

    def __contains__(self, size: int) -> bool:
        return self.least <= size and (self.most is None or size <= self.most)

    def __and__(self, other: Range) -> Range:
        ends = [most for most in (self.most, other.most) if most is not None]
        return Range(max(self.least, other.least), min(ends, default=None))

    def __str__(self) -> str:
        return f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"


@dataclass(frozen=True)
class Signature:
    """The tensors a graph takes and gives, in order, and the limits of dims that have any."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: Mapping[str, Range] = field(default_factory=dict)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the symbolic dims of the inputs, in order of first appearance."""
        return tuple(dict.fromkeys(d for spec in self.inputs for d in spec.dims if isinstance(d, str)))

    def nearest(self, dim: str, size: int) -> int:
        """This size, or where the limits of `dim` do not hold it, the nearest that they do."""
        limit = self.limits.get(dim, Range())
        return max(limit.least, size if limit.most is None else min(size, limit.most))

    def allows(self, dim: str, size: int) -> bool:
        """Whether the limits of `dim`, if it has any, hold this size."""
        return dim not in self.limits or size in self.limits[dim]
