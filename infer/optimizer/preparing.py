"""A graph as its library optimized it on this machine, kept so that loading does not do it again.

It holds for one version of the library and one kind of machine, and a plan uses it for no other. What ONNX
Runtime makes is a graph that can be looked through, and part of the artifact. Weights that it packs for its
products can be kept packed, too: then they are mapped into memory, and processes share them; whether that
loads sooner is measured. What OpenVINO compiles goes into the user's cache, see `infer.compiled`.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from infer.artifact import Artifact, sha256
from infer.backends.ort import save_optimized
from infer.compiled import forget, keep
from infer.errors import InferError
from infer.feeds import Feeds
from infer.guard import Guard
from infer.machine import this_machine
from infer.manifest import Compiled, FileRecord, Prepared
from infer.measure.statistics import verdict
from infer.optimizer.apart import Planned, ratio_apart
from infer.options import PlanOptions, SessionOptions
from infer.parity import TOLERANCES, compare
from infer.plan import Plan
from infer.planner import make_plan
from infer.session import Session, open_session
from infer.signature import Array

_LOADS = 5
_TIMED_S, _STARTS = 4.0, 4
_WORTH = 0.9
"""A file that is not opened in less than this part of the time is not worth its size."""


def prepare(artifact: Artifact, options: PlanOptions, stem: str, feeds: Feeds) -> Prepared | None:
    """Write the graph of the plan that `options` ask for into the artifact's folder, as "{stem}.onnx", if
    it loads sooner from there, and then answers `feeds` alike and not later; None if not. Files are
    verified as they are when an artifact is loaded: a second copy of the weights may take longer to read
    than to pack."""
    once = SessionOptions(warm_up=False)
    best: tuple[float, str] | None = None
    as_run = make_plan(artifact.manifest, this_machine(), options)
    # what is put into huge pages after loading would be timed with the next load
    quick = replace(options, huge_pages=False)
    with open_session(artifact, quick, once) as session:
        plan, expected = session.plan, session.run(feeds)
    before = _load_s(lambda: open_session(artifact, quick, once))
    for name, packed in ((stem, False), (f"{stem}-packed", True)):
        graph = f"{name}.onnx"
        try:
            save_optimized(artifact.file(plan.graph), plan, artifact.path / graph, packed=packed)
            there = _with(artifact, graph)

            def opening(there: Artifact = there, graph: str = graph) -> Session:
                return open_session(there, options, once, replace(plan, prepared=graph))

            with opening() as session:
                found = session.run(feeds)
            taken = _load_s(opening)
        except InferError:
            taken, found = before, {}
        if (
            not _alike(expected, found)
            or taken > _WORTH * before
            or (best is not None and taken > _WORTH * best[0])
            or _slower(there, replace(as_run, prepared=graph), artifact, as_run, feeds)
        ):
            _remove(artifact.path / graph)
            continue
        if best is not None:
            _remove(artifact.path / best[1])
        best = taken, graph
    return None if best is None else Prepared(best[1], best[0] / before)


def compile_ahead(artifact: Artifact, options: PlanOptions, feeds: Mapping[str, Array]) -> Compiled | None:
    """Keep the compiled model of the plan that `options` ask for in the user's cache, if the first answer
    to `feeds` comes sooner with it, and is the same; None if not."""
    from infer.backends.openvino import export  # only where it is installed

    once = SessionOptions(verify=False, warm_up=False)
    signature = artifact.manifest.signature
    with open_session(artifact, options, once) as session:
        plan, expected = session.plan, session.run(feeds)

    def first_answer(plan: Plan) -> Session:
        session = open_session(artifact, options, once, plan)
        session.run(feeds)
        return session

    before = _load_s(lambda: first_answer(plan))
    try:
        sha256 = keep(export(artifact.file(plan.graph), plan, Guard(signature).admit(feeds), signature))
        if sha256 is None:
            return None
        ahead = replace(plan, compiled=sha256)
        with open_session(artifact, options, once, ahead) as session:
            found = session.run(feeds)
        taken = _load_s(lambda: first_answer(ahead))
    except InferError:
        return None
    if not _alike(expected, found) or taken > _WORTH * before:
        forget(sha256)
        return None
    return Compiled(sha256, taken / before)


def _slower(there: Artifact, prepared: Plan, artifact: Artifact, plan: Plan, feeds: Feeds) -> bool:
    """Whether runs take surely longer so: weights of a file that is mapped are in small pages."""
    ours, theirs = Planned("prepared", there, prepared), Planned("as written", artifact, plan)
    try:
        ratio = ratio_apart(ours, theirs, [feeds], _TIMED_S, lambda said: None, _STARTS)
    except InferError:  # there may be no memory for two more processes
        return True
    return verdict(ratio) == "slower"


def _alike(expected: Mapping[str, Array], found: Mapping[str, Array]) -> bool:
    return found.keys() == expected.keys() and all(
        difference.within for difference in compare(expected, found, TOLERANCES)
    )


def files_of(graph: Path) -> list[Path]:
    """The file of a graph, and its weights if they lie beside it."""
    return sorted(graph.parent.glob(f"{graph.name}*"))


def _with(artifact: Artifact, graph: str) -> Artifact:
    """The artifact, and this graph among its files."""
    added = {
        file.relative_to(artifact.path).as_posix(): FileRecord(sha256(file), file.stat().st_size)
        for file in files_of(artifact.path / graph)
    }
    return replace(
        artifact, manifest=replace(artifact.manifest, files={**artifact.manifest.files, **added})
    )


def _remove(graph: Path) -> None:
    for file in files_of(graph):
        file.unlink()
    with contextlib.suppress(OSError):  # another machine's may be there
        graph.parent.rmdir()


def _load_s(opening: Callable[[], Session]) -> float:
    """The median of a few."""
    taken = []
    for _ in range(_LOADS):
        start = time.perf_counter()
        session = opening()
        taken.append(time.perf_counter() - start)
        session.close()
    return statistics.median(taken)
