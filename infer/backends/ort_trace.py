"""What ONNX Runtime did in a run, node by node, with shapes and times. Knows the file its profiler writes.

That is a JSON list of events. Of each run there is one called `model_run`; the kernels' events lie within
its time, and have the shapes of those inputs and outputs that exist, in order. Those of the graph inside
an If, Loop or Scan lie within the time of that node.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infer.backends.ort import record
from infer.errors import BackendError
from infer.graphnodes import GraphNodes, read_graph_nodes
from infer.guard import Feeds
from infer.plan import Plan
from infer.signature import Array

_KERNEL = "_kernel_time"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Event:
    """A node that ran once.

    Attributes:
        name: of the node; of one without a name its operator and index, as "Relu_3".
        inputs: shapes of the inputs that exist; without those that were packed when the graph was loaded.
        own_us: microseconds, without those of nodes of graphs inside it.
    """

    name: str
    op_type: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    output_bytes: int
    own_us: float


@dataclass(frozen=True)
class Shapes:
    """What ran in one run, and its outputs."""

    events: tuple[Event, ...]
    outputs: dict[str, Array]


@dataclass(frozen=True)
class Times:
    """What ran in each run, and the graph that the backend made of the file's."""

    runs: tuple[tuple[Event, ...], ...]
    graph: GraphNodes


def trace_shapes(graph: Path, plan: Plan, feeds: Feeds) -> Shapes:
    """Run `graph` once, node by node as it is written; no input of a node is left out.

    Raises `BackendError` and `DeviceError`.
    """
    plan = replace(plan, graph_optimization="none")
    with tempfile.TemporaryDirectory(prefix="infer-") as folder:
        found = record(graph, plan, feeds, 1, Path(folder), saved=None, prepack=False)
        (events,) = _runs(graph, found.events, 1)
        return Shapes(events, found.outputs)


def trace_times(graph: Path, plan: Plan, feeds: Feeds, runs: int) -> Times:
    """Run `graph` as `plan` says, `runs` times after a first one that is left out.

    Raises `BackendError` and `DeviceError`.
    """
    with tempfile.TemporaryDirectory(prefix="infer-") as folder:
        saved = Path(folder) / "optimized.onnx"
        found = record(graph, plan, feeds, runs + 1, Path(folder), saved=saved)
        return Times(tuple(_runs(graph, found.events, runs + 1)[1:]), read_graph_nodes(saved))


def _runs(graph: Path, written: Path, count: int) -> list[tuple[Event, ...]]:
    raw = json.loads(written.read_bytes())
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in raw if e["name"] == "model_run")
    if len(spans) != count:  # it writes no more than a million events
        raise BackendError(
            f"ONNX Runtime's profile of '{graph}' has {len(spans)} of {count} runs; profile smaller inputs"
        )
    kernels = [e for e in raw if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    # the one around others begins before them, or ends after them
    kernels.sort(key=lambda e: (e["ts"], -e["dur"]))
    found: list[tuple[Event, ...]] = []
    for begin, end in spans:
        inside = [e for e in kernels if begin <= e["ts"] < end]
        found.append(tuple(map(_event, inside, _own_times(inside))))
    return found


def _own_times(kernels: Sequence[Mapping[str, Any]]) -> list[float]:
    own = [float(e["dur"]) for e in kernels]
    around: list[int] = []
    for i, kernel in enumerate(kernels):
        end = kernel["ts"] + kernel["dur"]
        while around and end > kernels[around[-1]]["ts"] + kernels[around[-1]]["dur"]:
            around.pop()
        if around:
            own[around[-1]] -= kernel["dur"]
        if kernel["args"]["op_name"] in ("If", "Loop", "Scan"):
            around.append(i)
    return [max(0.0, time) for time in own]


def _event(kernel: Mapping[str, Any], own_us: float) -> Event:
    args = kernel["args"]
    return Event(
        kernel["name"].removesuffix(_KERNEL),
        args["op_name"],
        _shapes(args.get("input_type_shape", ())),
        _shapes(args.get("output_type_shape", ())),
        int(args.get("output_size", 0)),
        own_us,
    )


def _shapes(listed: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Shape, ...]:
    """From [{"float": [2, 3]}, …]."""
    return tuple(tuple(shape) for tensor in listed for shape in tensor.values())
