"""Half precision for GPUs: what it makes of a graph, on a CPU, where ONNX Runtime casts around what it
lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.optimizer import parse_budget
from infer.optimizer.quantization import floats
from infer.optimizer.recipes import ON_CUDA
from infer.optimizer.targets import targets_of
from infer.session import open_session
from tests.optimizer.planted import Plant, optimized
from tests.test_passes import answers, attending, feeds_of, loaded, operators
from tests.tiny import parse


def test_it_is_tried_on_gpus_alone() -> None:
    """CPUs have few kernels for it."""
    tried = {
        device: [r.name for t in targets_of(device) for r in t.recipes] for device in ("cpu", "cuda:1")
    }
    assert tried["cuda:1"] == ["float16"]
    assert "float16" not in tried["cpu"]


def _net() -> ir.Model:
    text = (
        "g (float[N, 3, 8, 8] x) => (float[N, 5] y, int64[N] best) {"
        " a = Conv(x, w) b = Relu(a) c = GlobalAveragePool(b) d = Flatten(c) y = MatMul(d, v)"
        " best = ArgMax<axis = 1, keepdims = 0>(y) }"
    )
    proto = parse(text, opset=20, ir_version=9)
    rng = np.random.default_rng(0)
    for name, shape in {"w": (16, 3, 3, 3), "v": (16, 5)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    return loaded(proto)


def test_weights_and_products_are_halves_and_the_signature_stays(tmp_path: Path) -> None:
    before, after = _net(), _net()
    found = floats.in_half_precision(after, ())
    assert (found.found, found.rewritten, dict(found.declined)) == (2, 2, {})
    assert {value.const_value.dtype for value in after.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert [value.dtype for value in (*after.graph.inputs, *after.graph.outputs)] == [
        *(ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.INT64)
    ]
    assert operators(after).count("Cast") == 2  # in, and out
    x = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    expected, halves = (answers(m, tmp_path / f"{n}.onnx", x) for n, m in enumerate((before, after)))
    np.testing.assert_allclose(halves["y"], expected["y"], rtol=0, atol=0.01)
    assert np.abs(halves["y"] - expected["y"]).max() > 1e-5  # it is rounded
    np.testing.assert_array_equal(halves["best"], expected["best"])


def test_a_node_that_is_spared_keeps_its_weights(tmp_path: Path) -> None:
    model = _net()
    found = floats.in_half_precision(model, ["n0"])
    assert (found.found, found.rewritten) == (2, 1)
    assert dict(found.declined) == {"kept in float for accuracy": 1}
    dtypes = {name: value.const_value.dtype for name, value in model.graph.initializers.items()}
    assert dtypes == {"w": ir.DataType.FLOAT, "v": ir.DataType.FLOAT16}


@settings(max_examples=15, deadline=None)
@given(
    mask=st.sampled_from([None, "bool", "float"]),
    spelling=st.sampled_from(["whole", "dynamo", "plain"]),
    rows=st.integers(1, 6),
)
def test_attention_answers_nearly_the_same(  # type: ignore[no-untyped-def]
    mask, spelling, rows, tmp_path_factory
) -> None:
    """Masks are carried along, whatever type they have."""
    before, after = (attending(mask=mask, spelling=spelling) for _ in range(2))
    assert floats.in_half_precision(after, ()).rewritten
    folder = tmp_path_factory.mktemp("halves")
    feeds = feeds_of(before, 2, rows)
    expected, found = (answers(m, folder / f"{n}.onnx", feeds)["y"] for n, m in enumerate((before, after)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * np.abs(expected).max())


def test_weights_that_no_message_holds_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floats, "_MOST_BYTES", 100)
    model = _net()
    found = floats.in_half_precision(model, ())
    assert (found.found, found.rewritten, dict(found.declined)) == (2, 0, {"its weights exceed 2 GiB": 1})
    assert "Cast" not in operators(model)


@pytest.mark.parametrize(("speed", "kept"), [(0.5, True), (1.5, False)])
def test_a_search_judges_it_like_any_recipe(
    speed: float, kept: bool, classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """As on a GPU that is faster with it, or slower."""
    plant({}, ON_CUDA, {"float16": speed})
    found = optimized(classifier, tmp_path / "o.infer", budgets=(parse_budget("cosine>=0.999"),), data=rows)
    verdict = next(verdict for verdict in found.verdicts if verdict.name == "float16")
    assert verdict.kept is kept, verdict.why
    variants = [(v.name, v.precision) for v in found.artifact.manifest.variants]
    assert (("float16", "float16") in variants) is kept
    with open_session(found.artifact) as session:
        assert session.plan.variant == ("float16" if kept else "fp32")
