"""The PyTorch original in the place of the graph: what an artifact is compared with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters.flat import FlatModule
from converters.module_outputs import module_outputs
from converters.points import to_numpy
from converters.pristine import pristine
from converters.ready import ready
from converters.sources import SourceRequest, as_tensors, open_source
from infer.artifact import Artifact
from infer.errors import ConversionError, InferError
from infer.optimizer.modules import ModuleOutput
from infer.signature import Array
from infer.tasks import Run, Task, load_task


@contextmanager
def original_task(
    source: Any, artifact: Artifact, weights: str | os.PathLike[str] | None = None
) -> Iterator[Task]:
    """The artifact's task, answered by `source` in PyTorch instead of by its graph.

    `source` is what `converters.convert` took. Raises `ConversionError`.
    """
    feeds = next(artifact.golden_feeds(), None)
    with original(source, artifact.manifest.name, feeds, weights) as asked:
        names = [spec.name for spec in artifact.manifest.inputs]
        if sorted(asked.feeds) != sorted(names):
            raise ConversionError(
                f"{asked.described} takes {', '.join(asked.feeds)}, but the artifact"
                f" {', '.join(names)}; name the source the artifact was converted from"
            )
        yield load_task(artifact, asked.run)


@dataclass(frozen=True)
class Original:
    """A model in PyTorch: `run` maps feeds to outputs, `feeds` are its example's, `on` is what runs it;
    `modules` maps feeds to the outputs of its modules."""

    described: str
    on: str
    feeds: dict[str, Array]
    run: Run
    modules: Callable[[Mapping[str, Array]], tuple[ModuleOutput, ...]]


@contextmanager
def original(
    source: Any,
    name: str,
    feeds: Mapping[str, Array] | None = None,
    weights: str | os.PathLike[str] | None = None,
    num_threads: int | None = None,
) -> Iterator[Original]:
    """`source`, which is what `converters.convert` takes, ready to be asked in PyTorch.

    `feeds` are the example of a model that does not say what it takes; `num_threads` is how many threads
    a run may use, torch's own choice by default. Raises `ConversionError`.
    """
    example = as_tensors(dict(feeds or {}))
    request = SourceRequest(
        source=source,
        name=name,
        example_inputs=example if example and _needs_example(source) else None,
        weights=None if weights is None else Path(weights),
    )
    with ready(open_source(request)) as opened:
        flat = FlatModule(opened)

        def tensors_of(feeds: Mapping[str, object]) -> list[torch.Tensor]:
            return [as_tensors(np.asarray(feeds[name])) for name in flat.input_names]

        def run(feeds: Mapping[str, object]) -> dict[str, Array]:
            with _failures(opened.described, feeds), torch.inference_mode():
                outputs = flat(*tensors_of(feeds))
            return {n: to_numpy(t, n) for n, t in zip(flat.output_names, outputs, strict=True)}

        def modules(feeds: Mapping[str, Array]) -> tuple[ModuleOutput, ...]:
            with _failures(opened.described, feeds):
                return module_outputs(flat, tensors_of(feeds))

        shown = {n: to_numpy(t, n) for n, t in zip(flat.input_names, flat.example, strict=True)}
        with pristine(flat.module), _threads(num_threads):
            on = f"PyTorch {torch.__version__}, eager, cpu, threads {torch.get_num_threads()}"
            yield Original(opened.described, on, shown, run, modules)


@contextmanager
def _failures(described: str, feeds: Mapping[str, object]) -> Iterator[None]:
    """Translate what the user's own code raises."""
    try:
        yield
    except InferError:
        raise
    except Exception as error:  # whatever a model raises at feeds that it cannot take
        arrays = {name: np.asarray(array) for name, array in feeds.items()}
        shown = "; ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in arrays.items())
        raise ConversionError(
            f"{described} fails in PyTorch on {shown} ({type(error).__name__}: {error}); check that it is"
            f" the source of this graph, and that the feeds are for it"
        ) from error


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _needs_example(source: Any) -> bool:
    """Modules do not say what they take; folders and exported programs do."""
    return isinstance(source, torch.nn.Module) or (isinstance(source, str) and ":" in source)
