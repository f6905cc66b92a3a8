"""The nodes of an `.onnx` file and the sizes of its constants: what is needed to follow, through a graph,
where its work and its time go. Weights are skipped over, not read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infer.graphfile import MAX_NESTING, read_model
from infer.wire import WireError, as_bytes, as_int, as_text, fields, fields_once, varint

_MAX_DIMS = 64  # numpy's own limit
_MODULE = "infer.module"  # written by converters/origins.py

# TensorProto.DataType → bits of an element; those that are missing have no fixed size
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128,
    16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A node of a graph, or of a graph inside one of its nodes.

    Attributes:
        inputs: names of values; "" for an optional one that is not given.
        module: path in the PyTorch original of the module that asked for it, "" if that is not known.
        equation: of an Einsum.
        top: whether it is in the main graph, where every node runs.
        index: its place in its graph, constants left out.
    """

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    module: str
    equation: str
    top: bool
    index: int


@dataclass(frozen=True)
class Constant:
    """An initializer, or what a Constant node gives."""

    shape: tuple[int, ...] = ()
    size_bytes: int = 0


@dataclass
class GraphNodes:
    """All nodes in the file's order, but for those of constants, and constants by name."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)


def read_graph_nodes(path: Path) -> GraphNodes:
    """Read the nodes of the ONNX model at `path`. Raises `ArtifactError` if it is not one."""
    return read_model(path, _read)


@dataclass
class _Attributes:
    equation: str = ""
    value: Constant = field(default_factory=Constant)
    graphs: list[memoryview] = field(default_factory=list)


def _read(view: memoryview) -> GraphNodes:
    found = GraphNodes()
    for number, value in fields(view):
        if number == 7:  # ModelProto.graph
            _read_graph(as_bytes(value), found, 0)
    return found


def _read_graph(view: memoryview, found: GraphNodes, depth: int) -> None:
    if depth > MAX_NESTING:
        raise WireError(f"graphs are nested more than {MAX_NESTING} deep")
    index = 0
    for number, value in fields(view):
        if number == 1:  # node
            index += _read_node(as_bytes(value), found, depth, index)
        elif number == 5:  # initializer
            _note_tensor(as_bytes(value), found)
        elif number == 15:  # sparse_initializer: its values bear the name
            values = fields_once(as_bytes(value), repeated=(3,)).get(1, memoryview(b""))
            _note_tensor(as_bytes(values), found)


def _read_node(view: memoryview, found: GraphNodes, depth: int, index: int) -> int:
    """How many places the node takes: a constant, which no backend runs, takes none."""
    name = op_type = domain = module = ""
    inputs, outputs = [], []
    attributes = _Attributes()
    for number, value in fields(view):
        if number == 1:
            inputs.append(as_text(value))
        elif number == 2:
            outputs.append(as_text(value))
        elif number == 3:
            name = as_text(value)
        elif number == 4:
            op_type = as_text(value)
        elif number == 5:
            _read_attribute(as_bytes(value), attributes)
        elif number == 7:
            domain = as_text(value)
        elif number == 9:  # metadata_props, a key and a value
            entry = fields_once(as_bytes(value))
            if as_text(entry.get(1, memoryview(b""))) == _MODULE:
                module = as_text(entry.get(2, memoryview(b"")))
    if op_type == "Constant":
        found.constants.update((output, attributes.value) for output in outputs)
        return 0
    domain = "" if domain == "ai.onnx" else domain
    found.nodes.append(
        Node(
            name,
            op_type,
            domain,
            tuple(inputs),
            tuple(outputs),
            module,
            attributes.equation,
            depth == 0,
            index,
        )
    )
    for graph in attributes.graphs:
        _read_graph(graph, found, depth + 1)
    return 1


def _read_attribute(view: memoryview, found: _Attributes) -> None:
    name = text = None
    for number, value in fields(view):
        if number == 1:
            name = as_text(value)
        elif number == 4:  # s, which need not be text
            text = as_bytes(value)
        elif number == 5:  # t
            found.value = _tensor(as_bytes(value))[1]
        elif number in (6, 11):  # g, graphs
            found.graphs.append(as_bytes(value))
    if name == "equation" and text is not None:
        found.equation = as_text(text)


def _note_tensor(view: memoryview, found: GraphNodes) -> None:
    name, constant = _tensor(view)
    found.constants[name] = constant


def _tensor(view: memoryview) -> tuple[str, Constant]:
    """A TensorProto and its name."""
    name, bits = "", 0
    dims: list[int] = []
    for number, value in fields(view):
        if number == 1:
            dims += _numbers(value)
        elif number == 2:
            bits = _BITS.get(as_int(value), 0)
        elif number == 8:
            name = as_text(value)
    if any(dim < 0 for dim in dims):
        raise WireError("a tensor has a negative size")
    if len(dims) > _MAX_DIMS:
        raise WireError(f"a tensor has {len(dims)} dims")
    return name, Constant(tuple(dims), (math.prod(dims) * bits + 7) // 8)


def _numbers(value: int | memoryview) -> Iterator[int]:
    """One number of a repeated field, or several that are packed."""
    if isinstance(value, int):
        yield as_int(value)
        return
    position = 0
    while position < len(value):
        number, position = varint(value, position)
        yield as_int(number)
