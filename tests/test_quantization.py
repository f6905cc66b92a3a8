"""Quantization of products and tables: weights, ranges of each run, smoothing, and heads tied to tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.errors import InputError
from infer.optimizer.quantization import dynamic, static
from infer.optimizer.quantization.halves import halve
from infer.optimizer.quantization.smoothing import channel_maxima, smooth
from infer.optimizer.quantization.weights import quantize_weight
from infer.optimizer.recipes import ON_CPU, Given, static_products_recipe
from infer.optimizer.rewriting import weight
from infer.signature import Array
from tests.test_passes import answers, loaded, operators
from tests.tiny import parse


@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 2**31), st.booleans())
def test_weights_are_within_half_a_step(channels: int, rows: int, seed: int, pair_bounded: bool) -> None:
    """Of each channel's own scale, along either axis; bounded ones cannot saturate 16 bits."""
    weight = np.random.default_rng(seed).standard_normal((rows, channels)).astype(np.float32)
    found = quantize_weight(weight, 1, pair_bounded=pair_bounded)
    assert found.values.dtype == np.int8
    assert found.scale.shape == (channels,)
    assert (np.abs(found.values * found.scale - weight) <= 0.501 * found.scale).all()
    across = quantize_weight(weight.T, 0, pair_bounded=pair_bounded)
    np.testing.assert_array_equal(across.values.T, found.values)
    pairs = np.abs(found.values.astype(int))
    worst = np.sort(pairs, axis=0)[-2:].sum(axis=0) * 255
    assert worst.max() <= 32767 or not pair_bounded


def test_a_channel_of_zeros_has_a_scale() -> None:
    """Not 0, which nothing can be divided by."""
    found = quantize_weight(np.zeros((4, 2), np.float32), 1, pair_bounded=True)
    assert (found.values == 0).all()
    assert (found.scale > 0).all()


def product(columns: int = 64, *, gemm: bool = False) -> ir.Model:
    """`x` [B, 64] · W (+ b)."""
    body = "y = Gemm<transB = 1>(x, w, b)" if gemm else "m = MatMul(x, w) y = Add(m, b)"
    model = parse(f"g (float[B, 64] x) => (float[B, {columns}] y) {{ {body} }}", opset=21, ir_version=10)
    rng = np.random.default_rng(0)
    shape = (columns, 64) if gemm else (64, columns)
    for name, size in (("w", shape), ("b", (columns,))):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), name)
        )
    return loaded(model)


@pytest.mark.parametrize("gemm", [True, False])
def test_dynamic_products_stay_near(gemm: bool, tmp_path: Path) -> None:
    """Within 2 % of the largest answer, for MatMul and Gemm; the weights take a quarter."""
    before, after = product(gemm=gemm), product(gemm=gemm)
    result = dynamic.quantize_dynamically(after, pair_bounded=True)
    assert (result.found, result.rewritten) == (1, 1)
    assert "MatMulInteger" in operators(after)
    feeds = {"x": np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)}
    expected = answers(before, tmp_path / "a.onnx", feeds)["y"]
    found = answers(after, tmp_path / "b.onnx", feeds)["y"]
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.02
    large = [v for v in after.graph.initializers.values() if v.const_value is not None]
    assert max(v.const_value.nbytes for v in large if v.const_value) == 64 * 64


def test_smoothing_keeps_the_numbers_and_helps_outliers(tmp_path: Path) -> None:
    """In float nothing changes; with one channel fifty times the others, the error of int8 is less than
    half of what it was."""
    rng = np.random.default_rng(5)

    def feeds() -> dict[str, Array]:
        x = rng.standard_normal((6, 64)).astype(np.float32)
        x[:, 7] *= 50
        return {"x": x}

    plain, smoothed, rough = product(), product(), product()
    calibration, judged = [feeds() for _ in range(8)], feeds()
    smooth(
        smoothed,
        dynamic.candidates(smoothed),
        lambda names: channel_maxima(smoothed, names, calibration),
        0.5,
    )
    expected = answers(plain, tmp_path / "a.onnx", judged)["y"]
    np.testing.assert_allclose(
        answers(smoothed, tmp_path / "b.onnx", judged)["y"], expected, rtol=1e-4, atol=1e-3
    )
    errors = []
    for model in (rough, smoothed):
        dynamic.quantize_dynamically(model, pair_bounded=True)
        found = answers(model, tmp_path / "c.onnx", judged)["y"]
        errors.append(float(np.sqrt(np.mean((found - expected) ** 2))))
    assert errors[1] < 0.5 * errors[0]


