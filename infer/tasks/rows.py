"""What tasks that answer row by row share: lists in and out, and batches the graph accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from infer.signature import Array, Signature
from infer.tasks import Run


def answer(inputs: Any, many: Callable[[Sequence[Any]], Any]) -> Any:
    """`many` of a list gives a list; anything else is one input and gives one result."""
    if isinstance(inputs, list):
        return many(inputs)
    return many([inputs])[0]


def fixed_batch(signature: Signature) -> int | None:
    """The batch size baked into the graph, or None if it varies."""
    sizes = {spec.dims[0] for spec in signature.inputs if spec.dims}
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if fixed else None


def batches(count: int, batch_size: int, signature: Signature) -> Iterator[slice]:
    """Slices of at most `batch_size` rows, or of the graph's own fixed batch size."""
    step = fixed_batch(signature) or batch_size
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def run_rows(run: Run, signature: Signature, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run one batch. If the graph's batch is fixed and larger, the last row is repeated to fill it."""
    rows = len(next(iter(feeds.values())))
    fill = (fixed_batch(signature) or rows) - rows
    if not fill:
        return run(feeds)
    filled = {name: np.concatenate([a, np.repeat(a[-1:], fill, axis=0)]) for name, a in feeds.items()}
    return {name: array[:rows] for name, array in run(filled).items()}
