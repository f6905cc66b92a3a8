"""What each family is worth: metrics of the artifact beside the original's, and where the time goes."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import infer
from bench.zoo import convert, family, source
from converters.original import original_task
from infer.evaluation import Evaluation, evaluate_task
from infer.measure.rest import settle
from infer.measure.waterfall import WatchedTask
from infer.tasks import Run, load_task

_ROUNDS = 15


@dataclass(frozen=True)
class Split:
    """Median milliseconds of one input's answer: before the graph runs, in it, and after it."""

    before_ms: float
    run_ms: float
    after_ms: float

    @property
    def total_ms(self) -> float:
        return self.before_ms + self.run_ms + self.after_ms


@dataclass(frozen=True)
class Row:
    """One family."""

    name: str
    task: str
    weights: str
    artifact: Evaluation | None
    original: Evaluation | None
    artifact_split: Split
    original_split: Split
    pipeline_ms: float | None
    """Median milliseconds of the model's own library for the same input, where it has one."""


def measure(name: str) -> Row:
    """Convert a family's model, evaluate it and its original, and time both in turns."""
    module = family(name)
    torch.set_num_threads(infer.this_machine().cores)
    with tempfile.TemporaryDirectory() as folder:
        artifact = convert(name, Path(folder) / f"{name}.infer")
        with infer.load(artifact.path) as session, original_task(source(name), artifact) as original:
            dataset = module.dataset() if hasattr(module, "dataset") else None
            found = dataset and evaluate_task(session.task, dataset)
            against = dataset and evaluate_task(original, dataset)
            pipeline = module.pipeline() if hasattr(module, "pipeline") else None
            runs = {"artifact": session.run, "original": original.setting.run}
            splits, pipeline_ms = _splits(artifact, runs, pipeline, module.samples()[0])
    task = artifact.manifest.task
    return Row(
        name,
        task.name if task else "tensors",
        module.WEIGHTS,
        found,
        against,
        splits["artifact"],
        splits["original"],
        pipeline_ms,
    )


def _splits(
    artifact: infer.Artifact, runs: Mapping[str, Run], pipeline: Callable[[Any], Any] | None, sample: Any
) -> tuple[dict[str, Split], float | None]:
    """All take turns, so that a drifting machine hits them alike.

    A turn is two answers, of which the second counts: after a rest the first one also wakes threads and
    fills caches, which costs some candidates several times what the answer does.
    """
    tasks = {name: WatchedTask(partial(load_task, artifact), run) for name, run in runs.items()}
    found: dict[str, list[Split]] = {name: [] for name in runs}
    whole: list[float] = []
    for _ in range(_ROUNDS):
        if pipeline is not None:
            pipeline(sample)
            start = time.perf_counter()
            pipeline(sample)
            whole.append(1e3 * (time.perf_counter() - start))
            settle()
        for name, task in tasks.items():
            task(sample)
            spent = task(sample)
            settle()
            running, after = spent.pop("compute"), spent.pop("decode")
            found[name].append(Split(sum(spent.values()), running, after))
    medians = {
        name: Split(
            statistics.median(s.before_ms for s in splits),
            statistics.median(s.run_ms for s in splits),
            statistics.median(s.after_ms for s in splits),
        )
        for name, splits in found.items()
    }
    return medians, statistics.median(whole) if whole else None


def lines(row: Row) -> Iterator[str]:
    """The row as lines of a Markdown table, one for each metric."""
    ours, theirs = row.artifact_split, row.original_split
    time_cell = (
        f"{ours.before_ms:.2f} + {ours.run_ms:.2f} + {ours.after_ms:.2f}"
        f" | {theirs.before_ms:.2f} + {theirs.run_ms:.2f} + {theirs.after_ms:.2f}"
        f" | {'' if row.pipeline_ms is None else f'{row.pipeline_ms:.2f}'}"
        f" | ×{(row.pipeline_ms or theirs.total_ms) / ours.total_ms:.1f}"
    )
    if row.artifact is None or row.original is None:
        yield f"| {row.name} | {row.task} | {row.weights} | no labelled data | | | | {time_cell} |"
        return
    for i, (metric, value) in enumerate(row.artifact.metrics.items()):
        other = row.original.metrics[metric]
        start = f"{row.name} | {row.task} | {row.weights}" if i == 0 else " | | "
        yield (
            f"| {start} | {metric} | {other:.4f} | {value:.4f} | {value - other:+.1e}"
            f" | {time_cell if i == 0 else ' | | | '} |"
        )


HEADER = (
    "| family | task | weights | metric | PyTorch | artifact | difference"
    " | artifact: pre + run + post, ms | PyTorch: pre + run + post, ms | own pipeline, ms | speed-up |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)
