"""What can be converted: one file a kind of source, one table, tried in order."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters.source import Source
from infer.errors import ConversionError
from infer.manifest import TaskSpec


@dataclass(frozen=True)
class SourceRequest:
    """What the caller gave: the source, and whatever it may need beside itself."""

    source: Any
    name: str
    example_inputs: Mapping[str, Any] | Sequence[Any] | None = None
    weights: Path | None = None
    task: TaskSpec | None = None
    files: Mapping[str, Path] = field(default_factory=dict)


def _folder_with(name: str = "") -> Callable[[Any], bool]:
    return lambda source: (
        isinstance(source, (str, os.PathLike)) and Path(source).is_dir() and (Path(source) / name).exists()
    )


def _ends(*suffixes: str) -> Callable[[Any], bool]:
    return lambda source: isinstance(source, (str, os.PathLike)) and str(source).lower().endswith(suffixes)


SOURCES: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda s: isinstance(s, torch.export.ExportedProgram), "converters.sources.program:open_program"),
    (lambda s: isinstance(s, torch.nn.Module), "converters.sources.python:open_module"),
    (_folder_with("modules.json"), "converters.sources.sentence_transformers:open_sentence_transformers"),
    # transformers saves an adapter with a config.json beside it, or without
    (_folder_with("adapter_config.json"), "converters.sources.adapter:open_adapter"),
    (_folder_with("config.json"), "converters.sources.transformers:open_transformers"),
    (_folder_with(), "converters.sources.folder:refuse_folder"),
    (_ends(".pt2"), "converters.sources.program:open_program_file"),
    (_ends(".pt", ".pth", ".ts", ".jit"), "converters.sources.torchscript:open_torchscript"),
    (lambda s: isinstance(s, str) and ":" in s, "converters.sources.python:open_target"),
)
"""(matches, where the function is that opens it). Folders come before `file.py:name`, because a
folder's name may hold a colon; a sentence-transformers folder may hold a config.json, too."""


def open_source(request: SourceRequest) -> Source:
    """Open what `request` names. Raises `ConversionError`, `MissingPackageError`."""
    for matches, where in SOURCES:
        if matches(request.source):
            module, _, function = where.partition(":")
            source: Source = getattr(importlib.import_module(module), function)(request)
            return replace(
                source,
                name=request.name,
                task=request.task or source.task,
                files={**source.files, **request.files},
            )
    raise ConversionError(_unknown(request.source))


def as_tensors(value: Any) -> Any:
    """`value` with its numpy arrays as tensors, at whatever depth. Raises `ConversionError`."""
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
        except TypeError as error:
            raise ConversionError(
                f"an example input is an array of {value.dtype}, which torch has no tensors of; give one"
                f" of numbers"
            ) from error
    if isinstance(value, Mapping):
        return {key: as_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(as_tensors(item) for item in value)
    return value


def _unknown(source: Any) -> str:
    kinds = (
        "file.py:name, package.module:name, a transformers folder, a .pt2 program,"
        " a TorchScript .pt file, or an .onnx file"
    )
    if not isinstance(source, (str, os.PathLike)):
        return f"cannot convert a {type(source).__name__}; give a torch.nn.Module or {kinds}"
    if str(source).endswith(".py"):
        return f"'{source}' is a Python file; say which name in it is the model: {source}:NAME"
    if str(source).endswith((".bin", ".safetensors", ".ckpt", ".pkl", ".pickle")):
        return (
            f"'{source}' holds weights, not a model; give the code that builds the model and pass"
            f" this file with --weights: infer convert file.py:NAME --weights {source}"
        )
    if Path(source).exists():
        return f"cannot tell what '{source}' is; a source is {kinds}"
    return f"there is no '{source}'; a source is {kinds}"
