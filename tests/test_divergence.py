"""Where two graphs part: the first value, whoever made it, and the smallest part that shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infer.npz import load_npz
from infer.optimizer import as_run
from infer.optimizer.divergence import diverges, write_repro
from infer.optimizer.passes.attention import attention
from infer.optimizer.rewriting import constant, weight
from infer.parity import TOLERANCES
from tests.command import infer_command
from tests.test_passes import answers, attending, feeds_of, loaded
from tests.tiny import edit_manifest, make_artifact, parse

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


def branched(factor: float) -> ir.Model:
    """An If whose branches take a value of the graph around them."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (bool c, float[4] x) => (float[4] y) {
            m = Relu(x)
            y = If(c) <
                then_branch = t () => (float[4] a) { f = Constant<value = float {FACTOR}>() a = Mul(m, f) },
                else_branch = e () => (float[4] b) { b = Neg(m) }
            >
            }"""
    return loaded(onnx.parser.parse_model(text.replace("FACTOR", str(factor))))


def test_what_branches_take_comes_along(tmp_path: Path) -> None:
    """A difference inside an If is cut with what goes in from outside."""
    before, after = branched(2.0), branched(3.0)
    feeds = {"c": np.array(True), "x": np.arange(4, dtype=np.float32)}
    found = diverges(before, after, feeds, TOLERANCES)
    assert found.first is not None
    assert found.first.value == "y"
    graph, data = write_repro(before, after, found.first, feeds, tmp_path / "repro")
    cut, arrays = ir.load(graph), load_npz(data)
    assert [node.op_type for node in cut.graph] == ["If"]
    assert {value.name for value in cut.graph.inputs} == {"c", "m"}
    answer = answers(cut, tmp_path / "a.onnx", {name: arrays[name] for name in ("c", "m")})["y"]
    np.testing.assert_array_equal(answer, 3 * feeds["x"])
    np.testing.assert_array_equal(arrays["expected_y"], 2 * feeds["x"])


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
    assert "they part at value 'p4'" in done.err
    document = json.loads(done.out)
    assert document["first"]["module"] == "layers.4"
    assert [Path(path).name for path in document["repro"]] == ["repro.onnx", "repro.npz"]
    assert infer_command("compare", tmp_path / "a.onnx", tmp_path / "absent.onnx").code == 1
    refused = infer_command("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--first-variant", "int8")
    assert refused.code == 1
    assert "has no variant 'int8'; it has: onnx" in refused.err


def renamed(suffix: str, spoiled: int | None = None) -> ir.Model:
    """`chain` with other names for all that it makes."""
    model = chain(spoiled)
    for node in model.graph:
        node.outputs[0].name = f"{node.outputs[0].name}{suffix}"
    return model


@pytest.mark.parametrize(("spoiled", "code"), [(None, 0), (2, 1)])
def test_outputs_are_compared_by_place_where_no_name_is_shared(
    spoiled: int | None, code: int, tmp_path: Path
) -> None:
    """Graphs with nothing in common but their inputs are not equal for that: what they give is compared,
    what is inside is said not to be."""
    ir.save(chain(), tmp_path / "a.onnx")
    ir.save(renamed("_b", spoiled), tmp_path / "b.onnx")
    done = infer_command("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--repro", tmp_path / "repro")
    assert done.code == code
    assert "1 values compared" in done.out
    assert f"compared by place: 'h{LAYERS}' with 'h{LAYERS}_b'" in done.out
    assert "not compared in the first: 11 values that only it has" in done.out
    assert ("they part at output 'h6_b'" in done.err) == bool(code)


def test_outputs_that_only_one_graph_has_are_said() -> None:
    """The names that both have are compared, in whatever order."""
    before, after = chain(), chain()
    after.graph.outputs.insert(0, next(node.outputs[0] for node in after.graph))
    found = diverges(before, after, X, TOLERANCES)
    assert (found.outputs, found.first) == (1, None)
    assert "not compared: outputs that only the second has: p0" in found.notes


def test_what_cannot_be_compared_is_counted(tmp_path: Path) -> None:
    """Values within a branch, and a sequence."""
    text = """g (float[B, 8] x, bool c) => (float[B, 8] y) {
        s = SequenceConstruct(x, x) i = Constant<value = int64 {0}>() a = SequenceAt(s, i)
        b = If(c) <then_branch = t () => (float[B, 8] u) { v = Relu(a) u = Neg(v) },
                   else_branch = e () => (float[B, 8] w) { w = Relu(a) }>
        y = Relu(b) }"""
    for name in ("a", "b"):
        onnx.save(parse(text), tmp_path / f"{name}.onnx")
    feeds = tmp_path / "x.npz"
    np.savez(feeds, x=X["h0"], c=np.array(True))
    done = infer_command("compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--feeds", feeds)
    assert done.code == 0, done.err
    for which in ("first", "second"):
        assert f"not compared in the {which}: 3 values within its branches and loops" in done.out
    assert "unknown type" in done.out or "sequences" in done.out


def test_a_file_of_no_feeds_is_not_taken_for_none(tmp_path: Path) -> None:
    """The example would be compared instead of what was given."""
    onnx.save(parse("g (float[B, 8] x) => (float[B, 8] y) { y = Relu(x) }"), tmp_path / "a.onnx")
    np.savez(tmp_path / "x.npz")
    done = infer_command("compare", tmp_path / "a.onnx", tmp_path / "a.onnx", "--feeds", tmp_path / "x.npz")
    assert done.code == 1
    assert "'x'" in done.err


def test_values_whose_type_a_file_leaves_out_are_compared(tmp_path: Path) -> None:
    """A plain file need not say the types of what is inside."""
    for name, spoiled in (("a", None), ("b", 1)):
        proto = ir.to_proto(chain(spoiled))
        del proto.graph.value_info[:]
        onnx.save(proto, tmp_path / f"{name}.onnx")
    done = infer_command("compare", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert "12 values compared" in done.out
    assert "they part at value 'p1'" in done.err


@pytest.mark.parametrize("compute_dtype", [None, "bfloat16"])
def test_a_variant_of_another_backend_is_run_there(
    compute_dtype: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the reference's own graph, which does not differ from itself; what the backend answers
    does, and only outputs can be seen there."""
    pytest.importorskip("openvino")
    path = make_artifact(tmp_path / "a.infer", ir.to_proto(chain()))

    def further(data: dict[str, Any]) -> None:
        variant = {**data["variants"][0], "name": "fast", "backend": "openvino"}
        data["variants"].append({**variant, "compute_dtype": compute_dtype})

    edit_manifest(path, further)
    done = infer_command("compare", path, path)
    assert "outputs of openvino" in done.out
    assert "cannot be seen" in done.out
    assert "h6" in done.out
    assert "cosine" in done.out
    if compute_dtype is None:
        assert done.code == 0, done.err
    else:  # in bfloat16 it is far, and where the machine has no fast bfloat16, that is said
        assert (done.code == 1) != ("has no faster bfloat16 here" in done.out)
    told = as_run.ran

    def spoilt(artifact: Any, variant: Any, feeds: Any) -> Any:
        answered = told(artifact, variant, feeds)
        if variant.backend is None:
            return answered
        return replace(answered, outputs={name: array * 1.01 for name, array in answered.outputs.items()})

    monkeypatch.setattr(as_run, "ran", spoilt)
    done = infer_command("compare", path, path, "--json", "--tolerance", "1e-3")
    assert done.code == 1
    document = json.loads(done.out)
    assert document["first"] is None
    assert document["as_run"]["second"].startswith("openvino")
    assert 0.005 < document["as_run"]["outputs"][0]["max_relative"] < 0.02
    assert "part at output 'h6'" in done.err
