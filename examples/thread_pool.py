"""An artifact asked by a pool of threads, which share one session.

    python thread_pool.py net.infer feeds.npz

Each row of the arrays in feeds.npz is an input of its own; the outputs are printed, one row a line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import infer


def answers(path: str, inputs: Iterable[Any], threads: int = 8) -> Iterator[Any]:
    """The result for each input, in order; what is asked at the same time is answered together."""
    with infer.load(path) as session, ThreadPoolExecutor(threads) as pool:
        yield from pool.map(session.batcher, inputs)


if __name__ == "__main__":
    feeds = dict(np.load(sys.argv[2]))
    count = len(next(iter(feeds.values())))
    rows = ({name: array[row : row + 1] for name, array in feeds.items()} for row in range(count))
    for outputs in answers(sys.argv[1], rows):
        print({name: array[0].tolist() for name, array in outputs.items()})
