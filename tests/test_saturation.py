"""Products of int8 that overflow where two of them add up in 16 bits."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.manifest import Saturation
from infer.optimizer.quantization import dynamic, static
from infer.optimizer.quantization.calibration import observe
from infer.optimizer.quantization.saturation import saturation
from infer.signature import Array
from tests.test_passes import loaded
from tests.test_static_quantization import convolutions, pictures
from tests.tiny import parse


def product(matrix: Array, body: str = "r = Relu(x) y = MatMul(r, w)") -> ir.Model:
    """`x` [N, rows of the matrix], as `body` says, in int8."""
    rows, columns = matrix.shape
    model = parse(f"g (float[N, {rows}] x) => (float[N, {columns}] y) {{ {body} }}", opset=20, ir_version=9)
    model.graph.initializer.append(onnx.numpy_helper.from_array(matrix, "w"))
    found = loaded(model)
    assert dynamic.quantize_dynamically(found, pair_bounded=False).rewritten
    return found


def int8_of(model: ir.Model) -> Array:
    """The weights of its only product."""
    arrays = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None]
    (found,) = (array for array in arrays if array.dtype == np.int8)
    return np.asarray(found, np.int64)


def wrong_sums(weights: Array, rows: Array) -> int:
    """Channels in which some two products of some row do not fit 16 bits, tried one by one."""
    found = set()
    for row in rows.astype(np.int64):
        for column in range(weights.shape[1]):
            products = np.sort(row * weights[:, column])
            found |= {column} if products[-2:].sum() > 32767 or products[:2].sum() < -32768 else set()
    return len(found)


@given(st.integers(0, 2**31), st.sampled_from((0.02, 0.2, 1.0)))
def test_no_overflow_is_missed(seed: int, others: float) -> None:
    """Of all pairs of the inputs that calibration saw; and what it saw is no more than what is possible."""
    rng = np.random.default_rng(seed)
    x = np.abs(rng.standard_normal((9, 64))).astype(np.float32)
    x[:, 1:] *= others
    model = product(rng.standard_normal((64, 64)).astype(np.float32))
    found = saturation(model, [{"x": row[None]} for row in x])
    # a scale for each run, which is a row here
    rows = np.rint(255 * x / x.max(axis=1, keepdims=True))
    assert wrong_sums(int8_of(model), rows) <= found.seen <= found.possible <= 64
    whole = saturation(model, [{"x": np.ones((1, 64), np.float32)}])  # as large as can be, everywhere
    assert whole == Saturation(found.possible, found.possible, 1)


def test_what_calibration_never_saw_is_told_from_what_can_be() -> None:
    """Weights that are all alike overflow with two large inputs, which are not there when one is alone."""
    model = product(np.full((64, 80), 0.5, np.float32))
    alone, two = np.zeros((1, 64), np.float32), np.zeros((1, 64), np.float32)
    alone[0, 5] = two[0, 5] = two[0, 60] = 3.0
    assert saturation(model, [{"x": alone}]) == Saturation(80, 0, 1)
    assert saturation(model, [{"x": alone}, {"x": two}]) == Saturation(80, 80, 2)


@pytest.mark.parametrize("pair_bounded", [True, False])
def test_convolutions_and_products_are_counted(pair_bounded: bool) -> None:
    """None if their weights were bounded; else as many as an own count of the int8 weights says, and the
    pictures that ranges are from reach most of them."""
    model = convolutions()
    seen = pictures(4, 0)
    static.quantize_statically(
        model, lambda names: observe(model, names, seen), "extremes", pair_bounded=pair_bounded
    )
    found = saturation(model, seen)
    expected = 0
    for value in model.graph.initializers.values():
        array = None if value.const_value is None else value.const_value.numpy()
        if array is not None and array.dtype == np.int8 and array.ndim > 1:
            rows = np.sort(np.abs(array.astype(int)).reshape(len(array), -1), axis=1)
            expected += int((255 * rows[:, -2:].sum(axis=1) > 32767).sum())
    assert found.possible == expected
    assert (expected == 0) == pair_bounded
    assert 0 <= found.seen <= expected
    assert found.seen > 0.5 * expected or pair_bounded
    assert saturation(model, [{}]).seen == expected  # nothing is seen of what does not run


@pytest.mark.parametrize("loud", [0, 1])
def test_groups_have_inputs_of_their_own(loud: int) -> None:
    """Of two groups of four outputs, only those can overflow whose inputs are large."""
    body = "r = Relu(x) y = Conv<group = 2>(r, w)"
    proto = parse(f"g (float[N, 4, 5, 5] x) => (float[N, 8, 5, 5] y) {{ {body} }}", opset=20, ir_version=9)
    weights = np.full((8, 2, 1, 1), 0.5, np.float32)
    weights[7] = 0.0  # a channel of the second group that cannot
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    model, x = loaded(proto), np.full((1, 4, 5, 5), 0.1, np.float32)
    x[:, 2 * loud : 2 * loud + 2] = 1.0
    static.quantize_statically(
        model, lambda names: observe(model, names, [{"x": x}]), "extremes", pair_bounded=False
    )
    assert saturation(model, [{"x": x}]) == Saturation(7, 4 - loud, 1)


@pytest.mark.parametrize("padded", [True, False])
def test_padding_is_multiplied_too(padded: bool) -> None:
    """It stands for zero, and where that lies above all that a channel holds, it is the larger factor: half
    of the range here, where the first channel has its end and the second only what is below zero."""
    pads = "<pads = [1, 1, 1, 1]>" if padded else ""
    proto = parse(
        f"g (float[N, 2, 5, 5] x) => (float[N, 1, A, B] y) {{ y = Conv{pads}(x, w) }}",
        opset=20,
        ir_version=9,
    )
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.full((1, 2, 3, 3), 0.5, np.float32), "w")
    )
    model, x = loaded(proto), np.full((1, 2, 5, 5), -1.0, np.float32)
    x[:, 0, 2, 2] = 1.0
    static.quantize_statically(
        model, lambda names: observe(model, names, [{"x": x}]), "extremes", pair_bounded=False
    )
    x[:, 0, 2, 2] = -0.9
    assert saturation(model, [{"x": x}]) == Saturation(1, 0, 1)
    x[:, 0, 2, 2] = 1.0
    assert saturation(model, [{"x": x}]) == Saturation(1, 1, 1)