def two_products() -> ir.Model:
    """`y` of a norm's output through two products that share it, a Gemm and a MatMul."""
    body = "h = Tanh(x) a = Gemm(h, w, b) m = MatMul(h, v) s = Add(a, m) y = Softmax(s)"
    model = parse(f"g (float[B, 64] x) => (float[B, 64] y) {{ {body} }}", opset=21, ir_version=10)
    rng = np.random.default_rng(0)
    for name, size in (("w", (64, 64)), ("v", (64, 64)), ("b", (64,))):
        value = rng.standard_normal(size).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    found = loaded(model)
    for node in found.graph:
        node.name = node.op_type
    return found


def skewed(count: int, seed: int) -> list[dict[str, Array]]:
    """One channel is fifty times the others."""
    rng = np.random.default_rng(seed)
    found = [rng.standard_normal((6, 64)).astype(np.float32) / 50 for _ in range(count)]
    for x in found:
        x[:, 7] *= 50
    return [{"x": x} for x in found]


@pytest.mark.parametrize("spared", [(), ("MatMul",)])
def test_products_with_fixed_ranges(spared: tuple[str, ...], tmp_path: Path) -> None:
    """What goes into products is quantized, smoothed or not, and nothing else is; smoothed ones are nearer.
    What is observed has the same names whichever product is spared, since its values are the same, too."""
    errors = {}
    feeds = skewed(1, 9)[0]
    expected = answers(two_products(), tmp_path / "a.onnx", feeds)["y"]
    for how in ("as they come", "smoothed by 0.5"):
        model = two_products()
        given = Given(skewed(8, 0), pair_bounded=True)
        recipe = static_products_recipe("products")
        result = recipe.build(model, given, f"extremes, activations {how}", spared)
        assert (result.found, result.rewritten) == (2, 2 - len(spared))
        kinds = operators(model)
        assert kinds.count("QuantizeLinear") == 1
        assert kinds.count("DequantizeLinear") == 3 - len(spared)
        assert kinds.count("MatMul") == 2
        assert list(given._seen) == ["h" if how == "as they come" else "h_smoothed_0.5"]
        found = answers(model, tmp_path / "b.onnx", feeds)["y"]
        errors[how] = float(np.abs(found - expected).max())
    assert 0 < errors["smoothed by 0.5"] < 0.7 * errors["as they come"]


def test_a_product_of_two_weights_is_not_smoothed() -> None:
    """It has no activations, whose channels could be evened out."""
    model = product()
    node = model.graph[0]
    node.replace_input_with(0, weight(model.graph, "rows", np.ones((6, 64), np.float32)))

    def maxima(names: Sequence[str]) -> dict[str, Array]:
        assert not names
        return {}

    smooth(model, [node], maxima, 0.5)
    assert operators(model) == ["MatMul", "Add"]


def test_a_product_of_two_weights_has_no_fixed_range() -> None:
    """Nothing of it comes from a feed, so calibration cannot see it."""
    proto = parse(
        "g (float[N, 64] x) => (float[N, 64] y) { a = MatMul(v, w) h = MatMul(x, a) y = MatMul(h, w) }"
    )
    for seed, name in enumerate("vw"):
        values = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    model = loaded(proto)
    assert static.candidates(model) == [model.graph[2]]
    given = Given(skewed(4, 0), pair_bounded=True)
    result = static_products_recipe("products").build(
        model, given, "extremes, activations as they come", ()
    )
    assert (result.found, result.rewritten) == (1, 1)


def test_small_products_and_named_ones_stay_in_float() -> None:
    """Quantizing the input of a small one takes longer than it; a search names those that lose too much."""
    small = product(columns=8)
    assert dynamic.quantize_dynamically(small, pair_bounded=True).found == 0
    named = product()
    (name,) = [node.name for node in dynamic.candidates(named)]
    assert name is not None
    result = dynamic.quantize_dynamically(named, [name], pair_bounded=True)
    assert (result.found, result.rewritten) == (1, 0)
    assert dict(result.declined) == {"kept in float for accuracy": 1}


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_in_what_is_smoothed_is_refused(wrong: float) -> None:
    """In the same words: a channel's largest value cannot be NaN or infinite."""
    feeds = skewed(3, 0)
    feeds[1]["x"][2, 5] = wrong
    with pytest.raises(
        InputError, match="calibration input 2 gives NaN or infinity at 'x', which no range"
    ):
        channel_maxima(product(), ["x"], feeds)


