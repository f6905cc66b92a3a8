"""Rows that are asked together: different ones, as a batch of several callers has.

A graph that gives each row of a batch the first one's answer is right on every row alone, and on a row that
is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infer.errors import FeedError, InferError
from infer.feeds import Feeds, batch_dim, resized, sizes_of
from infer.parity import Tolerance, compare
from infer.signature import Array, Signature, TensorSpec

Answer = Mapping[str, Array]
Run = Callable[[Feeds], Answer]

_MOST = 9
"""Rows that are chosen: one, and eight that it is asked beside."""

_LOOKED_AT, _MADE = 64, 4
"""Rows of the data among which they are sought, and those that are made where these do not suffice."""


@dataclass(frozen=True)
class Rows:
    """Feeds of one row each, all of the same sizes.

    Attributes:
        inputs, outputs: along which axis rows lie, of the tensors that have them. What has none is the same
            for all rows.
    """

    feeds: tuple[Feeds, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    def together(self, places: Sequence[int]) -> Feeds:
        """A batch of these rows."""
        chosen = [self.feeds[place] for place in places]
        return {
            name: np.concatenate([row[name] for row in chosen], self.inputs[name])
            if name in self.inputs
            else array
            for name, array in self.feeds[0].items()
        }

    def split(self, answer: Answer, count: int) -> list[dict[str, Array]]:
        """The answer to a batch of `count` rows, row by row; what has no rows comes last."""
        axes = {
            name: axis
            for name, axis in self.outputs.items()
            if answer[name].ndim > axis and answer[name].shape[axis] == count
        }
        rows = [
            {name: answer[name].take([row], axis) for name, axis in axes.items()} for row in range(count)
        ]
        rest = {name: array for name, array in answer.items() if name not in axes}
        return [each for each in (*rows, rest) if each]


def different_rows(
    signature: Signature, feeds: Sequence[Feeds], run: Run, tolerances: Mapping[str, Tolerance]
) -> Rows | None:
    """The first row of `feeds`, and others brought to its sizes; None if rows cannot be put together.

    Those come first whose answers differ by more than the tolerances, as `run` gives them. Rows are from
    feeds of the same sizes, or from others, which are cut or repeated, and made if there are no such ones.
    """
    dim = batch_dim(signature)
    inputs = row_axes(signature.inputs, dim)
    if dim is None or inputs is None:
        return None
    if any(feeds[0][name].shape[axis] < 1 for name, axis in inputs.items()):
        return None
    outputs = row_axes(signature.outputs, dim) or {}
    alone = signature.allows(dim, 1)
    found: list[tuple[Feeds, Answer]] = []
    alike: list[Feeds] = []
    for row in _candidates(signature, dim, inputs, feeds):
        if any(_same(row, each) for each in (*(chosen for chosen, _ in found), *alike)):
            continue
        answer: Answer = {}
        if alone:
            try:
                answer = run(row)
            except InferError:
                if not found:
                    raise
                continue  # what was cut or made need not be an input that the model takes
            if found and _has_nan(answer) and not _has_nan(found[0][1]):
                continue
        if all(_differ(before, answer, tolerances) for _, before in found):
            found.append((row, answer))
        else:
            alike.append(row)
        if len(found) == _MOST:
            break
    return Rows(tuple([*(row for row, _ in found), *alike][:_MOST]), inputs, outputs)


def row_axes(specs: Sequence[TensorSpec], dim: str | None) -> dict[str, int] | None:
    """Where rows lie in each tensor that has the dim; None if one has it twice: then it does not count
    rows."""
    if dim is None or any(spec.dims.count(dim) > 1 for spec in specs):
        return None
    return {spec.name: spec.dims.index(dim) for spec in specs if dim in spec.dims}


def _candidates(
    signature: Signature, dim: str, axes: Mapping[str, int], feeds: Sequence[Feeds]
) -> Iterator[Feeds]:
    first = row_of(feeds[0], axes, 0)
    yield first
    shared = {name: array for name, array in first.items() if name not in axes}
    sizes = {name: size for name, size in sizes_of(signature, first).items() if name != dim}
    fitted = []
    for row in _rows(feeds, axes):
        if all(row[name].shape == array.shape for name, array in first.items()):
            yield {**row, **shared}
        else:
            fitted.append(row)
    for row in fitted:
        try:
            other = resized(signature, row, sizes)
        except FeedError:
            continue
        if all(other[name].shape == array.shape for name, array in first.items()):
            yield {**other, **shared}
    rng = np.random.default_rng(0)
    for _ in range(_MADE):
        yield {name: _changed(name, array, rng) if name in axes else array for name, array in first.items()}


def _rows(feeds: Sequence[Feeds], axes: Mapping[str, int]) -> Iterator[Feeds]:
    """Each row of each feed but the very first."""
    count = 0
    for number, each in enumerate(feeds):
        rows = min((each[name].shape[axis] for name, axis in axes.items()), default=0)
        for row in range(number == 0, rows):
            if count == _LOOKED_AT:
                return
            count += 1
            yield row_of(each, axes, row)


def row_of(feeds: Mapping[str, Array], axes: Mapping[str, int], row: int) -> Feeds:
    """One row of what has rows, and the rest."""
    return {name: array.take([row], axes[name]) if name in axes else array for name, array in feeds.items()}


def _changed(name: str, array: Array, rng: np.random.Generator) -> Array:
    """Other numbers of the same kind: floats with noise, and integers no larger than the largest one. Masks
    stay."""
    if "mask" in name or not array.size:
        return array
    if array.dtype.kind == "f":
        noise = rng.standard_normal(array.shape) * (0.5 * float(array.std()) or 0.1)
        return np.asarray(array + noise, array.dtype)
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() >= 1:
        return rng.integers(0, int(array.max()) + 1, array.shape).astype(array.dtype)
    return array


def _same(row: Feeds, other: Feeds) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in row.items())


def _has_nan(answer: Answer) -> bool:
    return any(array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in answer.values())


def _differ(before: Answer, after: Answer, tolerances: Mapping[str, Tolerance]) -> bool:
    """Whether one answer would not pass for the other; true where neither is known."""
    return not before or not all(difference.within for difference in compare(before, after, tolerances))
