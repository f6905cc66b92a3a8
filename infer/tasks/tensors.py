"""The task of an artifact that has none: arrays in, the model's own nesting of arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.npz import load_npz
from infer.structure import rebuild
from infer.tasks import Setting
from infer.tasks.rows import answer


class Tensors:
    """An input is a mapping of feeds; its result is nested as the model nests it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, lambda many: [self._one(feeds) for feeds in many])

    def read(self, path: Path) -> Sequence[Any]:
        if path.suffix != ".npz":
            raise InputError(
                f"'{path}' is not an .npz file; this artifact has no task, so it takes .npz files of"
                f" arrays named {', '.join(spec.name for spec in self.setting.signature.inputs)}"
            )
        try:
            return [load_npz(path)]
        except ArtifactError as error:
            raise InputError(str(error)) from error

    def parse(self, text: str) -> Any:
        raise InputError(
            "this artifact has no task, so it cannot take text; give it arrays with --feeds x.npz"
        )

    def to_json(self, result: Any) -> Any:
        if isinstance(result, np.ndarray):
            return result.tolist()
        if isinstance(result, dict):
            return {key: self.to_json(item) for key, item in result.items()}
        if isinstance(result, (list, tuple)):
            return [self.to_json(item) for item in result]
        return result

    def describe(self, result: Any) -> str:
        return describe_arrays(result)

    def _one(self, feeds: Mapping[str, object]) -> Any:
        return rebuild(self.setting.structure, self.setting.run(feeds))


def describe_arrays(result: Any) -> str:
    """A line for each array: its path, dtype, shape and first values."""
    return "\n".join(_lines(result, ""))


def _lines(result: Any, path: str) -> list[str]:
    if isinstance(result, np.ndarray):
        values = np.array2string(result, threshold=8, precision=4, separator=", ").replace("\n", "")
        return [f"{path or 'result'}  {result.dtype}{list(result.shape)}  {values}"]
    if isinstance(result, dict):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in result.items()]
    elif isinstance(result, (list, tuple)):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(result)]
    else:
        return [f"{path or 'result'}  {result!r}"]
    return [line for name, item in items for line in _lines(item, name)]
