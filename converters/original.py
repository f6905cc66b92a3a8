"""The PyTorch original in the place of the graph: what an artifact is compared with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters.flat import FlatModule
from converters.points import to_numpy
from converters.pristine import pristine
from converters.ready import ready
from converters.sources import SourceRequest, open_source
from infer.artifact import Artifact
from infer.errors import ConversionError
from infer.signature import Array
from infer.tasks import Task, load_task


@contextmanager
def original_task(
    source: Any, artifact: Artifact, weights: str | os.PathLike[str] | None = None
) -> Iterator[Task]:
    """The artifact's task, answered by `source` in PyTorch instead of by its graph.

    `source` is what `converters.convert` took. Raises `ConversionError`.
    """
    request = SourceRequest(
        source=source,
        name=artifact.manifest.name,
        example_inputs=_golden_feeds(artifact) if _needs_example(source) else None,
        weights=None if weights is None else Path(weights),
    )
    with ready(open_source(request)) as opened:
        flat = FlatModule(opened)
        names = [spec.name for spec in artifact.manifest.inputs]
        if sorted(flat.input_names) != sorted(names):
            raise ConversionError(
                f"{opened.described} takes {', '.join(flat.input_names)}, but the artifact"
                f" {', '.join(names)}; name the source the artifact was converted from"
            )

        def run(feeds: Mapping[str, object]) -> dict[str, Array]:
            tensors = [torch.from_numpy(np.array(feeds[name])) for name in flat.input_names]
            with torch.inference_mode():
                outputs = flat(*tensors)
            return {n: to_numpy(t, n) for n, t in zip(flat.output_names, outputs, strict=True)}

        with pristine(flat.module):
            yield load_task(artifact, run)


def _needs_example(source: Any) -> bool:
    """Modules do not say what they take; folders and exported programs do."""
    return isinstance(source, torch.nn.Module) or (isinstance(source, str) and ":" in source)


def _golden_feeds(artifact: Artifact) -> dict[str, torch.Tensor] | None:
    for _, feeds, _ in artifact.golden():
        return {name: torch.from_numpy(array) for name, array in feeds.items()}
    return None
