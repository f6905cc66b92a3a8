"""Weights in blocks of eight or four bits: packing, nearness, and the kernel that multiplies with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.errors import InputError
from infer.optimizer.canonical import canonical
from infer.optimizer.quantization import weight_only
from infer.optimizer.quantization.blocks import SIZE, Blocks, compensated, factor_of, packed, rounded
from infer.optimizer.quantization.dynamic import candidates
from infer.optimizer.quantization.halves import halve
from infer.optimizer.quantization.weight_only import (
    compensated_blocks,
    quantize_in_blocks,
    rounded_blocks,
    second_moments,
)
from infer.signature import Array
from tests.test_passes import answers, loaded, operators
from tests.tiny import parse


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product(matrix: Array, *, gemm: bool = False) -> ir.Model:
    """`x` [B, rows] · matrix + b."""
    rows, columns = matrix.shape
    body = "y = Gemm<transB = 1>(x, w, b)" if gemm else "m = MatMul(x, w) y = Add(m, b)"
    text = f"g (float[B, {rows}] x) => (float[B, {columns}] y) {{ {body} }}"
    proto = parse(text, opset=13, ir_version=8)
    for name, array in {"w": matrix.T if gemm else matrix, "b": normal(columns, seed=9)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    return loaded(proto)


@given(st.integers(1, 80), st.integers(1, 9), st.integers(0, 2**31))
def test_rounded_weights_are_within_half_a_step(rows: int, columns: int, seed: int) -> None:
    """Of their block's scale, and the extremes too, since 0 has a code: up to a step, where it is moved to
    one. Zeros stay zeros."""
    matrix = normal(rows, columns, seed=seed)
    matrix[::7] = 0
    found = rounded(matrix, 8)
    assert found.codes.shape == (columns, -(-rows // SIZE), SIZE)
    step = np.repeat(found.scale, SIZE, axis=1)[:, :rows].T
    error = np.abs(found.matrix() - matrix)
    assert (error <= 1.001 * step).all()
    assert (np.sort((error / step).ravel())[: error.size // 2] <= 0.501).all()
    assert (found.matrix()[::7] == 0).all()


@given(st.integers(1, 80), st.integers(1, 9), st.integers(0, 2**31))
def test_four_bits_are_no_farther_than_between_extremes(rows: int, columns: int, seed: int) -> None:
    """In squared error of each block, against 16 even steps from its least to its largest number or 0;
    zeros stay zeros."""
    matrix = normal(rows, columns, seed=seed)
    matrix[::7] = 0
    found = rounded(matrix, 4)
    assert found.codes.max() < 16
    assert (found.matrix()[::7] == 0).all()
    for start in range(0, rows, SIZE):
        for block, near in zip(
            matrix[start : start + SIZE].T, found.matrix()[start : start + SIZE].T, strict=True
        ):
            step = max((max(block.max(), 0) - min(block.min(), 0)) / 15, 1e-9)
            zero = round(-min(block.min(), 0) / step)
            even = (np.clip(np.rint(block / step) + zero, 0, 15) - zero) * step
            assert ((near - block) ** 2).sum() <= 1.001 * ((even - block) ** 2).sum() + 1e-9


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([8, 4]), st.integers(0, 2**31))
def test_codes_are_packed_from_the_lowest_bits(rows: int, count: int, bits: int, seed: int) -> None:
    """As the operator describes it: the n-th code of a row is at bit n · bits of its bytes."""
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, count)).astype(np.uint8)
    for row, line in zip(packed(codes, bits), codes, strict=True):
        whole = int.from_bytes(row.tobytes(), "little")
        assert [whole >> n * bits & (2**bits - 1) for n in range(count)] == line.tolist()


@pytest.mark.parametrize("bits", [8, 4])
def test_inputs_that_do_not_go_together_compensate_nothing(bits: int) -> None:
    """With moments that are a multiple of the identity, each weight is rounded for itself."""
    matrix = normal(70, 5)
    plain, other = rounded(matrix, bits), compensated(matrix, bits, factor_of(3 * np.eye(70, dtype="f4")))
    np.testing.assert_array_equal(other.codes[:, :, : 70 % SIZE], plain.codes[:, :, : 70 % SIZE])
    np.testing.assert_allclose(other.matrix(), plain.matrix(), rtol=1e-6)


def test_the_factor_is_one_of_the_inverse() -> None:
    """UᵀU · (XᵀX + 5 % of its mean diagonal) is the identity, and U is upper triangular."""
    x = normal(200, 12)
    moments = x.T @ x
    factor = factor_of(moments)
    damped = moments + 0.05 * np.diag(moments).mean() * np.eye(12)
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(12), atol=1e-4)
    assert (np.tril(factor, -1) == 0).all()


def test_compensated_products_are_nearer_than_rounded_ones() -> None:
    """With inputs that go together, on inputs that were not seen: less than half of the squared error."""
    mix, matrix = normal(10, 96, seed=1), normal(96, 24, seed=2)

    def inputs(seed: int) -> Array:
        return normal(400, 10, seed=seed) @ mix + 0.1 * normal(400, 96, seed=seed + 1)

    seen, unseen = inputs(3), inputs(5)
    plain, other = rounded(matrix, 4), compensated(matrix, 4, factor_of(seen.T @ seen))

    def error(blocks: Blocks) -> float:
        return float(np.mean((unseen @ (blocks.matrix() - matrix)) ** 2))

    assert 0 < error(other) < 0.5 * error(plain)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(65, 200), st.integers(64, 90)),
    bits=st.sampled_from([8, 4]),
    batch=st.sampled_from([1, 2, 17]),
    gemm=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_kernel_multiplies_with_the_weights_that_codes_stand_for(
    size: tuple[int, int],
    bits: int,
    batch: int,
    gemm: bool,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Within what rounding each block of inputs to 255 steps can do: half a step of each times the sizes of
    the weights; for rows that are no multiple of a block, too."""
    rows, columns = size
    matrix = normal(rows, columns, seed=seed)
    model = product(matrix, gemm=gemm)
    blocks = rounded_blocks(candidates(model), bits)
    (found,) = blocks.values()
    result = quantize_in_blocks(model, blocks, bits)
    assert (result.found, result.rewritten) == (1, 1)
    assert operators(model) == ["MatMulNBits", "Add"]
    x = normal(batch, rows, seed=seed + 1)
    x[:, 3] *= 100
    answer = answers(model, tmp_path_factory.mktemp("kernel") / "m.onnx", {"x": x})["y"]
    weights = found.matrix().astype(np.float64)
    padded = np.zeros((batch, -(-rows // SIZE) * SIZE))
    padded[:, :rows] = np.abs(x)
    steps = np.repeat(padded.reshape(batch, -1, SIZE).max(axis=2) / 127, SIZE, axis=1)[:, :rows]
    most = 0.5 * steps @ np.abs(weights)
    assert (np.abs(answer - (x @ weights + normal(columns, seed=9))) <= 1.01 * most + 1e-3).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_kernel_does_not_saturate(bits: int, tmp_path: Path) -> None:
    """With the largest codes and inputs there are, sums are exact: no weights have to be bounded."""
    for sign in (1, -1):
        model = product(np.full((128, 64), np.float32(sign)))
        quantize_in_blocks(model, rounded_blocks(candidates(model), bits), bits)
        x = np.full((3, 128), 5, np.float32)
        answer = answers(model, tmp_path / "m.onnx", {"x": x})["y"]
        np.testing.assert_allclose(answer - normal(64, seed=9), sign * 5 * 128, rtol=1e-3)


def test_an_answer_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    """Beside one a hundred times as large, but for the order of sums."""
    model = product(normal(128, 64))
    quantize_in_blocks(model, rounded_blocks(candidates(model), 4), 4)
    x = normal(9, 128, seed=1)
    x[1:] *= 100
    together = answers(model, tmp_path / "m.onnx", {"x": x})["y"][:1]
    alone = answers(model, tmp_path / "m.onnx", {"x": x[:1]})["y"]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-4)


def test_products_keep_eight_bits_or_float_where_that_is_asked(tmp_path: Path) -> None:
    """Each is said with its reason, and what takes four bits is smaller."""
    sizes = []
    for bits in (8, 4):
        model = product(normal(128, 64))
        (node,) = candidates(model)
        result = quantize_in_blocks(model, rounded_blocks([node], bits), 4)
        assert dict(result.declined) == ({"8 bits, for accuracy": 1} if bits == 8 else {})
        answers(model, tmp_path / "m.onnx", {"x": normal(1, 128)})
        sizes.append((tmp_path / "m.onnx").stat().st_size)
    assert sizes[0] - sizes[1] == pytest.approx(128 * 64 / 2, abs=200)
    kept = quantize_in_blocks(product(normal(128, 64)), {}, 8)
    assert (kept.rewritten, dict(kept.declined)) == (0, {"kept in float for accuracy": 1})


def test_moments_are_those_of_all_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many feeds they come in, and however few tensors fit at a time."""
    model = loaded(
        parse("g (float[B, 4] x) => (float[B, 4] y) { a = Relu(x) y = Relu(a) }", opset=13, ir_version=8)
    )
    feeds = [{"x": normal(size, 4, seed=size)} for size in (1, 3, 9)]
    whole = np.concatenate([each["x"] for each in feeds])
    found = second_moments(model, ["x", "a"], feeds)
    np.testing.assert_allclose(found["x"], whole.T @ whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["a"], np.maximum(whole, 0).T @ np.maximum(whole, 0), rtol=1e-4)
    with pytest.raises(InputError, match="calibration inputs give NaN or infinity at 'a'"):
        second_moments(model, ["a"], [{"x": np.full((1, 4), np.inf, np.float32)}])
    model, few = product(normal(96, 64)), [{"x": normal(40, 96, seed=3)}]
    nodes = candidates(model)
    (one,) = compensated_blocks(model, nodes, 4, few).values()
    monkeypatch.setattr(weight_only, "_MOST_MOMENTS", 1)
    (other,) = compensated_blocks(model, nodes, 4, few).values()
    np.testing.assert_array_equal(one.codes, other.codes)
    monkeypatch.setattr(weight_only, "_MOST_ROWS", 95)
    (plain,) = compensated_blocks(model, nodes, 4, few).values()
    np.testing.assert_array_equal(plain.codes, rounded(normal(96, 64), 4).codes)
    assert (one.codes != plain.codes).any()


def test_a_product_of_weights_alone_is_rounded() -> None:
    """No input of a run tells anything of it."""
    text = "g (float[B, 64] x) => (float[B, 64] y) { c = MatMul(v, w) y = MatMul(x, c) }"
    proto = parse(text, opset=13, ir_version=8)
    for name in "vw":
        proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(64, 64), name))
    model = loaded(proto)
    (node,) = candidates(model)
    node.name = "folded"
    found = compensated_blocks(model, [node], 4, [{"x": normal(2, 64)}])
    np.testing.assert_array_equal(found["folded"].codes, rounded(normal(64, 64), 4).codes)


def test_nodes_without_names_of_their_own_keep_their_own_weights(tmp_path: Path) -> None:
    """As others' exporters write them: a graph is taken with a name for each node, by which its weights are
    told."""
    text = """g (float[B, 64] x) => (float[B, 64] y) {
        [same] a = MatMul(x, v)
        [same] b = MatMul(a, w)
        y = MatMul(b, w)
    }"""
    proto = parse(text, opset=13, ir_version=8)
    for seed, name in enumerate("vw"):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(64, 64, seed=seed) / 8, name))
    onnx.save(proto, tmp_path / "m.onnx")
    model = canonical(tmp_path / "m.onnx")
    nodes = candidates(model)
    assert len({node.name for node in nodes}) == 3
    quantize_in_blocks(model, rounded_blocks(nodes, 8), 8)
    x = normal(4, 64, seed=7)
    expected = x @ normal(64, 64) / 8 @ (normal(64, 64, seed=1) / 8) @ (normal(64, 64, seed=1) / 8)
    found = answers(model, tmp_path / "n.onnx", {"x": x})["y"]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_scales_of_blocks_stay_weights() -> None:
    """ONNX Runtime's kernel answers wrongly where they are computed, if only from other weights."""
    model = product(normal(256, 256))
    quantize_in_blocks(model, rounded_blocks(candidates(model), 4), 4)
    result = halve(model)
    assert (result.found, result.rewritten) == (1, 0)
    assert list(result.declined) == ["its kernel takes nothing that is computed"]
