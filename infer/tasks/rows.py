"""What tasks that answer row by row share: lists in and out, and batches the graph accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer.signature import Array, Signature
from infer.tasks import Run, Setting

Decode = Callable[[Mapping[str, Array], Sequence[Any]], Sequence[Any]]
"""Outputs of one part, and what was kept about its inputs → a result for each row."""

Join = Callable[[Sequence[Any]], Any]
"""Results of the rows that one input was cut into, in any order → its result."""


@dataclass(frozen=True)
class Part:
    """Some of the inputs, encoded: row i of every feed is the input at `places[i]`, or a window of it.

    `about` keeps what decoding must know of each: the size of a picture, where a token lies in a text.
    """

    places: Sequence[int]
    feeds: dict[str, Array]
    about: Sequence[Any] = ()


def answer(inputs: Any, many: Callable[[Sequence[Any]], Any]) -> Any:
    """`many` of a list gives a list; anything else is one input and gives one result."""
    if isinstance(inputs, list):
        return many(inputs)
    return many([inputs])[0]


def answer_parts(
    setting: Setting, parts: Iterable[Part], decode: Decode, join: Join | None = None
) -> list[Any]:
    """Run each part; the decoded results, in the order of the inputs.

    Tasks that cut inputs into windows give `join`, which gets the rows of one input at a time.
    """
    found: dict[int, list[Any]] = {}
    for part in parts:
        outputs = run_rows(setting.run, setting.signature, part.feeds)
        for place, row in zip(part.places, decode(outputs, part.about), strict=True):
            found.setdefault(place, []).append(row)
    return [join(found[place]) if join else found[place][0] for place in sorted(found)]


def fixed_batch(signature: Signature) -> int | None:
    """The batch size baked into the graph, or None if it varies."""
    sizes = {spec.dims[0] for spec in signature.inputs if spec.dims}
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if fixed else None


def batches(count: int, batch_size: int, signature: Signature) -> Iterator[range]:
    """Places of at most `batch_size` inputs, or of the graph's own fixed batch size."""
    step = fixed_batch(signature) or batch_size
    for start in range(0, count, step):
        yield range(start, min(start + step, count))


def run_rows(run: Run, signature: Signature, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run one batch. If the graph's batch is fixed and larger, the last row is repeated to fill it."""
    rows = len(next(iter(feeds.values())))
    fill = (fixed_batch(signature) or rows) - rows
    if not fill:
        return run(feeds)
    filled = {name: np.concatenate([a, np.repeat(a[-1:], fill, axis=0)]) for name, a in feeds.items()}
    return {name: array[:rows] for name, array in run(filled).items()}