def test_weights_of_half_precision_answer_nearly_the_same(tmp_path: Path) -> None:
    """The file has half the size; what does not fit 16 bits stays."""
    proto = parse(
        "g (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w) b = MatMul(a, v) y = Add(b, c) }",
        opset=20,
        ir_version=9,
    )
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal((64, 64)).astype(np.float32) / 8 for _ in range(2))
    v[0, 0] = 1e6
    for name, array in {"w": w, "v": v, "c": np.ones(64, np.float32)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    before, after = loaded(proto), loaded(proto)
    result = halve(after)
    assert (result.found, result.rewritten) == (2, 1)
    assert list(result.declined) == ["its values do not fit half precision"]
    assert operators(after) == ["Cast", "MatMul", "MatMul", "Add"]
    feeds = {"x": rng.standard_normal((3, 64)).astype(np.float32)}
    expected = answers(before, tmp_path / "a.onnx", feeds)["y"]
    found = answers(after, tmp_path / "b.onnx", feeds)["y"]
    scale = np.abs(expected).max()
    assert 0 < np.abs(found - expected).max() < 2**-10 * scale
    saved = (tmp_path / "a.onnx").stat().st_size - (tmp_path / "b.onnx").stat().st_size
    assert abs(saved - 64 * 64 * 2) < 300


def tied_head() -> ir.Model:
    """A lookup in a table, a norm's stand-in, and the product with the same table turned."""
    body = "e = Gather(table, ids) h = Tanh(e) t = Transpose<perm = [1, 0]>(table) y = MatMul(h, t)"
    model = parse(f"g (int64[B] ids) => (float[B, 96] y) {{ {body} }}", opset=21, ir_version=10)
    table = np.random.default_rng(3).standard_normal((96, 64)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    found = loaded(model)
    for node in found.graph:
        node.name = node.op_type
    return found


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("int8-dynamic", "as they come"),
        ("int8-dynamic", "smoothed by 0.5"),
        ("products", "extremes, activations as they come"),
        ("products", "extremes, activations smoothed by 0.5"),
        ("int8-weights", "as they are"),
        ("int4-weights", "as they are"),
    ],
)
def test_a_head_that_is_its_table_turned_is_quantized(name: str, way: str, tmp_path: Path) -> None:
    """By every recipe for products: the answers stay near, no float is multiplied with, and the table is
    kept as it is for lookups, once."""
    before, after = tied_head(), tied_head()
    recipes = {recipe.name: recipe for recipe in (*ON_CPU, static_products_recipe("products"))}
    recipe = recipes[name]
    ids = np.arange(96, dtype=np.int64)
    (product,) = recipe.candidates(after)
    assert product.op_type == "MatMul"
    result = recipe.build(after, Given([{"ids": ids}], pair_bounded=True), way, ())
    assert (result.found, result.rewritten) == (1, 1)
    assert "Transpose" not in operators(after)
    kept = [value.const_value for value in after.graph.initializers.values()]
    floats = [t for t in kept if t is not None and t.dtype == ir.DataType.FLOAT and t.size >= 96 * 64]
    assert [tuple(tensor.shape) for tensor in floats] == [(96, 64)]
    expected = answers(before, tmp_path / "a.onnx", {"ids": ids})["y"]
    found = answers(after, tmp_path / "b.onnx", {"ids": ids})["y"]
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < (0.1 if "int4" in name else 0.02)


def test_a_tied_head_that_is_spared_keeps_its_table() -> None:
    """Nothing changes but what is said of it; once the head has eight bits, the table may, too."""
    spared, whole = tied_head(), tied_head()
    recipe = next(recipe for recipe in ON_CPU if recipe.name == "int8-dynamic-tables")
    product, _ = recipe.candidates(spared)
    given = Given([], pair_bounded=True)
    assert product.name is not None
    result = recipe.build(spared, given, "as they come", [product.name])
    assert dict(result.declined)["kept in float for accuracy"] == 1
    assert dict(result.declined)["the table is a matrix as well, which would be kept twice"] == 1
    assert "Transpose" in operators(spared)
    result = recipe.build(whole, given, "as they come", ())
    assert (result.found, result.rewritten) == (2, 2)
    kept = [value.const_value for value in whole.graph.initializers.values()]
    assert all(t is not None and (t.dtype != ir.DataType.FLOAT or t.size <= 96) for t in kept)
