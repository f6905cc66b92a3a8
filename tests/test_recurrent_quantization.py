"""Recurrent layers in int8: what they answer, what stays as it is, and what may saturate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from infer.manifest import Saturation
from infer.optimizer.quantization import recurrent
from infer.optimizer.quantization.saturation import saturation
from infer.signature import Array
from tests.test_passes import answers, loaded, operators

INPUTS, HIDDEN = 40, 64


def layer(
    *,
    directions: int = 1,
    states: bool = True,
    layout: int = 0,
    op_type: str = "LSTM",
    hidden: int = HIDDEN,
) -> ir.Model:
    """`x` [L, B, INPUTS] through one layer to `y`, and to the last state `h` of each direction."""
    rng = np.random.default_rng(0)
    gates = {"LSTM": 4, "GRU": 3}[op_type] * hidden

    def of(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(hidden)).astype(np.float32)

    weights = {
        "w": of(directions, gates, INPUTS),
        "r": of(directions, gates, hidden),
        "b": of(directions, 2 * gates),
    }
    inputs = ["x", "w", "r", "b"]
    graph_inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["L", "B", INPUTS])]
    if states and op_type == "LSTM":
        inputs += ["", "h0", "c0"]
        graph_inputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [directions, "B", hidden])
            for name in ("h0", "c0")
        ]
    node = helper.make_node(
        op_type,
        inputs,
        ["y", "h"],
        name="layer",
        hidden_size=hidden,
        direction="bidirectional" if directions == 2 else "forward",
        **({"layout": layout} if layout else {}),
    )
    graph = helper.make_graph(
        [node],
        "g",
        graph_inputs,
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["L", directions, "B", hidden]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [directions, "B", hidden]),
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return loaded(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def feeds(directions: int, states: bool, seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    found = {"x": rng.standard_normal((7, 3, INPUTS)).astype(np.float32)}
    if states:
        found |= {
            name: rng.standard_normal((directions, 3, HIDDEN)).astype(np.float32) for name in ("h0", "c0")
        }
    return found


@pytest.mark.parametrize(("directions", "states"), [(1, True), (1, False), (2, True)])
def test_answers_stay_near(directions: int, states: bool, tmp_path: Path) -> None:
    """Every output within 3 % in the mean, with and without first states, in both directions; nothing can
    saturate, which on AVX2 would make the largest error 29 %."""
    before, after = (layer(directions=directions, states=states) for _ in range(2))
    result = recurrent.quantize_recurrent(after, pair_bounded=True)
    assert (result.found, result.rewritten) == (1, 1)
    assert operators(after) == ["DynamicQuantizeLSTM"]
    given = feeds(directions, states)
    expected = answers(before, tmp_path / "a.onnx", given)
    found = answers(after, tmp_path / "b.onnx", given)
    for name, array in expected.items():
        error = np.sqrt(np.mean((found[name] - array) ** 2) / np.mean(array**2))
        assert 0 < error < 0.03, name
    assert saturation(after, [given]) == Saturation()


def test_what_may_saturate_is_counted() -> None:
    """In every channel of both matrices and directions whose two largest weights are large enough."""
    model = layer(directions=2)
    recurrent.quantize_recurrent(model, pair_bounded=False)
    found = 0
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.INT8 and value.name:
            array = np.abs(value.const_value.numpy().astype(int))
            if array.ndim == 3:
                found += int((np.sort(array, axis=1)[:, -2:].sum(axis=1) * 255 > 32767).sum())
    # nobody sees what is multiplied inside
    assert found
    assert saturation(model, [feeds(2, False)]) == Saturation(found, found, 1)


def test_weights_take_a_quarter() -> None:
    """Of what they took: nothing of the float ones is left."""
    model = layer()
    recurrent.quantize_recurrent(model, pair_bounded=True)
    sizes = {name: v.const_value.nbytes for name, v in model.graph.initializers.items() if v.const_value}
    assert sum(size for name, size in sizes.items() if name.endswith("_int8")) == 4 * HIDDEN * (
        INPUTS + HIDDEN
    )
    assert not {"w", "r"} & set(sizes)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        pytest.param(layer(op_type="GRU"), 0, id="no kernel"),
        pytest.param(layer(layout=1), 0, id="rows first"),
        pytest.param(layer(hidden=8), 0, id="small"),
        pytest.param(layer(), 1, id="kept"),
    ],
)
def test_others_stay_as_they_are(model: ir.Model, found: int) -> None:
    """A GRU, a layer whose rows come first, a small one, and one that a search names."""
    before = operators(model)
    result = recurrent.quantize_recurrent(model, ["layer"], pair_bounded=True)
    assert (result.found, result.rewritten) == (found, 0)
    assert operators(model) == before
    assert dict(result.declined) == ({"kept in float for accuracy": 1} if found else {})
