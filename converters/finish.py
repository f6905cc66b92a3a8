"""From an exporter's graph to ours: the model's own names and dims, weights stored once, saved."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from infer.signature import DTYPES, TensorSpec


def name_tensors(
    model: ir.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], given: Sequence[str]
) -> None:
    """Give `model` the wanted inputs and outputs, in place.

    `given` holds the names the exporter was told for the inputs. Inputs that it dropped because
    nothing uses them come back, so that the model keeps taking what the original takes.
    """
    graph = model.graph
    present = {value.name: value for value in graph.inputs}
    ordered: list[ir.Value] = []
    for spec, name in zip(inputs, given, strict=True):
        value = present.get(name) or ir.Value(name=name)
        value.type = ir.TensorType(_ir_dtype(spec))
        ordered.append(value)
    symbols = _symbols(ordered, inputs)
    graph.inputs[:] = ordered

    seen: set[int] = {id(value) for value in graph.inputs}
    for i, value in enumerate(graph.outputs):
        # an output that is an input, a weight, or another output needs a value of its own
        if id(value) in seen or value.is_initializer():
            node = ir.node("Identity", inputs=[value])
            graph.append(node)
            copy = node.outputs[0]
            copy.type, copy.shape = value.type, value.shape
            graph.outputs[i] = copy
        seen.add(id(graph.outputs[i]))

    wanted = {spec.name for spec in (*inputs, *outputs)}
    outer = {id(v) for v in (*graph.inputs, *graph.outputs)}
    _free_names(graph, wanted, outer)
    for value, spec in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.name = spec.name
        value.shape = ir.Shape(spec.dims)
    _rename_symbols(graph, symbols)


def _ir_dtype(spec: TensorSpec) -> ir.DataType:
    if spec.dtype == "string":
        return ir.DataType.STRING
    return ir.DataType.from_numpy(DTYPES[spec.dtype])


def _symbols(values: Sequence[ir.Value], specs: Sequence[TensorSpec]) -> dict[str, str]:
    """The exporter's names of symbolic dims → ours."""
    symbols: dict[str, str] = {}
    for value, spec in zip(values, specs, strict=True):
        for theirs, ours in zip(value.shape or (), spec.dims, strict=False):
            if isinstance(theirs, ir.SymbolicDim) and theirs.value and isinstance(ours, str):
                symbols.setdefault(theirs.value, ours)
    return symbols


def frozen_axes(model: ir.Model, inputs: Sequence[TensorSpec], given: Sequence[str]) -> dict[str, int]:
    """Dims that were to vary, but that the exporter made constant: name → size."""
    present = {value.name: value for value in model.graph.inputs}
    frozen: dict[str, int] = {}
    for spec, name in zip(inputs, given, strict=True):
        shape = present[name].shape if name in present else None
        for ours, theirs in zip(spec.dims, shape or (), strict=False):
            if isinstance(ours, str) and isinstance(theirs, int):
                frozen[ours] = theirs
    return frozen


def _free_names(graph: ir.Graph, wanted: set[str], outer: set[int]) -> None:
    """Rename inner values that bear a wanted name; names of values must be unique."""
    taken = {value.name for value in _values(graph)} | wanted
    for value in _values(graph):
        if value.name in wanted and id(value) not in outer:
            count = 1
            while f"{value.name}_inner_{count}" in taken:
                count += 1
            name = f"{value.name}_inner_{count}"
            taken.add(name)
            if value.is_initializer():
                graph.initializers.pop(value.name)
                value.name = name
                graph.initializers[name] = value
            else:
                value.name = name


def _values(graph: ir.Graph) -> list[ir.Value]:
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        values += node.outputs
    return values


def _rename_symbols(graph: ir.Graph, symbols: dict[str, str]) -> None:
    """Replace the exporter's dim names (s12, 2*s12 + 1) in the recorded shapes of inner values."""
    if not symbols:
        return
    pattern = re.compile("|".join(rf"\b{re.escape(s)}\b" for s in sorted(symbols, key=len, reverse=True)))
    outer = {id(v) for v in (*graph.inputs, *graph.outputs)}
    for value in _values(graph):
        if value.shape is not None and id(value) not in outer:
            value.shape = ir.Shape(
                [
                    pattern.sub(lambda m: symbols[m.group()], dim.value)
                    if isinstance(dim, ir.SymbolicDim) and dim.value
                    else dim
                    for dim in value.shape
                ]
            )


def store_weights_once(model: ir.Model) -> None:
    """Tied weights become one initializer, whatever their size. In place.

    onnx-ir's own pass cannot hash tensors whose memory is not contiguous, such as tied ones.
    """
    alike: dict[tuple[object, ...], list[ir.Value]] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and not value.is_graph_output():
            alike.setdefault((tensor.dtype, tuple(tensor.shape)), []).append(value)
    for values in alike.values():
        first: dict[bytes, ir.Value] = {}
        for value in values if len(values) > 1 else ():
            assert value.const_value is not None
            array = np.ascontiguousarray(value.const_value.numpy())
            digest = hashlib.sha256(array.view(np.uint8).data).digest()
            kept = first.setdefault(digest, value)
            if kept is not value:
                ir.convenience.replace_all_uses_with(value, kept)
                assert value.name is not None
                model.graph.initializers.pop(value.name)


RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def random_operators(model: ir.Model) -> list[str]:
    """Operators of the graph that answer differently from call to call."""
    found = {node.op_type for node in model.graph.all_nodes() if node.op_type in RANDOM_OPERATORS}
    for node in model.graph.all_nodes():
        if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
            training = node.inputs[2].const_value
            if training is None or bool(training.numpy()):
                found.add("Dropout in training mode")
    return sorted(found)
