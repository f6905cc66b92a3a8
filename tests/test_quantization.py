"""Quantization: scales that cannot saturate, ranges, and answers that stay near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.errors import InputError
from infer.optimizer.quantization import dynamic, static
from infer.optimizer.quantization.calibration import METHODS, ActivationRange, Observed, observe
from infer.optimizer.quantization.folding import fold_scales
from infer.optimizer.quantization.halves import halve
from infer.optimizer.quantization.smoothing import channel_maxima, smooth
from infer.optimizer.quantization.weights import quantize_weight
from infer.optimizer.recipes import ON_CPU, Given, static_products_recipe
from infer.optimizer.rewriting import constant, weight
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


def convolutions() -> ir.Model:
    """Two convolutions with a residual between them, as in a ResNet: `x` [B, 3, H, W] to `y` [B, 10]."""
    model = parse(
        "g (float[B, 3, H, W] x) => (float[B, 10] y) {"
        " c1 = Conv<pads = [1,1,1,1]>(x, w1, b1) r1 = Relu(c1)"
        " c2 = Conv<pads = [1,1,1,1]>(r1, w2, b2) s = Add(c2, r1) r2 = Relu(s)"
        " p = GlobalAveragePool(r2) f = Flatten(p) y = Gemm<transB = 1>(f, w3, b3) }",
        opset=21,
        ir_version=10,
    )
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (10, 8), "b3": (10,)}
    for name, shape in shapes.items():
        array = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return loaded(model)


def pictures(count: int, seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 9, 7)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("method", list(METHODS))
def test_static_convolutions_stay_near(method: str, signed: bool, tmp_path: Path) -> None:
    """On pictures that calibration did not see, the cosine is above 0.999, but for ranges by entropy, which
    clip more than is best for the products; every heavy node is quantized, and the Relus are gone. Where
    it is told, what can be negative has steps to both sides alike, and what cannot has none there."""
    before, after = convolutions(), convolutions()
    result = static.quantize_statically(
        after,
        lambda tensors: observe(after, tensors, pictures(8, 0)),
        method,
        pair_bounded=True,
        signed=signed,
    )
    assert (result.found, result.rewritten) == (3, 3)
    assert "Relu" not in operators(after)
    zeros = {}
    for node in after.graph:
        if node.op_type == "QuantizeLinear":
            assert node.inputs[0] is not None
            zeros[node.inputs[0].name] = constant(node.inputs[2])
    both_sides = {name for name, zero in zeros.items() if zero is not None and zero.dtype == np.int8}
    assert both_sides == ({"x", "c2"} if signed else set())
    assert signed == (zeros["x"] == 0)
    for feeds in pictures(4, 1):
        expected = answers(before, tmp_path / "a.onnx", feeds)["y"].ravel()
        found = answers(after, tmp_path / "b.onnx", feeds)["y"].ravel()
        cosine = expected @ found / np.linalg.norm(expected) / np.linalg.norm(found)
        assert (0.99 if method == "entropy" else 0.999) < cosine < 1


def test_transposed_convolutions_are_quantized_where_it_is_told(tmp_path: Path) -> None:
    """Two taps a side with a stride of two, as in a U-Net: each output gets one tap, and what rounding
    takes from it in the mean is given back, so that the errors of a channel cancel out."""

    def model() -> ir.Model:
        body = "y = ConvTranspose<strides = [2,2]>(x, w, b)"
        text = f"g (float[B, 3, H, W] x) => (float[B, 8, P, Q] y) {{ {body} }}"
        found = parse(text, opset=21, ir_version=10)
        rng = np.random.default_rng(1)
        for name, shape in (("w", (3, 8, 2, 2)), ("b", (8,))):
            array = (rng.standard_normal(shape) * 0.3).astype(np.float32)
            found.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return loaded(found)

    def shifted(count: int, seed: int) -> list[dict[str, Array]]:
        return [{"x": each["x"] + 2} for each in pictures(count, seed)]

    before, after = model(), model()
    assert static.quantize_statically(model(), partial(_told, {}), "extremes", pair_bounded=True).found == 0
    result = static.quantize_statically(
        after,
        lambda names: observe(after, names, shifted(8, 0)),
        "extremes",
        pair_bounded=True,
        transposed=True,
    )
    assert (result.found, result.rewritten) == (1, 1)
    errors = []
    for feeds in shifted(8, 1):
        expected = answers(before, tmp_path / "a.onnx", feeds)["y"]
        found = answers(after, tmp_path / "b.onnx", feeds)["y"]
        a, b = expected.ravel(), found.ravel()
        assert a @ b > 0.999 * np.linalg.norm(a) * np.linalg.norm(b)
        errors.append(found - expected)
    off = np.stack(errors).mean(axis=(0, 1, 3, 4))
    assert np.abs(off).max() < 0.2 * np.abs(np.stack(errors)).mean()


def joined(last: str) -> ir.Model:
    """Two convolutions, of which one gives larger values, concatenated twice and halved."""
    body = (
        "a = Conv<pads = [1,1,1,1]>(x, w1) b = Conv<pads = [1,1,1,1]>(a, w2) c = Concat<axis = 1>(a, b)"
        " d = Concat<axis = 1>(c, b) e = MaxPool<kernel_shape = [2,2], strides = [2,2]>(d)"
    )
    shapes = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 12, 1, 1), "s": (1, 12, 1, 1)}
    return of_pictures(f"{body} {last}", shapes, {"w2": 0.6})


def of_pictures(body: str, shapes: dict[str, tuple[int, ...]], sizes: dict[str, float]) -> ir.Model:
    """`x` [B, 3, H, W] to `y` of four channels; weights have these shapes, and are 0.3 large or as told."""
    text = f"g (float[B, 3, H, W] x) => (float[B, 4, P, Q] y) {{ {body} }}"
    model = parse(text, opset=21, ir_version=10)
    rng = np.random.default_rng(1)
    for name, shape in shapes.items():
        array = (rng.standard_normal(shape) * sizes.get(name, 0.3)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return loaded(model)


@pytest.mark.parametrize(
    ("last", "step_by_step", "pairs", "scales"),
    [
        ("y = Conv(e, w3)", True, 6, 2),
        ("y = Conv(e, w3)", False, 3, 1),
        ("f = Mul(e, s) y = Conv(f, w3)", False, 4, 2),
    ],
)
def test_what_is_moved_about_is_rounded_once(
    last: str, step_by_step: bool, pairs: int, scales: int, tmp_path: Path
) -> None:
    """By a library that finds out: tensors that come together into one convolution have the same steps
    then, and those that come into anything else keep their own. Another is told the steps after each
    node."""
    before, after = joined(last), joined(last)
    result = static.quantize_statically(
        after,
        lambda names: observe(after, names, pictures(8, 0)),
        "extremes",
        pair_bounded=False,
        step_by_step=step_by_step,
    )
    assert result.rewritten == 3
    down = [node for node in after.graph if node.op_type == "QuantizeLinear"]
    moved = [n for n in down if n.inputs[0] is not None and n.inputs[0].name in ("c", "d", "e")]
    assert (len(down), len(moved)) == (pairs, 3 if step_by_step else 0)
    steps = {}
    for node in down:
        assert node.inputs[0] is not None
        assert node.inputs[1] is not None
        assert node.inputs[1].const_value is not None
        steps[node.inputs[0].name] = float(node.inputs[1].const_value.numpy())
    assert len({steps["a"], steps["b"]}) == scales
    for feeds in pictures(8, 0):
        expected = answers(before, tmp_path / "a.onnx", feeds)["y"].ravel()
        found = answers(after, tmp_path / "b.onnx", feeds)["y"].ravel()
        assert expected @ found > 0.998 * np.linalg.norm(expected) * np.linalg.norm(found)


def test_a_relu_whose_steps_go_below_zero_stays(tmp_path: Path) -> None:
    """What comes together with something negative has its steps, which do not end where a Relu does."""
    body = (
        "a = Conv<pads = [1,1,1,1]>(x, w1) b = Relu(a) c = Conv<pads = [1,1,1,1]>(x, w2)"
        " d = Concat<axis = 1>(b, c) y = Conv(d, w3)"
    )
    shapes = {"w1": (4, 3, 3, 3), "w2": (4, 3, 3, 3), "w3": (4, 8, 1, 1)}
    before, after = (of_pictures(body, shapes, {}) for _ in range(2))
    static.quantize_statically(
        after,
        lambda names: observe(after, names, pictures(8, 0)),
        "extremes",
        pair_bounded=False,
        step_by_step=False,
        signed=True,
    )
    assert operators(after).count("Relu") == 1
    for feeds in pictures(4, 1):
        expected = answers(before, tmp_path / "a.onnx", feeds)["y"].ravel()
        found = answers(after, tmp_path / "b.onnx", feeds)["y"].ravel()
        assert expected @ found > 0.998 * np.linalg.norm(expected) * np.linalg.norm(found)


def test_a_clip_that_ends_below_the_common_range_stays(tmp_path: Path) -> None:
    """What comes together with larger values has their range, which does not end where it clips."""

    def model() -> ir.Model:
        body = (
            "a = Conv<pads = [1,1,1,1]>(x, w1) low = Constant<value = float {0.0}>()"
            " high = Constant<value = float {0.5}>() b = Clip(a, low, high)"
            " c = Conv<pads = [1,1,1,1]>(x, w2) d = Relu(c) e = Concat<axis = 1>(b, d) y = Conv(e, w3)"
        )
        text = f"g (float[B, 3, H, W] x) => (float[B, 4, P, Q] y) {{ {body} }}"
        found = parse(text, opset=21, ir_version=10)
        rng = np.random.default_rng(1)
        for name, shape in (("w1", (4, 3, 3, 3)), ("w2", (4, 3, 3, 3)), ("w3", (4, 8, 1, 1))):
            array = rng.standard_normal(shape).astype(np.float32)
            found.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return loaded(found)

    for step_by_step, clips in ((True, 0), (False, 1)):
        before, after = model(), model()
        static.quantize_statically(
            after,
            lambda names, after=after: observe(after, names, pictures(8, 0)),
            "extremes",
            pair_bounded=False,
            step_by_step=step_by_step,
        )
        assert sum(node.op_type == "Clip" for node in after.graph) == clips
        for feeds in pictures(8, 0):
            expected = answers(before, tmp_path / "a.onnx", feeds)["y"].ravel()
            found = answers(after, tmp_path / "b.onnx", feeds)["y"].ravel()
            assert expected @ found > 0.998 * np.linalg.norm(expected) * np.linalg.norm(found)


@pytest.mark.parametrize(
    ("scaling", "left"),
    [
        ("y = Mul(a, s)", 0),
        ("y = Mul(c, a)", 0),
        ("m = Mul(a, s) y = Add(m, a)", 1),
        ("y = Mul(a, w)", 1),
        ("y = Mul(a, a)", 1),
        ("y = Mul(a, d)", 1),
        ("z = Mul(a, e) f = Constant<value = int64[4] {-1, 4, 6, 6}>() y = Reshape(z, f)", 1),
        ("y = BatchNormalization<epsilon = 0.1>(a, g, h, u, v)", 0),
        ("n = BatchNormalization(a, g, h, u, v) y = Mul(n, s)", 0),
        ("n = Relu(a) y = BatchNormalization(n, g, h, u, v)", 1),
        ("n = BatchNormalization(a, g, h, u, v) y = Add(n, a)", 1),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_scales_behind_a_convolution_become_its_weights(
    scaling: str, left: int, bias: bool, tmp_path: Path
) -> None:
    """One number, or one for each channel, on either side; not where the product is also used unscaled, nor
    by numbers of another kind. So do batch norms. The answer keeps its name."""

    def model() -> ir.Model:
        body = f"a = Conv<pads = [1,1,1,1]>(x, k{', b' if bias else ''}) {scaling}"
        found = parse(f"g (float[B, 3, 6, 6] x) => (float[B, 4, 6, 6] y) {{ {body} }}", opset=21)
        rng = np.random.default_rng(1)
        shapes = {"k": (4, 3, 3, 3), "b": (4,), "s": (), "c": (1, 4, 1, 1), "w": (6,)}
        shapes |= {"d": (2, 4, 1, 1), "e": (1, 1, 4, 1, 1), "g": (4,), "h": (4,), "u": (4,), "v": (4,)}
        for name, shape in shapes.items():
            array = np.asarray(rng.standard_normal(shape), np.float32)
            array = np.abs(array) + 0.1 if name == "v" else array
            found.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return loaded(found)

    before, after = model(), model()
    fold_scales(after)
    assert sum(node.op_type in ("Mul", "BatchNormalization") for node in after.graph) == left
    feeds = {"x": np.random.default_rng(2).standard_normal((2, 3, 6, 6)).astype(np.float32)}
    expected = answers(before, tmp_path / "a.onnx", feeds)["y"]
    found = answers(after, tmp_path / "b.onnx", feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("activation", "ran_as"),
    [
        ("s = Sigmoid(a) b = Mul(a, s)", ["QLinearMul", "QLinearSigmoid"]),
        ("b = LeakyRelu<alpha = 0.1>(a)", ["QLinearLeakyRelu"]),
        ("b = HardSwish(a)", []),
        ("b = Elu(a)", ["Elu"]),
    ],
)
def test_a_convolution_before_an_activation_in_float_has_eight_bits(
    activation: str, ran_as: list[str], tmp_path: Path
) -> None:
    """As in EfficientNet and MobileNetV3: ONNX Runtime computes products of integers only if what comes out
    has eight bits, too."""
    body = f"a = Conv<pads = [1,1,1,1]>(x, w1) {activation} c = Conv(b, w2) y = Relu(c)"
    before, after = (of_pictures(body, {"w1": (4, 3, 3, 3), "w2": (4, 4, 1, 1)}, {}) for _ in range(2))
    static.quantize_statically(
        after, lambda names: observe(after, names, pictures(8, 0)), "extremes", pair_bounded=False
    )
    for feeds in pictures(4, 1):
        expected = answers(before, tmp_path / "a.onnx", feeds)["y"].ravel()
        found = answers(after, tmp_path / "b.onnx", feeds)["y"].ravel()
        assert expected @ found > 0.998 * np.linalg.norm(expected) * np.linalg.norm(found)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "b.onnx"), options)
    ran = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ran.count("QLinearConv") == 1
    assert set(ran_as) <= set(ran)
    assert sum(ran.count(each) for each in ("Conv", "FusedConv")) == 1  # the last one gives the answer


def test_a_product_gives_floats_to_what_takes_floats() -> None:
    """ONNX Runtime computes it on integers all the same, and the bias behind it is not rounded before."""
    body = (
        "a = Conv<pads = [1,1,1,1]>(x, w1) b = Transpose<perm = [0,2,3,1]>(a) m = MatMul(b, w2)"
        " n = Add(m, v) g = Elu(n) y = Transpose<perm = [0,3,1,2]>(g)"
    )
    after = of_pictures(body, {"w1": (4, 3, 3, 3), "w2": (4, 4), "v": (4,)}, {})
    static.quantize_statically(
        after, lambda names: observe(after, names, pictures(8, 0)), "extremes", pair_bounded=False
    )
    product = next(node for node in after.graph if node.op_type == "MatMul")
    assert [user.op_type for user, _ in product.outputs[0].uses()] == ["Add"]


@pytest.mark.parametrize("size", [1e-9, 0.0])
def test_a_bias_beside_tiny_weights_is_kept(size: float, tmp_path: Path) -> None:
    """As of channels that a batch norm turned off: steps as small as their weights would be more than an
    integer holds."""
    before, after = (
        of_pictures("a = Conv<pads = [1,1,1,1]>(x, w1, b1) b = Relu(a) y = Conv(b, w2)",
                    {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 1, 1)}, {}) for _ in range(2)
    )  # fmt: skip
    for model in (before, after):
        initializers = model.graph.initializers
        weights, bias = (constant(initializers[name]) for name in ("w1", "b1"))
        assert weights is not None
        assert bias is not None
        weights, bias = weights.copy(), bias.copy()
        weights[2] *= size
        bias[2] = 7.3
        for name, array in (("w1", weights), ("b1", bias)):
            initializers[name].const_value = ir.tensor(array, name=name)
    static.quantize_statically(
        after, lambda names: observe(after, names, pictures(8, 0)), "extremes", pair_bounded=False
    )
    for feeds in pictures(4, 1):
        expected = answers(before, tmp_path / "a.onnx", feeds)["y"]
        found = answers(after, tmp_path / "b.onnx", feeds)["y"]
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_a_clip_with_a_computed_end_stays(tmp_path: Path) -> None:
    """It may clip below what calibration saw."""
    body = (
        "a = Conv<pads = [1,1,1,1]>(x, w1) low = Constant<value = float {0.0}>()"
        " top = ReduceMean<keepdims = 0>(x) high = Abs(top) b = Clip(a, low, high) y = Conv(b, w2)"
    )
    after = of_pictures(body, {"w1": (4, 3, 3, 3), "w2": (4, 4, 1, 1)}, {})
    static.quantize_statically(
        after, lambda names: observe(after, names, pictures(8, 0)), "extremes", pair_bounded=False
    )
    assert operators(after).count("Clip") == 1


def test_static_answers_do_not_depend_on_neighbours(tmp_path: Path) -> None:
    """Scales are fixed, so that a picture's answer is the same beside any other."""
    model = convolutions()
    static.quantize_statically(
        model, lambda names: observe(model, names, pictures(4, 0)), "extremes", pair_bounded=True
    )
    one, other = pictures(2, 5)
    both = {"x": np.concatenate([one["x"], 50 * other["x"]])}
    alone = answers(model, tmp_path / "a.onnx", one)["y"]
    np.testing.assert_allclose(answers(model, tmp_path / "a.onnx", both)["y"][:1], alone, atol=1e-6)


