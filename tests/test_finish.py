"""From an exporter's graph to ours: names, dims, weights. Proved by running before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import finish
from infer.graphwriting import save
from infer.signature import Array, TensorSpec


def graph(text: str) -> ir.Model:
    """A model from the textual form of onnx.parser, opset 20."""
    header = '<ir_version: 9, opset_import: ["": 20]>\n'
    return ir.serde.deserialize_model(onnx.parser.parse_model(header + text))


def run(model: ir.Model, feeds: dict[str, Array]) -> list[Array]:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, feeds)
    return outputs


def specs(*texts: str) -> tuple[TensorSpec, ...]:
    """`name:d0,d1` as float32 specs."""
    made = []
    for text in texts:
        name, _, dims = text.partition(":")
        made.append(
            TensorSpec(name, "float32", tuple(int(d) if d.isdigit() else d for d in dims.split(",")))
        )
    return tuple(made)


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_inner_values_make_way_for_the_models_names() -> None:
    """A value inside that bears a wanted name is renamed, and the graph still answers the same."""
    model = graph(
        "g (float[s1, 3] in0) => (float[s1, 3] out0) { x = Neg(in0)\n y = Abs(x)\n out0 = Relu(y) }"
    )
    finish.name_tensors(model, specs("x:batch,3"), specs("y:batch,3"), ["in0"])
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert [v.name for v in model.graph.outputs] == ["y"]
    np.testing.assert_array_equal(run(model, {"x": X})[0], X)


def test_outputs_that_are_inputs_or_twice_get_values_of_their_own() -> None:
    """An input passed through, and one tensor given under two names, stay two outputs."""
    model = graph("g (float[s1, 3] in0) => (float[s1, 3] out0) { out0 = Neg(in0) }")
    model.graph.outputs.append(model.graph.outputs[0])
    model.graph.outputs.append(model.graph.inputs[0])
    finish.name_tensors(model, specs("x:n,3"), specs("a:n,3", "b:n,3", "c:n,3"), ["in0"])
    outputs = run(model, {"x": X})
    for output, truth in zip(outputs, (-X, -X, X), strict=True):
        np.testing.assert_array_equal(output, truth)


def test_dropped_inputs_come_back_in_order() -> None:
    """Inputs that the exporter removed are inputs again, where the original has them."""
    model = graph("g (float[s1, 3] in1) => (float[s1, 3] out0) { out0 = Neg(in1) }")
    finish.name_tensors(model, specs("unused:7", "x:n,3"), specs("y:n,3"), ["in0", "in1"])
    assert [v.name for v in model.graph.inputs] == ["unused", "x"]
    np.testing.assert_array_equal(run(model, {"unused": np.zeros(7, np.float32), "x": X})[0], -X)


def test_symbols_are_renamed_inside_expressions() -> None:
    """Recorded shapes of inner values speak of our dims, also in sums and products."""
    model = graph("g (float[s1, s12] in0) => (float[s1, s12] out0) { a = Neg(in0)\n out0 = Relu(a) }")
    (inner,) = [v for n in model.graph for v in n.outputs if v.name == "a"]
    inner.shape = ir.Shape(["s1", "2*s12 + s1"])
    finish.name_tensors(model, specs("x:batch,length"), specs("y:batch,length"), ["in0"])
    assert [str(d.value) for d in inner.shape if isinstance(d, ir.SymbolicDim)] == [
        "batch",
        "2*length + batch",
    ]


def test_frozen_axes_are_seen() -> None:
    """A dim that should vary but is a number in the graph is named with its size."""
    model = graph("g (float[2, s12] in0) => (float[2, s12] out0) { out0 = Neg(in0) }")
    assert finish.frozen_axes(model, specs("x:batch,length"), ["in0"]) == {"batch": 2}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_storing_weights_once_changes_no_answer(picks: list[int]) -> None:
    """Whatever weights coincide, each is stored once, and the sum they make is the same."""
    values = [np.full((2, 3), v, np.float32) for v in (1.5, -2.0, 0.25)]
    model = graph("g (float[2, 3] x) => (float[2, 3] y) { y = Identity(x) }")
    model.graph.remove(next(iter(model.graph)), safe=False)
    total = model.graph.inputs[0]
    for i, pick in enumerate(picks):
        weight = ir.Value(name=f"w{i}", const_value=ir.tensor(values[pick].copy(), name=f"w{i}"))
        weight.type, weight.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((2, 3))
        model.graph.initializers[f"w{i}"] = weight
        node = ir.node("Add", inputs=[total, weight])
        model.graph.append(node)
        total = node.outputs[0]
    total.name, total.type, total.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape((2, 3))
    model.graph.outputs[0] = total
    finish.store_weights_once(model)
    assert len(model.graph.initializers) == len(set(picks))
    np.testing.assert_allclose(run(model, {"x": X})[0], X + sum(values[p] for p in picks), atol=1e-6)


@pytest.mark.parametrize(("rows", "files"), [(10, 1), (1200, 2)])
def test_large_weights_go_beside_the_graph(tmp_path: Path, rows: int, files: int) -> None:
    """Small models are one file; large ones keep weights in a file that can be mapped."""
    weight = np.random.default_rng(0).standard_normal((rows, 1000)).astype(np.float32)
    model = graph(f"g (float[1, {rows}] x) => (float[1, 1000] y) {{ y = MatMul(x, w) }}")
    value = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(weight.shape)
    (node,) = list(model.graph)
    node.replace_input_with(1, value)
    model.graph.initializers["w"] = value
    size_bytes = save(model, tmp_path / "g/m.onnx")
    assert len(list((tmp_path / "g").iterdir())) == files
    assert size_bytes == sum(p.stat().st_size for p in (tmp_path / "g").iterdir())
    x = np.ones((1, rows), np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "g/m.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, rtol=1e-4, atol=1e-4)
