"""How much work a query is, at the sizes of its feeds, and how near to the machine's limit it was done.

Counted is the graph as it was written, run once: what a backend fuses or leaves out does not change what
was asked for. Nodes that depend on nothing but weights are no work of a query: they are folded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from infer.artifact import Artifact
from infer.backends.ort_trace import Event, Shape, trace_shapes
from infer.graphnodes import Constant, GraphNodes, Node, read_graph_nodes
from infer.guard import Guard
from infer.integrity import check_graph
from infer.measure.operations import operations
from infer.measure.record import Limit, Peaks
from infer.plan import Plan
from infer.signature import Array

_PARTIAL = ("Gather", "GatherElements", "GatherND", "Slice")
"""They read no more of their first input than they give."""

_NOT_FOLDED = ("If", "Loop", "Scan", "Bernoulli", "Multinomial")


@dataclass(frozen=True)
class Work:
    """Of one query.

    Attributes:
        flops: floating-point operations.
        moved_bytes: weights that are used, feeds and outputs, each once; of a table the rows looked up.
        uncounted: operators whose work is not known, and is not in `flops`.
    """

    flops: float
    moved_bytes: int
    uncounted: tuple[str, ...]


def count_work(artifact: Artifact, plan: Plan, feeds: Mapping[str, object]) -> Work:
    """The work of a query with `feeds`. Runs the plan's graph on the CPU, unoptimized, once.

    Raises `FeedError`, `BackendError` and `ArtifactError`.
    """
    graph = artifact.file(plan.graph)
    check_graph(artifact, graph)
    admitted = Guard(artifact.manifest.signature).admit(feeds)
    found = trace_shapes(graph, replace(plan, device="cpu", prepared=None), admitted)
    nodes = read_graph_nodes(graph)
    ran = _by_node(nodes, found.events)
    sources = _folded(nodes)
    flops, uncounted = 0.0, Counter[str]()
    for node, event in ran:
        if node is not None and _is_folded(node, sources):
            continue
        inputs = _aligned(node.inputs, event.inputs) if node else event.inputs
        outputs = _aligned(node.outputs, event.outputs) if node else event.outputs
        count = operations(event.op_type, inputs, outputs, node.equation if node else "")
        if count is None:
            uncounted[event.op_type] += 1
        else:
            flops += count
    moved = _weight_bytes(nodes, ran, sources) + _size_bytes(admitted) + _size_bytes(found.outputs)
    return Work(flops, moved, tuple(sorted(uncounted)))


def operations_by_node(artifact: Artifact, plan: Plan, feeds: Mapping[str, object]) -> dict[str, float]:
    """Floating-point operations of each node of the plan's graph that ran, by its name, for a query with
    `feeds`; 0.0 where they are not known. Runs the graph on the CPU, unoptimized, once.

    Raises `FeedError`, `BackendError` and `ArtifactError`.
    """
    admitted = Guard(artifact.manifest.signature).admit(feeds)
    found = trace_shapes(artifact.file(plan.graph), replace(plan, device="cpu", prepared=None), admitted)
    counts: dict[str, float] = defaultdict(float)
    for event in found.events:
        counts[event.name] += operations(event.op_type, event.inputs, event.outputs) or 0.0
    return dict(counts)


def limit_of(work: Work, peaks: Peaks, median_ms: float) -> Limit:
    """How close a query of `work` that takes `median_ms` comes to what the machine can do.

    Bytes that fit into the last cache may stay there from query to query: the memory's bandwidth is then no
    floor, and only operations count. The fraction is not held to 1: above it, a peak was measured too low,
    the backend found a way with fewer operations, or its arithmetic is cheaper than float32's.
    """
    compute_ms = work.flops / (peaks.gflops * 1e6)
    in_cache = work.moved_bytes <= peaks.cache_bytes
    memory_ms = 0.0 if in_cache else work.moved_bytes / (peaks.gigabytes_per_s * 1e6)
    floor_ms = max(compute_ms, memory_ms)
    return Limit(
        bound="memory" if memory_ms > compute_ms else "compute",
        floor_ms=floor_ms,
        fraction=floor_ms / median_ms,
        gflop=work.flops / 1e9,
        megabytes=work.moved_bytes / 1e6,
        uncounted=work.uncounted,
    )


_Ran = Sequence[tuple[Node | None, Event]]


def _by_node(graph: GraphNodes, events: Sequence[Event]) -> _Ran:
    """Each event's node; None for one that the backend made itself, such as those of a function."""
    by_name: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        by_name[node.name or f"{node.op_type}_{node.index}", node.op_type].append(node)
    return [
        (
            # two branches of an If may have nodes of the same name; those that fit are alike
            next((n for n in by_name[event.name, event.op_type] if _fits(n, event, graph.constants)), None),
            event,
        )
        for event in events
    ]


def _fits(node: Node, event: Event, constants: Mapping[str, Constant]) -> bool:
    given = [name for name in node.inputs if name]
    return len(given) == len(event.inputs) and all(
        name not in constants or constants[name].shape == shape
        for name, shape in zip(given, event.inputs, strict=True)
    )


def _aligned(names: Sequence[str], shapes: Sequence[Shape]) -> Sequence[Shape | None]:
    """Shapes in the places of their values: those of optional ones that are not given are missing."""
    if len(shapes) != sum(map(bool, names)):
        return shapes
    given = iter(shapes)
    return [next(given) if name else None for name in names]


def _folded(graph: GraphNodes) -> dict[str, frozenset[str]]:
    """The constants that each value is made of, if it is made of nothing else."""
    sources = {name: frozenset([name]) for name in graph.constants}
    for node in graph.nodes:
        given = [name for name in node.inputs if name]
        random = node.op_type in _NOT_FOLDED or node.op_type.startswith("Random")
        if given and not random and all(name in sources for name in given):
            made_of = frozenset().union(*(sources[name] for name in given))
            sources.update((name, made_of) for name in node.outputs if name)
    return sources


def _is_folded(node: Node, sources: Mapping[str, frozenset[str]]) -> bool:
    return any(name in sources for name in node.outputs if name)


def _weight_bytes(graph: GraphNodes, ran: _Ran, sources: Mapping[str, frozenset[str]]) -> int:
    """Bytes of the constants that were read, each at most once."""
    read: Counter[str] = Counter()
    for name, size in _reads(graph, ran, sources):
        for source in sources.get(name, ()):
            read[source] += graph.constants[source].size_bytes if size is None else size
    return sum(min(size, graph.constants[name].size_bytes) for name, size in read.items())


def _reads(
    graph: GraphNodes, ran: _Ran, folded: Mapping[str, frozenset[str]]
) -> Iterator[tuple[str, int | None]]:
    """The values that nodes read, and how many bytes of them; None for all."""
    seen: set[int] = set()
    for node, event in ran:
        if node is not None:
            seen.add(id(node))
            if not _is_folded(node, folded):
                partial = event.op_type in _PARTIAL
                for place, name in enumerate(node.inputs):
                    yield name, event.output_bytes if partial and place == 0 else None
    for node in graph.nodes:  # the backend takes functions apart, and runs what is in them
        if node.top and id(node) not in seen and not _is_folded(node, folded):
            yield from ((name, None) for name in node.inputs)


def _size_bytes(arrays: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())
