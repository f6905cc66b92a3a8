"""Ray Data: a task over the rows of a data set, however large, on many workers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer.batching.joining import Layout
from infer.errors import BackendError, FeedError, InputError
from infer.server.ray.allotment import allotted_device, allotted_threads
from infer.session import load
from infer.signature import Array, TensorSpec


@dataclass(frozen=True)
class _Answer:
    """A row's result as plain data, or what is wrong with the row."""

    result: Any = None
    error: str | None = None


class BatchSession:
    """A session for `ray.data.Dataset.map_batches`, which makes one for each worker:

        dataset.map_batches(BatchSession, fn_constructor_kwargs={"path": …, "columns": "text"},
                            batch_size=256, compute=ray.data.ActorPoolStrategy(size=4))

    Each batch comes back with the rows it had, in their order, and two columns more.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: str | Sequence[str],
        *,
        result: str = "result",
        error: str | None = "error",
    ) -> None:
        """Open the artifact at `path`, which must be there on every node.

        `columns` is the column that holds the inputs: texts, paths or bytes of pictures and sounds, pixels.
        Of a list of columns, a row's input is the mapping of their names to its cells: for tasks on rows,
        and for an artifact without a task, whose feeds they are, row by row. `result` names the column of
        results, which are what `infer run --json` prints; `error` that of what is wrong with a row, null
        where nothing is. With `error=None` a bad row raises. Raises as `infer.load`.
        """
        self._columns, self._result, self._error = columns, result, error
        self._session = load(path, device=allotted_device(), num_threads=allotted_threads())
        self._task = self._session.artifact.manifest.task
        if self._task is None and isinstance(columns, str):
            self._columns = [columns]
        self._joins = self._task is None and isinstance(self._session.batcher.layout, Layout)

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Any]:
        """`batch` with its results. Raises `InputError` for a column that is not there, and, if bad rows
        shall raise, what the session raises."""
        if not isinstance(batch, Mapping):
            raise InputError(
                f"a batch must be a mapping of columns to arrays, but is a {type(batch).__name__}; leave"
                f" batch_format as it is"
            )
        answers = self._answers(self._inputs(batch))
        found = {**batch, self._result: [answer.result for answer in answers]}
        if self._error is not None:
            found[self._error] = [answer.error for answer in answers]
        return found

    def _inputs(self, batch: Mapping[str, Array]) -> list[Any]:
        names = [self._columns] if isinstance(self._columns, str) else list(self._columns)
        if absent := [name for name in names if name not in batch]:
            raise InputError(f"there is no column {absent[0]!r}; there are {', '.join(map(repr, batch))}")
        cells = [_cells(batch[name]) for name in names]
        if isinstance(self._columns, str):
            return cells[0]
        return [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]

    def _answers(self, inputs: list[Any]) -> list[_Answer]:
        """An answer for each input; where they fail together, halves of them are asked by themselves."""
        if not inputs:
            return []
        try:
            results = self._session(inputs) if self._task else self._run(inputs)
            return [_Answer(self._session.task.to_json(result)) for result in results]
        except (InputError, FeedError, BackendError) as error:
            if len(inputs) > 1:
                half = len(inputs) // 2
                return self._answers(inputs[:half]) + self._answers(inputs[half:])
            if self._error is None:
                raise
            return [_Answer(error=str(error))]

    def _run(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Without a task, cells are feeds: together, if rows were proved to answer so as they do alone."""
        if len(rows) > 1 and not self._joins:
            return [self._run([row])[0] for row in rows]
        feeds = {
            spec.name: _stacked(spec, [row[spec.name] for row in rows])
            for spec in self._session.signature.inputs
            if spec.name in rows[0]
        }
        if not self._joins:
            return [self._session.rebuild(self._session.run(feeds))]
        outputs = self._session.batcher.run(feeds)
        return [
            self._session.rebuild({name: np.asarray(array[place]) for name, array in outputs.items()})
            for place in range(len(rows))
        ]


def _cells(column: Array) -> list[Any]:
    return [cell.item() if isinstance(cell, np.generic) else cell for cell in column]


def _stacked(spec: TensorSpec, cells: Sequence[Any]) -> Array:
    """Cells as rows of an input, shape = (rows, …). Numbers of a table are wider than a model's: those that
    it can hold are narrowed, which rounds floats. Raises `InputError`."""
    wanted = spec.numpy_dtype
    try:
        rows = np.stack([np.asarray(cell) for cell in cells])
        if rows.dtype.kind in "iu" and wanted.kind in "iu":
            return _narrowed(rows, wanted)
        with np.errstate(over="raise"):
            return rows.astype(wanted, casting="same_kind") if rows.dtype.kind in "fiu" else rows
    except ArithmeticError as error:
        raise InputError(f"the input '{spec.name}' has numbers that {spec.dtype} cannot hold") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"cells of the input '{spec.name}' do not fit together: {error}") from error


def _narrowed(rows: Array, wanted: np.dtype[Any]) -> Array:
    """Raises `OverflowError` for integers that `wanted` cannot hold, which numpy wraps."""
    limits = np.iinfo(wanted)
    if rows.size and not limits.min <= int(rows.min()) <= int(rows.max()) <= limits.max:
        raise OverflowError
    return rows.astype(wanted)
