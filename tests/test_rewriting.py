"""What every rewrite leaves behind: nothing unused, nothing kept twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.graphwriting import save
from infer.optimizer.rewriting import tidy
from infer.signature import Array
from tests.test_passes import answers, loaded
from tests.tiny import parse

TEXT = """g (int64[B] i, bool c) => (float[B, 128] y) {
    a = Gather(first, i) b = MatMul(a, square) d = MatMul(b, other)
    e = If(c) <then_branch = t () => (float[B, 128] u) { u = MatMul(d, second) },
               else_branch = f () => (float[B, 128] w) { w = Neg(d) }>
    y = Add(e, d) }"""


def tied(weights: dict[str, Array]) -> ir.Model:
    """A table that is used by rows and, in a branch, as a matrix."""
    proto = parse(TEXT, opset=21, ir_version=10)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return loaded(proto)


def table(seed: int) -> Array:
    """128 × 128 numbers: 64 KiB."""
    return np.random.default_rng(seed).standard_normal((128, 128)).astype(np.float32)


FEEDS: dict[str, Array] = {"i": np.array([3, 0, 127]), "c": np.array(True)}


def test_weights_that_are_kept_twice_are_kept_once(tmp_path: Path) -> None:
    """The first name stays, in branches too; answers are the same, and the file is smaller by the other."""
    given = {"first": table(0), "square": table(1), "second": table(0), "other": table(2)}
    before, after = tied(given), tied(given)
    tidy(after)
    assert list(after.graph.initializers) == ["first", "square", "other"]
    sizes = [save(model, tmp_path / f"{i}.onnx") for i, model in enumerate((before, after))]
    assert sizes[0] - sizes[1] > 0.9 * given["second"].nbytes
    for chosen in (True, False):
        feeds = {**FEEDS, "c": np.array(chosen)}
        expected = answers(before, tmp_path / "before.onnx", feeds)["y"]
        np.testing.assert_array_equal(answers(after, tmp_path / "after.onnx", feeds)["y"], expected)


def test_small_ones_stay_apart() -> None:
    """What is not worth sharing: what OpenVINO computes in eight bits depends on it."""
    small = {name: table(0)[:, :64] for name in ("first", "second")}
    proto = parse(
        "g (float[B, 128] x) => (float[B, 64] y) {"
        " a = MatMul(x, first) b = MatMul(x, second) y = Add(a, b) }",
        opset=21,
        ir_version=10,
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in small.items())
    model = loaded(proto)
    tidy(model)
    assert list(model.graph.initializers) == ["first", "second"]


def test_weights_that_only_look_alike_stay_apart() -> None:
    """Of another type or shape, or with a zero of the other sign, which are other bytes."""
    zero = np.zeros((128, 128), np.float32)
    given = {"first": zero, "square": -zero, "second": zero.view(np.int32), "other": zero.reshape(64, 256)}
    proto = parse(
        "g (float[B] x) => (float[B] y, float[128, 128] first) { y = Neg(x) }", opset=21, ir_version=10
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in given.items())
    model = ir.serde.deserialize_model(proto)
    names = list(model.graph.initializers)
    for name in names:  # used, so that only being alike could be a reason to drop one
        node = ir.node("Shape", [model.graph.initializers[name]])
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([2])
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    tidy(model)
    assert list(model.graph.initializers) == names


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_whichever_weights_are_alike_answers_stay(seeds: list[int]) -> None:
    """As many weights are left as there are different ones."""
    import tempfile

    given = dict(zip(("first", "square", "second", "other"), map(table, seeds), strict=True))
    before, after = tied(given), tied(given)
    tidy(after)
    assert len(after.graph.initializers) == len(set(seeds))
    with tempfile.TemporaryDirectory() as name:
        expected = answers(before, Path(name) / "before.onnx", FEEDS)["y"]
        found = answers(after, Path(name) / "after.onnx", FEEDS)["y"]
    np.testing.assert_array_equal(found, expected)
