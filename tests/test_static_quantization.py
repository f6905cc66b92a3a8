"""Quantization with fixed ranges: what convolutions and the steps between them become."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from infer.optimizer.quantization import static
from infer.optimizer.quantization.calibration import METHODS, Observed, observe
from infer.optimizer.quantization.folding import fold_scales
from infer.optimizer.rewriting import constant
from infer.signature import Array
from tests.test_passes import answers, loaded, operators
from tests.tiny import parse


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


def told(seen: dict[str, Observed], _: Sequence[str]) -> dict[str, Observed]:
    """What was observed before, whatever is asked for."""
    return seen


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


def test_transposed_convolutions_are_quantized_where_it_istold(tmp_path: Path) -> None:
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
    assert static.quantize_statically(model(), partial(told, {}), "extremes", pair_bounded=True).found == 0
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
