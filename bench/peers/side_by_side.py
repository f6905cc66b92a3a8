"""A family's artifact and its peers, answers first, then times, in turns."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench.peers import OURS, Peer
from bench.peers.candidate import PeerError, Remote, started
from bench.peers.environment import prepare
from bench.peers.material import Material, unfit
from infer.errors import FeedError, InferError
from infer.feeds import BATCH, Feeds, batch_dim, resized
from infer.machine import this_machine
from infer.measure.candidates import disagreement
from infer.measure.comparison import Asked, Found, compare, conditions
from infer.measure.record import Entry, Record
from infer.measure.rounds import Progress
from infer.npz import save_npz
from infer.optimizer.budget import cosines
from infer.signature import Array


@dataclass(frozen=True)
class Distance:
    """How far the answers of a candidate that approximates are from infer's: the cosine of each output of
    each of `count` inputs, of the output where it is worst."""

    mean: float
    least: float
    count: int

    def __str__(self) -> str:
        return f"cosine to infer {self.mean:.4f} mean, {self.least:.4f} min of {self.count} inputs"


@dataclass(frozen=True)
class Compared:
    """One comparison: its record, and for each candidate what is to be said of its answers."""

    name: str
    record: Record
    answers: dict[str, str]


def side_by_side(
    found: Material, peers: Sequence[Peer], asked: Asked, threads: int, progress: Progress = lambda _: None
) -> Compared:
    """Measure infer and the peers that take this family; others are no candidates.

    A peer that cannot be installed, fails, dies, hangs or answers differently is excluded, with the
    reason, and the rest goes on. Raises `InferError` if infer itself fails.
    """
    isa = this_machine().isa
    entries: dict[str, Entry] = {}
    answers: dict[str, str] = {}
    with ExitStack() as stack:
        ours = opened(stack, OURS, found, threads, progress)
        entries[OURS.name] = Entry(OURS.name, ours.described)
        answers[OURS.name] = "its own"
        remotes = [ours]
        for peer in peers:
            if peer.takes not in found.kinds:
                continue
            described = peer.about
            try:
                reason = unfit(peer, found, isa)
                if reason is None:
                    remote = opened(stack, peer, found, threads, progress)
                    described = remote.described
                    if peer.takes == "graph":
                        described += f" ({found.graph_axes})"
                    progress(f"comparing answers of {peer.name}")
                    if peer.exact:
                        answers[peer.name] = "equal"
                        reason = _differs(ours, remote, found, asked)
                    else:
                        far = distance(ours, remote, found.judged)
                        answers[peer.name] = f"cos {far.mean:.3f}, min {far.least:.3f}"
                        described += f"; {far}"
            except InferError as error:
                reason = str(error)
            if reason is None:
                remotes.append(remote)
            entries[peer.name] = Entry(peer.name, described, reason)
        measured = _measure(remotes, entries, found, asked, progress)
    return Compared(found.name, _record(measured, entries, asked, threads), answers)


def opened(stack: ExitStack, peer: Peer, found: Material, threads: int, progress: Progress) -> Remote:
    """The peer in a worker that ends with `stack`. Raises `InferError`."""
    progress(f"loading {peer.name}")
    feeds = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="infer-peers-"))) / "feeds.npz"
    save_npz(feeds, found.feeds)
    python = prepare(peer.requirements, progress) if peer.requirements else Path(sys.executable)
    remote = stack.enter_context(
        started(peer.name, peer.module, python, found.signature, threads, environment=peer.environment)
    )
    remote.load(found.given(peer, threads, feeds))
    return remote


def _measure(
    remotes: Sequence[Remote], entries: dict[str, Entry], found: Material, asked: Asked, progress: Progress
) -> Found:
    """Of those that last; a peer that does not is taken out, and the rest begins again."""
    remotes = list(remotes)
    while True:
        try:
            return compare(remotes, found.feeds, asked, None, progress, restart=partial(_restart, remotes))
        except PeerError as error:
            if error.name == OURS.name:
                raise
            entries[error.name] = Entry(error.name, entries[error.name].described, str(error))
            remotes = [remote for remote in remotes if remote.name != error.name]


def _restart(remotes: Sequence[Remote]) -> None:
    for remote in remotes:
        remote.restart()


def _differs(ours: Remote, remote: Remote, found: Material, asked: Asked) -> str | None:
    """Why the peer is not to be timed, at the sizes that will be."""
    sizes = [1]
    if batch_dim(found.signature) and {"multi-stream", "offline"} & set(asked.scenarios):
        sizes.append(asked.samples)
    for size in sizes:
        feeds: Feeds = dict(found.feeds)
        if batch_dim(found.signature):
            feeds = resized(found.signature, feeds, {BATCH: size})
        if reason := disagreement(ours, remote, feeds):
            return f"batch {size}: {reason}" if size > 1 else reason
    return None


def distance(ours: Remote, remote: Remote, judged: Sequence[Feeds]) -> Distance:
    """Raises `InferError`, for answers of other shapes, too."""
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for feeds in judged:
        expected, answered = ours.run(feeds), remote.run(feeds)
        if not set(expected) & set(answered) and len(expected) == len(answered):
            answered = dict(zip(expected, answered.values(), strict=True))
        for name, array in expected.items():
            if array.dtype.kind != "f":
                continue
            other = answered.get(name)
            if other is None or other.shape != array.shape:
                came = "none" if other is None else str(other.shape)
                raise FeedError(f"its '{name}' has the shape {came}, and infer's {array.shape}")
            if not np.isfinite(other).all():
                raise FeedError(f"its '{name}' is not finite")
            pairs.setdefault(name, []).append((array.ravel(), other.ravel()))
    found = [cosines(each) for each in pairs.values()]
    worst = min(found, key=lambda cosines: float(cosines.mean()))
    return Distance(float(worst.mean()), float(min(c.min() for c in found)), len(judged))


def _record(measured: Found, entries: dict[str, Entry], asked: Asked, threads: int) -> Record:
    return Record(
        conditions(measured, asked, threads), tuple(entries.values()), measured.series, measured.exclusions
    )
