"""What every rewrite asks of a graph: constants, single uses, new weights, and taking a node's place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from infer.signature import Array

CONTRIB = "com.microsoft"
"""ONNX Runtime's own operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md"""

_BEGINNING = 64
"""So many elements tell most weights apart, without reading them all."""

_LEAST_SHARED_BYTES = 2**16
"""Smaller ones are not worth sharing, and must not be: where a convolution and a transposed one have the
same vector of zero points, OpenVINO computes what is around them in float32."""


def constant(value: ir.Value | None) -> Array | None:
    """What a value always is, if it is a weight or a Constant."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def constant_or_turned(value: ir.Value | None) -> Array | None:
    """`constant`, also of a matrix that a Transpose turns: a language model's head is often its embedding
    table so."""
    transposed = maker(value, "Transpose")
    if transposed is None:
        return constant(value)
    matrix = constant(transposed.inputs[0])
    if matrix is None or matrix.ndim != 2:
        return None
    return matrix.transpose(transposed.attributes.get_ints("perm", [1, 0]))


def maker(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that gives `value`, if it is of one of these operators of ONNX itself."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def only_user(value: ir.Value, *op_types: str) -> ir.Node | None:
    """The one node that takes `value`, if nothing else does and it is of one of these operators of ONNX
    itself, or of any, if none are named."""
    users = value.uses()
    if len(users) != 1 or value.is_graph_output():
        return None
    node = next(iter(users)).node
    if not op_types:
        return node
    return node if node.domain == "" and node.op_type in op_types else None


def rank(value: ir.Value | None) -> int | None:
    """The number of a value's dims, if it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def dim_at(value: ir.Value | None, axis: int) -> int | str | None:
    """The size of an axis, or the name it has where it varies; None if neither is known."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else dim.value


def size_at(value: ir.Value | None, axis: int) -> int | None:
    """The size of an axis, if it is known and the same for every feed."""
    dim = dim_at(value, axis)
    return dim if isinstance(dim, int) else None


def weight(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new weight of the graph, whose name is `name` or begins so."""
    count, free = 1, name
    while free in graph.initializers:
        count, free = count + 1, f"{name}_{count}"
    tensor = ir.tensor(np.asarray(array, order="C"), name=free)
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


def small(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A constant that several nodes share: the one that an earlier call made, if it is the same."""
    known = graph.initializers.get(name)
    if known is not None and known.const_value is not None:
        there = known.const_value.numpy()
        if there.dtype == array.dtype and np.array_equal(there, array):
            return known
    return weight(graph, name, array)


def put(before: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Add nodes just before another, as parts of the same module of the original."""
    for node in nodes:
        node.metadata_props.update(before.metadata_props)
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(before, list(nodes))


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be used wherever `old` is, under its name: by names, graphs are compared value by value."""
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    name, old.name = old.name, f"{old.name}_replaced"
    new.name = name


def tidy(model: ir.Model) -> None:
    """Drop what nothing uses, what is computed twice, and large weights that are kept twice. In place."""
    share_weights(model)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)


def share_weights(model: ir.Model) -> int:
    """Let large weights of the same type, shape and bytes be one, as tied embeddings are that an exporter
    wrote twice; how many fewer there are. Within the main graph, in place."""
    known: dict[tuple[object, ...], list[ir.Value]] = {}
    graph, gone = model.graph, 0
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or value.is_graph_input():
            continue
        if tensor.nbytes < _LEAST_SHARED_BYTES:
            continue
        beginning = tensor.numpy().reshape(-1)[:_BEGINNING].tobytes()
        alike = known.setdefault((tensor.dtype, tuple(tensor.shape), beginning), [])
        first = next((other for other in alike if _bytes(other) == _bytes(value)), None)
        if first is None or value.is_graph_output():
            alike.append(value)
            continue
        value.replace_all_uses_with(first)
        graph.initializers.pop(name)
        gone += 1
    return gone


def _bytes(value: ir.Value) -> bytes:
    assert value.const_value is not None
    return value.const_value.tobytes()
