"""`convert`, the one-call form."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.adopt import adopt_graph
from converters.convert import convert_source
from converters.options import ConvertOptions
from converters.sources import SourceRequest, as_tensors, open_source
from infer.artifact import Artifact
from infer.errors import ConversionError
from infer.manifest import TaskSpec
from infer.parity import TOLERANCES, Tolerance


def convert(
    source: Any,
    output: str | os.PathLike[str],
    *,
    example_inputs: Mapping[str, Any] | Sequence[Any] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    weights: str | os.PathLike[str] | None = None,
    task: TaskSpec | None = None,
    files: Mapping[str, str | os.PathLike[str]] | None = None,
    name: str | None = None,
    tolerances: Mapping[str, Tolerance] | None = None,
    freeze_branches: bool = False,
    allow_mismatch: bool = False,
    overwrite: bool = False,
    progress: Any = None,
) -> Artifact:
    """Export `source`, prove it equal to the original, and write the artifact `output`.

    Args:
        source: a module, an exported program, or what `infer convert` takes as text: `file.py:name`,
            `package.module:name`, a transformers folder, a .pt2, TorchScript .pt or .onnx file.
        output: the artifact's folder, by custom `NAME.infer`.
        example_inputs: tensors or numpy arrays by the names of forward's parameters, or in their order. Not
            needed where the source says them itself.
        dynamic: axes that must be able to vary, input → axis → dim name; the batch need not be named.
        weights: a .safetensors file or a state dict, loaded into the module.
        task: what the model is for; files it needs are named in `files`: `files/NAME` → path.
        tolerances: how close outputs must be, by dtype, or by an output's name; what is not named keeps
            `infer.parity.TOLERANCES`.
        freeze_branches: accept a graph that always takes the branches the example takes, of a model that
            branches on values.
        allow_mismatch: write the artifact even if it failed parity, marked as such.
        overwrite: replace an existing artifact.
        progress: called with a sentence at each step.

    Raises `ConversionError`, `ParityError`, `ArtifactError` or `MissingPackageError`.
    """
    options = ConvertOptions(
        dynamic=dynamic or {},
        tolerances={**TOLERANCES, **(tolerances or {})},
        freeze_branches=freeze_branches,
        allow_mismatch=allow_mismatch,
        overwrite=overwrite,
    )
    request = SourceRequest(
        source=source,
        example_inputs=as_tensors(example_inputs),
        weights=None if weights is None else Path(weights),
        task=task,
        files={key: Path(path) for key, path in (files or {}).items()},
        name=name or Path(output).stem,
    )
    tell = progress or (lambda sentence: None)
    if isinstance(source, (str, os.PathLike)) and str(source).lower().endswith(".onnx"):
        try:
            return adopt_graph(request, Path(output), options, tell)
        except OSError as error:
            raise ConversionError(f"cannot write '{output}': {error.strerror or error}") from error
    return convert_source(open_source(request), Path(output), options, tell)
