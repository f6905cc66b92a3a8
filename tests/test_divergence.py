"""Where two graphs part: the first value, whoever made it, and the smallest part that shows it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infer.npz import load_npz
from infer.optimizer.divergence import diverges, write_repro
from infer.optimizer.passes.attention import attention
from infer.optimizer.rewriting import constant, weight
from infer.parity import TOLERANCES
from tests.command import infer_command
from tests.test_passes import answers, attending, feeds_of, loaded
from tests.tiny import parse

LAYERS = 6


def chain(spoiled: int | None = None) -> ir.Model:
    """Six products and Relus on `x` [B, 8]; the weights of one may be spoiled."""
    lines = "".join(f" p{i} = MatMul(h{i}, w{i}) h{i + 1} = Relu(p{i})" for i in range(LAYERS))
    proto = parse(f"g (float[B, 8] h0) => (float[B, 8] h{LAYERS}) {{ {lines} }}", opset=21, ir_version=10)
    rng = np.random.default_rng(0)
    for i in range(LAYERS):
        array = np.abs(rng.standard_normal((8, 8))).astype(np.float32) / 4
        if i == spoiled:
            array[3] *= 1.5
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, f"w{i}"))
    model = loaded(proto)
    for i, node in enumerate(node for node in model.graph if node.op_type == "MatMul"):
        node.metadata_props.update({"infer.module": f"layers.{i}", "infer.source": f"net.py:{10 + i}"})
    return model


X = {"h0": np.random.default_rng(1).random((3, 8)).astype(np.float32)}


@pytest.mark.parametrize("spoiled", range(LAYERS))
def test_the_first_value_that_differs_is_named_with_its_module(spoiled: int) -> None:
    """Whichever product is spoiled; and all that come after it are no news."""
    found = diverges(chain(), chain(spoiled), X, TOLERANCES)
    assert found.compared == 2 * LAYERS
    assert found.first is not None
    assert (found.first.value, found.first.operator) == (f"p{spoiled}", "MatMul")
    assert (found.first.module, found.first.source) == (f"layers.{spoiled}", f"net.py:{10 + spoiled}")
    assert f"made by MatMul in layers.{spoiled}, net.py:{10 + spoiled}" in str(found.first)
    assert found.steps[0].value == f"p{spoiled}"


def test_equal_graphs_do_not_part() -> None:
    """Every value is compared and none differs."""
    found = diverges(chain(), chain(), X, TOLERANCES)
    assert (found.compared, found.first, found.steps) == (2 * LAYERS, None, ())


def test_rewrites_keep_the_names_of_what_they_replace() -> None:
    """A fused attention is compared with what it took the place of."""
    before, after = attending(), attending()
    attention(after)
    found = diverges(before, after, feeds_of(before, 2, 4), TOLERANCES)
    assert found.first is None
    assert found.compared >= 1


def test_the_smallest_part_shows_the_difference(tmp_path: Path) -> None:
    """One node of twelve, with its inputs and what they should give; run alone, it gives something else."""
    before, after = chain(), chain(3)
    found = diverges(before, after, X, TOLERANCES)
    assert found.first is not None
    graph, data = write_repro(before, after, found.first, X, tmp_path / "repro")
    cut = ir.load(graph)
    assert [node.op_type for node in cut.graph] == ["MatMul"]
    assert [value.name for value in cut.graph.inputs] == ["h3"]
    assert list(cut.graph.initializers) == ["w3"]
    arrays = load_npz(data)
    answer = answers(cut, tmp_path / "a.onnx", {"h3": arrays["h3"]})["p3"]
    assert np.abs(answer - arrays["expected_p3"]).max() > 1e-3
    right = chain().graph.initializers["w3"].const_value
    assert right is not None
    np.testing.assert_allclose(arrays["h3"] @ right.numpy(), arrays["expected_p3"], rtol=1e-5)


def test_the_part_that_is_cut_reaches_back_to_what_agrees(tmp_path: Path) -> None:
    """Nodes that only the second graph has come along."""
    before, after = chain(), chain()
    node = next(node for node in after.graph if node.outputs[0].name == "p2")
    matrix = constant(node.inputs[1])
    assert matrix is not None
    halves = [ir.node("MatMul", [node.inputs[0], weight(after.graph, "half", matrix * np.float32(f))])
              for f in (0.5, 0.6)]  # fmt: skip
    added = ir.node("Add", [half.outputs[0] for half in halves])
    after.graph.insert_before(node, [*halves, added])
    node.outputs[0].name, name = "old", node.outputs[0].name
    ir.convenience.replace_all_uses_with(node.outputs[0], added.outputs[0])
    added.outputs[0].name, added.outputs[0].type = name, node.outputs[0].type
    found = diverges(before, after, X, TOLERANCES)
    assert found.first is not None
    assert found.first.value == "p2"
    graph, _ = write_repro(before, after, found.first, X, tmp_path / "repro")
    assert sorted(node.op_type for node in ir.load(graph).graph) == ["Add", "MatMul", "MatMul"]


def test_the_command_tells_and_exits_1(tmp_path: Path) -> None:
    """For graphs that part; 0 for those that do not, or that are within what is asked for."""
    for name, spoiled in (("a", None), ("b", None), ("c", 4)):
        ir.save(chain(spoiled), tmp_path / f"{name}.onnx")
    same = infer_command("compare", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert (same.code, same.out) == (0, "12 values compared\nnone differs\n")
    assert (
        infer_command("compare", tmp_path / "a.onnx", tmp_path / "c.onnx", "--tolerance", "0.9").code == 0
    )
    done = infer_command(
        "compare", tmp_path / "a.onnx", tmp_path / "c.onnx", "--repro", tmp_path / "repro", "--json"
    )
    assert done.code == 1
    assert "they part at output 'p4'" in done.err
    document = json.loads(done.out)
    assert document["first"]["module"] == "layers.4"
    assert [Path(path).name for path in document["repro"]] == ["repro.onnx", "repro.npz"]
    assert infer_command("compare", tmp_path / "a.onnx", tmp_path / "absent.onnx").code == 1
    refused = infer_command("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--first-variant", "int8")
    assert refused.code == 1
    assert "has no variant 'int8'; it has: onnx" in refused.err
