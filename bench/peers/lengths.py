"""Inputs of many lengths, one after another: a family's artifact and its peers, in turns.

`compare` times one input again and again; a service gets another length with each request, which backends
that compile or remember shapes feel. Each round asks every candidate all inputs, in an order drawn anew.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.peers import OURS, Peer
from bench.peers.candidate import PeerError, Remote
from bench.peers.material import Material, unfit
from bench.peers.side_by_side import Distance, distance, opened
from infer.errors import InferError
from infer.feeds import Feeds
from infer.machine import this_machine
from infer.measure.queries import Query
from infer.measure.rounds import Progress
from infer.measure.statistics import Estimate, paired_ratio
from infer.npz import load_npz


@dataclass(frozen=True)
class Timed:
    """A candidate, the milliseconds of an input in each round, and how far its answers are; or why not."""

    name: str
    described: str
    round_ms: tuple[float, ...] = ()
    distance: Distance | None = None
    excluded: str = ""

    def times_as_fast_as(self, other: Timed) -> Estimate:
        return paired_ratio(other.round_ms, self.round_ms)


def in_turns(
    found: Material, peers: Sequence[Peer], threads: int, inputs: int, rounds: int, progress: Progress
) -> list[Timed]:
    """infer's artifact first. Raises `InferError` if that fails."""
    asked = _spread(sorted(found.calibration.glob("*.npz")), inputs)
    remotes: dict[str, Remote] = {}
    timed: dict[str, Timed] = {}
    with ExitStack() as stack:
        for peer in (OURS, *(peer for peer in peers if peer.takes in found.kinds)):
            try:
                if peer is not OURS and (reason := unfit(peer, found, this_machine().isa)):
                    raise InferError(reason)
                remote = opened(stack, peer, found, threads, progress)
                progress(f"comparing answers of {peer.name}")
                far = distance(remotes.get(OURS.name, remote), remote, asked)
                timed[peer.name] = Timed(peer.name, remote.described, distance=far)
                remotes[peer.name] = remote
            except InferError as error:
                if peer is OURS:
                    raise
                timed[peer.name] = Timed(peer.name, peer.about, excluded=str(error))
        taken: dict[str, list[float]] = {name: [] for name in remotes}
        queries: dict[str, Query] = {}
        for number in range(rounds + 1):
            for name in random.sample(list(remotes), len(remotes)):
                progress(f"round {number} of {rounds}: {name}")
                try:
                    if name not in queries:
                        queries[name] = remotes[name].query_each(asked)
                    taken[name].append(float(queries[name].turn(len(asked)).mean()))
                except PeerError as error:
                    if name == OURS.name:
                        raise
                    del remotes[name]
                    timed[name] = replace(timed[name], excluded=str(error))
    # the first round warms up
    return [replace(each, round_ms=tuple(taken.get(each.name, [])[1:])) for each in timed.values()]


def _spread(files: Sequence[Path], count: int) -> list[Feeds]:
    """So many, from the first to the last."""
    places = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    return [load_npz(files[place]) for place in places]


def lines(timed: Sequence[Timed], best: str) -> Iterator[str]:
    """A table, in which each candidate stands beside `best`."""
    first = next(each for each in timed if each.name == best)
    yield f"| candidate | ms an input | {best}'s speed over it | cosine to infer, mean and least |"
    yield "|---|---|---|---|"
    for each in timed:
        if each.excluded or each.distance is None:
            yield f"| {each.name} | {each.excluded} | | |"
            continue
        ratio = first.times_as_fast_as(each)
        yield (
            f"| {each.name}: {each.described} | {np.median(each.round_ms):.2f} | ×{ratio.value:.2f}"
            f" ({ratio.low:.2f}–{ratio.high:.2f}) | {each.distance.mean:.5f}, {each.distance.least:.5f} |"
        )