def test_ranges_hold_zero_and_clip_what_is_rare() -> None:
    """By extremes the range is the extremes'; otherwise it is smaller where values far out are rare, and by
    squared error its steps are closest to the values in the mean."""
    model = convolutions()
    values = np.random.default_rng(0).standard_t(3, (4, 3, 40, 40)).astype(np.float32)
    feeds = [{"x": each[None]} for each in values]
    seen = observe(model, ["x"], feeds)["x"]
    found = {method: seen.range(method) for method in METHODS}
    whole = found.pop("extremes")
    assert (whole.low, whole.high) == (values.min(), values.max())
    for some in found.values():
        assert whole.low < some.low < 0 < some.high < whole.high

    def error(within: ActivationRange) -> float:
        scale, zero = within.steps()
        steps = np.clip(np.rint(values / scale) + zero, 0, 255)
        return float(np.mean(((steps - zero) * scale - values) ** 2))

    assert min(found, key=lambda method: error(found[method])) == "squared error"
    assert error(found["squared error"]) < error(whole)
    assert ActivationRange(0.0, 2.55).steps() == (pytest.approx(0.01), 0)
    assert ActivationRange(0.0, 2.55, signed=True).steps() == ActivationRange(0.0, 2.55).steps()
    scale, zero = ActivationRange(-2.54, 1.0, signed=True).steps()
    assert (scale, zero, zero.dtype) == (pytest.approx(0.02), 0, np.int8)


