"""Products of queries and keys in eight bits, for OpenVINO."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from infer.bare_graph import artifact_of_graph
from infer.optimizer.passes import PassResult
from infer.optimizer.recipes import Given, static_products_recipe
from infer.optimizer.rewriting import constant, maker
from infer.options import PlanOptions, SessionOptions
from infer.session import open_session
from infer.signature import Array
from tests.test_passes import answers, attending, feeds_of, operators

RECIPE = static_products_recipe("products")
WAY = "extremes, activations as they come"


def attended(mask: str | None) -> ir.Model:
    """Four heads of 16, as a dynamo export has them, with weights that leave softmax several keys."""
    model = attending(heads=4, size=16, mask=mask)
    for name in "qk":
        value = model.graph.initializers[f"{name}w"]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() / 8, name=f"{name}w")
    for number, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def built(
    mask: str | None, keep: Collection[str] = (), *, pair_bounded: bool = False
) -> tuple[ir.Model, PassResult]:
    model = attended(mask)
    feeds = [feeds_of(model, 2, rows) for rows in (7, 11)]
    return model, RECIPE.build(model, Given(feeds, pair_bounded), WAY, keep)


def steps_of(value: ir.Value | None) -> ir.Node | None:
    """What an input of a product was quantized with, before it was moved about and scaled."""
    while (node := maker(value, "Reshape", "Transpose", "Mul")) is not None:
        value = node.inputs[0]
    return maker(value, "DequantizeLinear")


def on_openvino(model: ir.Model, path: Path, feeds: dict[str, Array]) -> Array:
    ir.save(model, path)
    options = PlanOptions(device="cpu", backend="openvino", num_threads=1)
    with open_session(artifact_of_graph(path), options, SessionOptions(warm_up=False)) as session:
        return session.run(feeds)["y"]


def nearness(one: Array, other: Array) -> float:
    return float(one.ravel() @ other.ravel() / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("mask", [None, "float"])
def test_both_sides_of_the_scores_have_eight_bits(mask: str | None, tmp_path: Path) -> None:
    """With steps to both sides alike; softmax and what it weighs are float. Two libraries answer like the
    original, also for a length that calibration did not see."""
    model, result = built(mask)
    assert (result.found, result.rewritten, dict(result.declined)) == (4, 4, {})
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    scores = maker(softmax.inputs[0], "Add") if mask else None
    product = maker(scores.inputs[0] if scores else softmax.inputs[0], "MatMul")
    assert product is not None
    for value in product.inputs:
        down = steps_of(value)
        assert down is not None
        zero = constant(down.inputs[2])
        assert zero is not None
        assert (zero.dtype, int(zero)) == (np.int8, 0)
    ((user, _),) = softmax.outputs[0].uses()
    assert user.op_type == "MatMul"
    assert steps_of(user.inputs[1]) is None
    feeds = feeds_of(attended(mask), 3, 9)
    expected = answers(attended(mask), tmp_path / "a.onnx", feeds)["y"]
    found = answers(model, tmp_path / "b.onnx", feeds)["y"]
    assert 0.999 < nearness(expected, found) < 1 - 1e-7
    assert nearness(found, on_openvino(model, tmp_path / "c.onnx", feeds)) > 0.9999


def test_an_attention_that_is_spared_stays() -> None:
    """Its products, whose weights are others' to spare, are in eight bits all the same."""
    names = [node.name for node in RECIPE.candidates(attended(None)) if node.op_type == "Attention"]
    assert len(names) == 1
    assert names[0] is not None
    model, result = built(None, [names[0]])
    assert (result.found, result.rewritten) == (4, 3)
    assert dict(result.declined) == {"kept in float for accuracy": 1}
    assert "Attention" in operators(model)
    assert operators(model).count("QuantizeLinear") == 1


def test_scores_alone_have_eight_bits_if_weights_are_spared() -> None:
    """Queries and keys are quantized, and nothing else."""
    names = [node.name or "" for node in RECIPE.candidates(attended(None)) if node.op_type == "MatMul"]
    model, result = built(None, names)
    assert (result.found, result.rewritten) == (4, 1)
    assert operators(model).count("QuantizeLinear") == 2


def test_masks_of_truth_values_keep_the_operator() -> None:
    """With the reason; nothing else of the recipe is lost."""
    model, result = built("bool")
    assert (result.found, result.rewritten) == (4, 3)
    assert list(result.declined) == ["its numbers, or its mask, are not float32"]
    assert "Attention" in operators(model)


def test_scores_stay_where_products_overflow() -> None:
    """Two products of eight bits and eight bits are more than x86 without VNNI adds up, and keys are no
    weights, which could be bounded."""
    model, result = built(None, pair_bounded=True)
    assert (result.found, result.rewritten) == (3, 3)
    assert "Attention" in operators(model)
