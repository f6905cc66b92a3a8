"""Looking inside: a graph's own values in a run, without the backend's optimizations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from infer.bare_graph import artifact_of_graph
from infer.feeds import Feeds
from infer.graphwriting import save
from infer.options import PlanOptions, SessionOptions
from infer.session import Session, open_session
from infer.signature import Array


class Watched:
    """A graph with some of its values as further outputs."""

    def __init__(self, session: Session, inside: Sequence[str]) -> None:
        self._session, self._inside = session, inside

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """The values by name; those that are inputs are their feeds. Raises `InferError`."""
        return {**feeds, **self._session.run(feeds, self._inside)} if self._inside else dict(feeds)


@contextmanager
def watched(model: ir.Model, names: Sequence[str]) -> Iterator[Watched]:
    """A copy of `model` that gives the values of these names. Raises `InferError` if it does not load."""
    copy = model.clone()
    graph = copy.graph
    values = {output.name: output for node in graph for output in node.outputs}
    there = {output.name for output in graph.outputs}
    inside = [name for name in names if name in values or name in there]
    for name in inside:
        if name not in there:
            values[name].shape = None  # what an exporter noted may be a formula, which is no name of a dim
            # of operators that are ONNX Runtime's own inference knows nothing: nearly all give floats
            values[name].type = values[name].type or ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(values[name])
    with tempfile.TemporaryDirectory(prefix="infer-watched-") as scratch:
        path = Path(scratch) / "watched.onnx"
        save(copy, path)
        plan = PlanOptions(device="cpu", graph_optimization="none")
        options = SessionOptions(verify=False, warm_up=False)
        with open_session(artifact_of_graph(path), plan, options) as session:
            yield Watched(session, inside)
