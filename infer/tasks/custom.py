"""A task with functions of the caller's own: its encoding, its decoding, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from infer.errors import InputError
from infer.signature import Array
from infer.structure import rebuild
from infer.tasks import Setting, Task
from infer.tasks.rows import Part, answer, answer_parts, batches
from infer.tasks.tensors import Tensors, describe_arrays

Encode = Callable[[Sequence[Any]], Mapping[str, Any]]
"""Inputs → feeds by name, in which row i is input i."""

Decode = Callable[[dict[str, Array], Sequence[Any]], Sequence[Any]]
"""Outputs by name, in which row i is of input i, and the inputs → a result for each."""

_BATCH_SIZE = 32


def with_functions(task: Task, encode: Encode | None, decode: Decode | None) -> Task:
    """`task`, with the caller's functions where there are any. Raises `InputError` if it cannot do without
    its own."""
    own = cast(Any, task)
    name = own.setting.name
    if encode is not None and not hasattr(own, "parts") and not isinstance(task, Tensors):
        raise InputError(
            f"the task '{name}' cuts its inputs itself while it runs, so 'encode' cannot take its place;"
            f" use session.run with feeds of your own"
        )
    if decode is not None or isinstance(task, Tensors):
        return Custom(task, encode, decode) if encode or decode else task
    if encode is not None:
        if not getattr(own, "row_by_row", False):
            raise InputError(
                f"the results of the task '{name}' depend on how it encoded its inputs; give 'decode', too"
            )
        own.listed = lambda inputs: inputs  # a list is one of inputs, even where it could be a row
        own.parts = lambda inputs: _encoded(own.setting, encode, inputs)
    return task


class Custom:
    """What an input and a result are is up to the caller's functions.

    Without `encode`, inputs are those of the artifact's task; without `decode`, which only an artifact
    without a task can do without, a result is row i of the outputs, nested as the model nests them.
    """

    def __init__(self, task: Task, encode: Encode | None, decode: Decode | None) -> None:
        self.task = task
        self.setting: Setting = replace(cast(Any, task).setting, name="custom")
        self._encode = encode
        self._decode = decode or self._rows

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, self._many)

    def read(self, path: Path) -> Sequence[Any]:
        return [path] if self._encode else self.task.read(path)

    def parse(self, text: str) -> Any:
        return text if self._encode else self.task.parse(text)

    def to_json(self, result: Any) -> Any:
        if isinstance(result, np.ndarray):
            return result.tolist()
        if isinstance(result, np.generic):
            return result.item()
        if isinstance(result, Mapping):
            return {key: self.to_json(item) for key, item in result.items()}
        if isinstance(result, (list, tuple)):
            return [self.to_json(item) for item in result]
        return result

    def describe(self, result: Any) -> str:
        return describe_arrays(result)

    def _many(self, inputs: Sequence[Any]) -> list[Any]:
        def decode(outputs: Mapping[str, Array], about: Sequence[Any]) -> Sequence[Any]:
            return _results(self._decode, outputs, about)

        if self._encode is None and isinstance(self.task, Tensors):
            return [decode(self.setting.run(feeds), [feeds])[0] for feeds in inputs]
        return answer_parts(self.setting, self._parts(inputs), decode, _only)

    def _parts(self, inputs: Sequence[Any]) -> Iterator[Part]:
        if self._encode is not None:
            parts = _encoded(self.setting, self._encode, inputs)
        else:
            parts = cast(Any, self.task).parts(inputs)
        return (replace(part, about=[inputs[place] for place in part.places]) for part in parts)

    def _rows(self, outputs: dict[str, Array], inputs: Sequence[Any]) -> Sequence[Any]:
        for name, array in outputs.items():
            if array.shape[:1] != (len(inputs),):
                raise InputError(
                    f"the output '{name}' has shape {list(array.shape)} for {len(inputs)} inputs, so it"
                    f" does not say what each of them gives; give 'decode', too"
                )
        structure = self.setting.structure
        return [
            rebuild(structure, {name: array[i] for name, array in outputs.items()})
            for i in range(len(inputs))
        ]


def _encoded(setting: Setting, encode: Encode, inputs: Sequence[Any]) -> Iterator[Part]:
    for places in batches(len(inputs), _BATCH_SIZE, setting.signature):
        some = [inputs[place] for place in places]
        yield Part(places, _feeds(encode(some), len(some)), places)


def _feeds(feeds: Any, count: int) -> dict[str, Array]:
    if not isinstance(feeds, Mapping):
        raise InputError(
            f"'encode' must return a mapping of names to arrays, but returned a {type(feeds).__name__}"
        )
    arrays = {str(name): np.asarray(array) for name, array in feeds.items()}
    for name, array in arrays.items():
        if array.shape[:1] != (count,):
            raise InputError(
                f"'encode' must return a row for each input, but for {count} inputs it returned '{name}' of"
                f" shape {list(array.shape)}"
            )
    if not arrays:
        raise InputError("'encode' must return a mapping of names to arrays, but returned an empty one")
    return arrays


def _results(decode: Decode, outputs: Mapping[str, Array], inputs: Sequence[Any]) -> Sequence[Any]:
    results = decode(dict(outputs), inputs)
    try:
        count = len(results)
    except TypeError:
        raise InputError(
            f"'decode' must return a list with a result for each input, but returned a"
            f" {type(results).__name__}"
        ) from None
    if count != len(inputs) or isinstance(results, (str, bytes, Mapping)):
        raise InputError(
            f"'decode' must return a list with a result for each of {len(inputs)} inputs, but returned a"
            f" {type(results).__name__} of {count}"
        )
    return results


def _only(rows: Sequence[Any]) -> Any:
    if len(rows) > 1:
        raise InputError(
            f"the artifact's task cuts this input into {len(rows)} windows, which 'decode' cannot join;"
            f" give 'encode', too, or a shorter input"
        )
    return rows[0]