def test_nan_in_calibration_is_refused() -> None:
    """With the number of the input and the tensor."""
    feeds = pictures(3, 0)
    feeds[1]["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="calibration input 2 gives NaN or infinity at"):
        observe(convolutions(), ["c1"], feeds)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_in_what_is_smoothed_is_refused(wrong: float) -> None:
    """In the same words: a channel's largest value cannot be NaN or infinite."""
    feeds = skewed(3, 0)
    feeds[1]["x"][2, 5] = wrong
    with pytest.raises(
        InputError, match="calibration input 2 gives NaN or infinity at 'x', which no range"
    ):
        channel_maxima(product(), ["x"], feeds)


def test_percentiles_are_numpys() -> None:
    """Of 0 to 99,999 and as far below, one in ten thousand at each end is clipped: by linear interpolation
    the 99.99th percentile of n values lies at (n - 1) · 0.9999. Where nothing is negative, 0 is the end."""
    both = np.arange(-99_999, 100_000, dtype=np.float64)
    found = Observed(both[0], both[-1], both, np.zeros(0)).range("percentile")
    assert (found.low, found.high) == (pytest.approx(-99_979.0002), pytest.approx(99_979.0002))
    sample = np.abs(np.random.default_rng(3).standard_normal(50_000))
    found = Observed(0.0, float(sample.max()), sample, np.zeros(0)).range("percentile")
    assert found.low == 0.0
    assert found.high == pytest.approx(np.percentile(sample, 99.99))


def divergence_at(counts: Array, kept: int) -> float:
    """Migacz 2017, slide "KL divergence", bin by bin: P has the clipped counts, with all that is beyond in
    the last; Q spreads what each of 128 levels holds over its bins that are not empty."""
    p = [float(each) for each in counts[:kept]]
    q = [0.0] * kept
    for level in range(128):
        bins = [i for i in range(kept) if i * 128 // kept == level and counts[i] > 0]
        total = sum(float(counts[i]) for i in bins)
        for i in bins:
            q[i] = total / len(bins)
    p[-1] += float(counts[kept:].sum())
    all_p, all_q = sum(p), sum(q)
    return sum(
        a / all_p * float(np.log((a / all_p) / max(b / all_q, 1e-7)))
        for a, b in zip(p, q, strict=True)
        if a
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_entropy_takes_the_threshold_of_least_divergence(seed: int) -> None:
    """Of all thresholds that are tried, by a computation of the test's own; values far out are clipped."""
    rng = np.random.default_rng(seed)
    sample = np.concatenate([rng.laplace(size=20_000), rng.uniform(30, 40, 3)])
    found = Observed(float(sample.min()), float(sample.max()), sample, np.zeros(0)).range("entropy")
    largest = float(np.abs(sample).max())
    counts, edges = np.histogram(np.abs(sample), 2048, (0.0, largest))
    tried = {float(edges[kept]): divergence_at(counts, kept) for kept in range(128, 2049, 16)}
    best = min(tried, key=tried.__getitem__)
    assert 0 < best < 0.5 * largest
    assert found.high == pytest.approx(best)
    assert found.low == pytest.approx(max(-best, float(sample.min())))


def test_calibration_feeds_may_differ_in_length(tmp_path: Path) -> None:
    """A convolution over time and a product behind it: what lies along the product's second axis are no
    channels, and no mean is made of them."""
    text = """g (float[N, 4, T] x) => (float[N, T, 6] y) {
        c = Conv<pads = [1, 1]>(x, w, b)
        t = Transpose<perm = [0, 2, 1]>(c)
        y = MatMul(t, v)
    }"""
    proto = parse(text, opset=20, ir_version=9)
    rng = np.random.default_rng(0)
    for name, shape in {"w": (8, 4, 3), "b": (8,), "v": (8, 6)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    before, after = loaded(proto), loaded(proto)
    feeds = [{"x": rng.standard_normal((1, 4, length)).astype(np.float32)} for length in (7, 9, 11)]
    seen = observe(after, ["x", "t"], feeds)
    assert (len(seen["x"].means), len(seen["t"].means)) == (4, 0)
    seen = observe(after, ["x", "c", "t", "y"], feeds)
    static.quantize_statically(after, partial(_told, seen), "extremes", pair_bounded=True)
    expected = answers(before, tmp_path / "a.onnx", feeds[1])["y"].ravel()
    found = answers(after, tmp_path / "b.onnx", feeds[1])["y"].ravel()
    assert expected @ found / np.linalg.norm(expected) / np.linalg.norm(found) > 0.999


def _told(seen: dict[str, Observed], _: Sequence[str]) -> dict[str, Observed]:
    return seen


def test_what_rounding_takes_in_the_mean_is_given_back(tmp_path: Path) -> None:
    """With inputs that are all positive, rounded weights shift every output; with the bias corrected, the
    mean of each output over the calibration inputs is nearer to the original's: with groups and without,
    where there was no bias, and where the bias is added behind a product of matrices."""
    of_pictures = "g (float[N, 8, 6, 6] x) => (float[N, 16, 6, 6] y)"
    of_texts = "g (float[N, 6, 6, 8] x) => (float[N, 6, 6, 16] y)"
    for groups, text in (
        (1, f"{of_pictures} {{ y = Conv<group = 1>(x, w, b) }}"),
        (4, f"{of_pictures} {{ y = Conv<group = 4>(x, w, b) }}"),
        (1, f"{of_pictures} {{ y = Conv(x, w) }}"),
        (0, f"{of_texts} {{ product = MatMul(x, w) y = Add(b, product) }}"),
    ):
        proto = parse(text, opset=20, ir_version=9)
        rng = np.random.default_rng(3)
        # one large weight a channel makes the steps wide
        w = rng.standard_normal((16, 8 // (groups or 1), 1, 1)).astype(np.float32) * 0.02
        w[:, 0] = 3.0
        w = w if groups else w[:, :, 0, 0].T
        proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(16, np.float32), "b"))
        shape = (2, 8, 6, 6) if groups else (2, 6, 6, 8)
        feeds = [{"x": rng.uniform(0.5, 1.5, shape).astype(np.float32)} for _ in range(8)]
        off = []
        for corrected in (True, False):
            before, after = loaded(proto), loaded(proto)

            seen = observe(after, ["x", "y"] if groups else ["x", "product"], feeds)
            if not corrected:
                nothing = np.zeros(0)
                seen = {
                    name: replace(each, means=nothing, feature_means=nothing) for name, each in seen.items()
                }
            static.quantize_statically(after, partial(_told, seen), "extremes", pair_bounded=True)
            difference = [
                answers(after, tmp_path / "b.onnx", each)["y"]
                - answers(before, tmp_path / "a.onnx", each)["y"]
                for each in feeds
            ]
            off.append(np.abs(np.mean(difference, axis=(0, 1, 3, 4) if groups else (0, 1, 2, 3))).max())
        assert off[0] < 0.2 * off[1]


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
