"""Rows of several callers as one set of feeds, and its outputs as the rows of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infer.guard import Feeds
from infer.signature import Array, Signature, TensorSpec
from infer.tasks import Padding


@dataclass(frozen=True)
class Layout:
    """Where the rows lie in a graph's tensors, and what may differ between rows that run together.

    Attributes:
        batch: the dim along which rows lie: the first of every input and output, and no other.
        length: the dim that padding fills, "" if there is none.
        padding: what fills the inputs that have `length`.
        signature: of the graph.
    """

    batch: str
    length: str
    padding: Padding | None
    signature: Signature

    def __str__(self) -> str:
        padded = f", padded along {self.length}" if self.length else ""
        return f"rows run together along {self.batch}{padded}"

    @property
    def most_rows(self) -> int | None:
        """The most rows that the graph takes; None without an end."""
        limits = self.signature.limits.get(self.batch)
        return limits.most if limits else None

    def rows(self, feeds: Mapping[str, Array]) -> int:
        """How many rows there are in `feeds`."""
        return len(feeds[self.signature.inputs[0].name])

    def length_of(self, feeds: Mapping[str, Array]) -> int:
        """The size of the dim that padding fills; 1 without such a dim."""
        for spec in self.signature.inputs:
            if self.length in spec.dims:
                return int(feeds[spec.name].shape[spec.dims.index(self.length)])
        return 1

    def kind(self, feeds: Mapping[str, Array]) -> tuple[tuple[int, ...], ...]:
        """What must be the same of rows that run together: all sizes but the batch's and the length."""
        return tuple(
            tuple(
                size
                for size, dim in zip(feeds[spec.name].shape, spec.dims, strict=True)
                if dim not in (self.batch, self.length)
            )
            for spec in self.signature.inputs
        )

    def row_cost(self, feeds: Mapping[str, Array]) -> int:
        """The work of one row, but for its length: how many positions its open dims span, pixels of a
        picture, for instance; 1 if all dims are fixed."""
        sizes = {
            dim: size
            for spec in self.signature.inputs
            for size, dim in zip(feeds[spec.name].shape, spec.dims, strict=True)
            if isinstance(dim, str) and dim not in (self.batch, self.length)
        }
        return math.prod(sizes.values())

    def work(self, feeds: Mapping[str, Array]) -> tuple[int, int]:
        """How many rows there are in `feeds`, and what a run of nothing else costs."""
        rows = self.rows(feeds)
        return rows, max(1, rows * self.length_of(feeds) * self.row_cost(feeds))

    def cut(self, feeds: Mapping[str, Array], start: int, stop: int) -> Feeds:
        """Some of the rows."""
        found = Feeds({name: array[start:stop] for name, array in feeds.items()})
        found.shapes = tuple(array.shape for array in found.values())
        return found

    def half(self, feeds: Mapping[str, Array]) -> Feeds:
        """The first half of each row, of as many as have a length."""
        found = Feeds(feeds)
        for spec in self.signature.inputs:
            if self.length in spec.dims:
                axis = spec.dims.index(self.length)
                found[spec.name] = found[spec.name].take(range(-(-feeds[spec.name].shape[axis] // 2)), axis)
        found.shapes = tuple(array.shape for array in found.values())
        return found

    def join(self, parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """All rows, in order, as long as the longest."""
        longest = max(self.length_of(part) for part in parts)
        return {
            spec.name: np.concatenate([self._filled(spec, part[spec.name], longest) for part in parts])
            for spec in self.signature.inputs
        }

    def split(
        self, outputs: Mapping[str, Array], parts: Sequence[Mapping[str, Array]]
    ) -> list[dict[str, Array]]:
        """What is each part's of the outputs for `join(parts)`: its rows, without padding, in arrays of
        its own."""
        longest = max(self.length_of(part) for part in parts)
        specs = [spec for spec in self.signature.outputs if spec.name in outputs]
        found, start = [], 0
        for part in parts:
            stop = start + self.rows(part)
            length = self.length_of(part)
            found.append(
                {
                    spec.name: self._own(spec, outputs[spec.name][start:stop], length, longest)
                    for spec in specs
                }
            )
            start = stop
        return found

    def _filled(self, spec: TensorSpec, array: Array, longest: int) -> Array:
        if self.length not in spec.dims:
            return array
        axis = spec.dims.index(self.length)
        missing = longest - array.shape[axis]
        if not missing:
            return array
        assert self.padding is not None
        shape = list(array.shape)
        shape[axis] = missing
        fill = np.full(shape, self.padding.fill[spec.name], array.dtype)
        return np.concatenate([fill, array] if self.padding.left else [array, fill], axis)

    def _own(self, spec: TensorSpec, rows: Array, length: int, longest: int) -> Array:
        if length != longest:
            for axis, dim in enumerate(spec.dims):
                if dim == self.length:
                    kept = slice(longest - length, None) if self._left else slice(length)
                    rows = rows[(slice(None),) * axis + (kept,)]
        return rows.copy()

    @property
    def _left(self) -> bool:
        return self.padding is not None and self.padding.left


def layout_of(signature: Signature, padding: Padding | None) -> Layout | str:
    """How rows of several callers can run together, or why they cannot."""
    if not signature.inputs or not signature.inputs[0].dims:
        return "its inputs have no batch"
    batch = signature.inputs[0].dims[0]
    if not isinstance(batch, str):
        return f"its batch is fixed at {batch}"
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dims[:1] != (batch,) or batch in spec.dims[1:]:
            return f"'{spec}' does not hold one row for each of the batch"
    length = ""
    if padding is not None:
        lengths = {spec.dims[1] for spec in signature.inputs if spec.name in padding.fill}
        others = {dim for spec in signature.inputs if spec.name not in padding.fill for dim in spec.dims}
        # an output that varies otherwise may follow from the length in a way that nothing here knows
        known = {*others, *lengths, batch}
        told = all(isinstance(dim, int) or dim in known for spec in signature.outputs for dim in spec.dims)
        if (
            len(lengths) == 1
            and isinstance(found := next(iter(lengths)), str)
            and found not in others
            and told
        ):
            length = found
    return Layout(batch, length, padding if length else None, signature)
