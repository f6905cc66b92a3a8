"""Where one query's time goes, in the graph as it is run: by operator, and by module of the original."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from infer.artifact import Artifact
from infer.backends.ort_trace import Event, trace_times
from infer.errors import InputError
from infer.feeds import sizes_of
from infer.graphnodes import read_graph_nodes
from infer.guard import Guard
from infer.integrity import check_graph
from infer.measure.origins import UNKNOWN, Origins
from infer.measure.record import Profile, Share
from infer.plan import Plan
from infer.signature import Array

RUNS = 15

OTHERS = "(other modules)"

_MOST_MODULES = 25
_FEWEST_MODULES = 6
"""A profile with fewer rows says less than one that is cut off."""

_Node = tuple[str, str]
"""Name and operator of a node."""


def profile(
    artifact: Artifact, plan: Plan, feeds: Mapping[str, Array], candidate: str, runs: int = RUNS
) -> Profile:
    """Run the plan's graph with `feeds`, `runs` times, and say where the time went.

    Each node counts with its median over the runs, those inside an If, Loop or Scan on their own. Modules
    are the original's, by their paths there; layers that repeat are one where there are many, as
    `encoder.layer.*.attention`. A graph without notes of its modules has none.

    The times are those of the backend's own profiler, which slows small nodes down by about a microsecond.
    Raises `InputError` for
    a plan of another backend, and `FeedError`, `BackendError`, `DeviceError` and `ArtifactError`.
    """
    if plan.backend != "onnxruntime":
        raise InputError(
            f"{candidate} runs on {plan.backend}, and only onnxruntime says where its time goes; give"
            f" --backend onnxruntime"
        )
    file = artifact.file(plan.graph)
    check_graph(artifact, file)
    signature = artifact.manifest.signature
    traced = trace_times(file, replace(plan, prepared=None), Guard(signature).admit(feeds), runs)
    times = _medians(traced.runs)
    origins = Origins(read_graph_nodes(file))
    modules: tuple[Share, ...] = ()
    if origins.known:
        ran = {node.name: node for node in traced.graph.nodes}
        paths = {node: origins.module(ran[node[0]]) if node[0] in ran else UNKNOWN for node in times}
        readable = _readable(dict.fromkeys(paths.values(), 0.0) | _sums(times, paths.__getitem__))
        modules = _shares(times, lambda node: readable[paths[node]])
    return Profile(candidate, sizes_of(signature, feeds), _shares(times, lambda node: node[1]), modules)


def _medians(runs: Iterable[Sequence[Event]]) -> dict[_Node, float]:
    """Milliseconds of each node in a run."""
    found: dict[_Node, list[float]] = defaultdict(list)
    for run in runs:
        sums: dict[_Node, float] = defaultdict(float)
        for event in run:
            sums[event.name, event.op_type] += event.own_us / 1e3
        for node, time in sums.items():
            found[node].append(time)
    return {node: statistics.median(times) for node, times in found.items()}


def _sums(times: Mapping[_Node, float], kind: Callable[[_Node], str]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for node, time in times.items():
        found[kind(node)] += time
    return dict(found)


def _shares(times: Mapping[_Node, float], kind: Callable[[_Node], str]) -> tuple[Share, ...]:
    """The longest first."""
    whole = sum(times.values()) or 1.0
    counts: dict[str, int] = defaultdict(int)
    for node in times:
        counts[kind(node)] += 1
    found = [Share(name, ms, ms / whole, counts[name]) for name, ms in _sums(times, kind).items()]
    return tuple(sorted(found, key=lambda share: -share.ms))


def _readable(times: Mapping[str, float]) -> dict[str, str]:
    """What each path is shown as, so that there are not too many: layers that repeat become one, then
    paths are cut, then those that take least become one."""
    repeated = {path: _without_indices(path) for path in times}
    depth = max((path.count(".") + 1 for path in times), default=1)
    ways = [{path: path for path in times}, repeated]
    ways += [{path: _cut(repeated[path], n) for path in times} for n in range(depth - 1, 0, -1)]
    for way in ways:
        if len(set(way.values())) <= _MOST_MODULES:
            if way is ways[0] or len(set(way.values())) >= _FEWEST_MODULES:
                return way
            break
    sums: dict[str, float] = defaultdict(float)
    for path, time in times.items():
        sums[repeated[path]] += time
    longest = sorted(sums, key=lambda name: -sums[name])[: _MOST_MODULES - 1]
    return {path: name if name in longest else OTHERS for path, name in repeated.items()}


def _without_indices(path: str) -> str:
    """`encoder.layer.3.output` → `encoder.layer.*.output`. An index at the end stays: what has modules of
    its own is a layer that repeats, and what has none is one of a sequence of different ones."""
    *parts, last = path.split(".")
    return ".".join(["*" if part.isdigit() else part for part in parts] + [last])


def _cut(path: str, depth: int) -> str:
    return path if path.startswith("(") else ".".join(path.split(".")[:depth])
