"""The gate for answers, and the final proof of what was written: faults that rows alone do not show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from infer.artifact import Artifact
from infer.errors import ArtifactError
from infer.optimizer import parse_budget, writing
from infer.optimizer.batches import different_rows
from infer.optimizer.budget import Budget
from infer.optimizer.gates import Judge
from infer.optimizer.material import MEASURED, material
from infer.optimizer.passes import PassResult
from infer.optimizer.recipes import Recipe
from infer.optimizer.rewriting import weight
from infer.parity import TOLERANCES
from infer.session import open_artifact, open_session
from infer.signature import Array, Range, Signature, TensorSpec
from tests.command import infer_command
from tests.optimizer.planted import Plant, harmless, optimized, products, rough, why
from tests.tiny import parse


def first_for_all(model: ir.Model) -> PassResult:
    """Every row gets the first one's answer."""

    def build(value: ir.Value) -> list[ir.Node]:
        first = ir.node("Gather", [value, weight(model.graph, "first", np.zeros(1, np.int64))], {"axis": 0})
        shape = ir.node("Shape", [value])
        return [first, shape, ir.node("Expand", [first.outputs[0], shape.outputs[0]])]

    return _then(model, build)


def beside(model: ir.Model, part: float) -> PassResult:
    """A part of the largest number of the whole batch is added to each."""

    def build(value: ir.Value) -> list[ir.Node]:
        largest = ir.node("ReduceMax", [value], {"keepdims": 0})
        scaled = ir.node("Mul", [largest.outputs[0], weight(model.graph, "part", np.float32(part))])
        return [largest, scaled, ir.node("Add", [value, scaled.outputs[0]])]

    return _then(model, build)


def _then(model: ir.Model, build: Callable[[ir.Value], list[ir.Node]]) -> PassResult:
    """The nodes that `build` makes of the output, in its place."""
    output = model.graph.outputs[0]
    nodes = build(output)
    model.graph.extend(nodes)
    last = nodes[-1].outputs[0]
    output.name, last.name = "before", output.name
    last.type, last.shape = output.type, output.shape
    model.graph.outputs[0] = last
    return PassResult(1, 1)


def recipe(change: Callable[[ir.Model], PassResult]) -> Recipe:
    """A recipe that does this, whatever it is to keep."""

    def build(model: ir.Model, given: Any, way: str, keep: Any) -> PassResult:
        return change(model)

    return Recipe("planted", "rounded", ("once",), products, build)


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    """A graph whose rows have any length: three sums of a row's numbers and their squares."""
    proto = parse(
        "g (float[N, T] x) => (float[N, 3] y) {"
        " q = Mul(x, x) a = ReduceMean(x, one) b = ReduceMean(q, one)"
        " c = Concat<axis = 1>(a, b) y = MatMul(c, w) }",
        opset=21,
        ir_version=10,
    )
    w = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "one"))
    onnx.save(proto, tmp_path / "lengths.onnx")
    return tmp_path / "lengths.onnx"


def of_lengths(count: int) -> list[dict[str, Array]]:
    """No two of the same."""
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 3 + i)).astype(np.float32)} for i in range(count)]


def test_rows_of_a_batch_have_answers_of_their_own(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """A pass that is right on rows alone, and on one row repeated, is dropped; with made-up data, too."""
    plant({"first": first_for_all}, speeds={"first": 0.1})
    for number, data in enumerate((None, rows)):
        (verdict,) = optimized(classifier, tmp_path / f"{number}.infer", data=data).verdicts
        assert not verdict.kept
        assert verdict.why.startswith("its answers differ")


@pytest.mark.parametrize("count", [1, 8])
def test_rows_of_other_lengths_are_brought_together(
    lengths: Path, tmp_path: Path, plant: Plant, count: int
) -> None:
    """Where no two feeds have the same sizes, or there is one alone, batches of different rows are made."""
    plant({"first": first_for_all}, speeds={"first": 0.1})
    (verdict,) = optimized(lengths, tmp_path / "o.infer", data=of_lengths(count)).verdicts
    assert verdict.why.startswith("its answers differ")


def test_a_batch_that_the_reference_fails_at_is_not_asked(tmp_path: Path, plant: Plant) -> None:
    """A graph may leave its batch open, and answer at one row alone."""
    proto = parse(
        "g (float[N, 4] x) => (float[4] y) {"
        " s = Constant<value = int64[1] {4}>() a = Reshape(x, s) y = Mul(a, w) }",
        opset=21,
        ir_version=10,
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w"))
    onnx.save(proto, tmp_path / "one.onnx")

    def renamed(model: ir.Model) -> PassResult:
        return PassResult(1, 1)

    plant({"good": renamed}, speeds={"good": 0.5})
    found = optimized(tmp_path / "one.onnx", tmp_path / "o.infer")
    assert why(found) == {"good": (True, "faster")}


def test_the_feeds_that_are_farthest_off_are_told(lengths: Path) -> None:
    """Where one of them, or a batch alone, is wrong: the bisector looks there."""
    data = of_lengths(6)
    with open_session(open_artifact(lengths)) as session:
        judge = Judge(session, material(session, data), (), TOLERANCES, lambda said: None)
        judged = judge.material.judged
        assert judge.judge(session, (Budget(),)).farthest is None

        class Wrong:
            def __init__(self, wrong: Callable[[Array], bool]) -> None:
                self.wrong = wrong

            def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
                return {"y": session.run(feeds)["y"] + np.float32(self.wrong(feeds["x"]))}

        for one in judged:
            found = judge.judge(Wrong(lambda x, one=one: x.shape == one["x"].shape), (Budget(),))  # type: ignore[arg-type]
            assert found.farthest is one
        found = judge.judge(Wrong(lambda x: len(x) == 3), (Budget(),))  # type: ignore[arg-type]
        assert found.farthest is not None
        assert len(found.farthest["x"]) == 3


def test_a_few_batches_are_not_outvoted_by_many_rows(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """What approximates and is right on a hundred rows alone must be near in batches, too."""
    plant({}, (recipe(first_for_all),), {"planted": 0.1})
    budgets = (parse_budget("cosine>=0.99"),)
    found = optimized(classifier, tmp_path / "o.infer", data=rows, budgets=budgets, time_s=20.0)
    first = found.verdicts[0]
    assert (first.kept, first.figures["cosine"]) == (False, 1.0)
    assert "cosine of rows in a batch" in first.why


def test_answers_that_are_doubled_in_a_batch_are_not_kept(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """Each row has a cosine of 1 to what it should be, alone and in a batch."""

    def doubled(model: ir.Model) -> PassResult:
        def build(value: ir.Value) -> list[ir.Node]:
            count = ir.node("Shape", [value], {"end": 1})
            float_count = ir.node("Cast", [count.outputs[0]], {"to": ir.DataType.FLOAT})
            two = ir.node("Min", [float_count.outputs[0], weight(model.graph, "two", np.float32([2]))])
            return [count, float_count, two, ir.node("Mul", [value, two.outputs[0]])]

        return _then(model, build)

    plant({}, (recipe(doubled),), {"planted": 0.1})
    budgets = (parse_budget("cosine>=0.99"),)
    first = optimized(classifier, tmp_path / "o.infer", data=rows, budgets=budgets, time_s=20.0).verdicts[0]
    assert (first.kept, first.figures["cosine"], first.figures["batch-cosine"]) == (False, 1.0, 1.0)
    assert "rows in a batch are ×2 as large" in first.why


def test_what_is_right_on_the_one_feed_it_was_judged_on_is_not_kept(
    lengths: Path, tmp_path: Path, plant: Plant
) -> None:
    """Numbers larger than those it was calibrated with wrap around: that feed is answered, alone and
    repeated, as the reference does, and no other."""
    (data,) = of_lengths(1)

    def wraps(model: ir.Model) -> PassResult:
        given, first = model.graph.inputs[0], model.graph[0]
        users = list(given.uses())
        seen = weight(model.graph, "seen", data["x"])
        beyond = ir.node("Sub", [given, seen])
        over = ir.node("Relu", [beyond.outputs[0]])
        far = ir.node("Mul", [over.outputs[0], weight(model.graph, "far", np.float32(40))])
        wrapped = ir.node("Sub", [given, far.outputs[0]])
        model.graph.insert_before(first, [beyond, over, far, wrapped])
        for node, place in users:
            node.replace_input_with(place, wrapped.outputs[0])
        return PassResult(1, 1)

    plant({}, (recipe(wraps),), {"planted": 0.1})
    budgets = (parse_budget("cosine>=0.999"),)
    found = optimized(lengths, tmp_path / "o.infer", data=[data], budgets=budgets, time_s=20.0)
    assert [(each.kept, each.figures["cosine"]) for each in found.verdicts[:1]] == [(False, 1.0)]
    assert "cosine of rows that are not like the others" in found.verdicts[0].why
    assert not found.outcome.variants


@pytest.mark.parametrize("same", [True, False])
def test_how_far_neighbours_move_an_answer_is_measured(
    lengths: Path, tmp_path: Path, plant: Plant, same: bool
) -> None:
    """Also where no two feeds have the same sizes; what does not mix rows does not move."""
    data = [{"x": each["x"][:, :3]} for each in of_lengths(8)] if same else of_lengths(8)
    budgets = (parse_budget("cosine>=0.5"),)
    moved = {}
    for part in (0.0, 0.05):
        plant({}, (recipe(lambda model, part=part: beside(model, part)),), {"planted": 0.1})  # type: ignore[misc]
        optimized(lengths, tmp_path / f"{part}.infer", data=data, budgets=budgets)
        (variant,) = Artifact.open(tmp_path / f"{part}.infer").manifest.variants[1:]
        assert variant.evidence is not None
        moved[part] = variant.evidence.neighbours
    assert moved[0.0] == 0.0
    assert moved[0.05] is not None
    assert 0.005 < moved[0.05] < 0.5


def test_what_cannot_be_measured_is_not_said_to_be_nothing(tmp_path: Path, plant: Plant) -> None:
    """A graph of one row has no neighbours."""
    proto = parse("g (float[1, 4] x) => (float[1, 4] y) { a = MatMul(x, w) y = MatMul(a, w) }")
    eye = 2 * np.eye(4, dtype=np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(eye, "w"))
    onnx.save(proto, tmp_path / "one.onnx")
    plant({"good": harmless}, speeds={"good": 0.5})
    optimized(tmp_path / "one.onnx", tmp_path / "o.infer")
    (variant,) = Artifact.open(tmp_path / "o.infer").manifest.variants[1:]
    assert variant.evidence is not None
    assert variant.evidence.neighbours is None
    said = "whether an answer moves with its neighbours in a batch was not measured"
    assert said in " ".join(infer_command("inspect", tmp_path / "o.infer").out.split())


def test_rows_are_stacked_where_they_lie() -> None:
    """Along the axis that has the batch, which need not be the first; inputs without one are shared, and a
    dim that an input has twice counts no rows."""
    inputs = (
        TensorSpec("x", "float32", ("B", 2)),
        TensorSpec("state", "float32", (3, "B")),
        TensorSpec("scale", "float32", (1,)),
    )
    outputs = (TensorSpec("y", "float32", (2, "B")), TensorSpec("z", "float32", (1,)))
    rng = np.random.default_rng(0)
    feeds = [
        {spec.name: rng.standard_normal([1 if d == "B" else d for d in spec.dims]).astype(np.float32)
         for spec in inputs}
        for _ in range(3)
    ]  # fmt: skip

    def run(each: dict[str, Array]) -> dict[str, Array]:
        return {"y": each["x"].T * each["scale"], "z": each["scale"]}

    found = different_rows(Signature(inputs, outputs), feeds, run, TOLERANCES)
    assert found is not None
    batch = found.together((0, 1, 2))
    assert {name: array.shape for name, array in batch.items()} == {
        "x": (3, 2),
        "state": (3, 3),
        "scale": (1,),
    }
    np.testing.assert_array_equal(batch["state"][:, 2:], feeds[2]["state"])
    *split, rest = found.split(run(batch), 3)
    assert [answer["y"].shape for answer in split] == [(2, 1)] * 3
    assert list(rest) == ["z"]
    square = (TensorSpec("x", "float32", ("B", "B")),)
    assert different_rows(Signature(square, outputs), [{"x": np.ones((2, 2))}], run, TOLERANCES) is None
    limited = Signature(inputs, outputs, {"B": Range(2, 8)})
    twice = [{name: np.repeat(a, 2, found.inputs[name]) if name in found.inputs else a
              for name, a in feeds[0].items()}]  # fmt: skip
    assert different_rows(limited, twice, run, TOLERANCES) is not None


def spoiled(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Array], Array]) -> None:
    """What is written is not what was judged."""
    told = writing.save

    def save(model: ir.Model, path: Path) -> int:
        size = told(model, path)
        proto = onnx.load(path)
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                array = spoil(onnx.numpy_helper.to_array(tensor)).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save(proto, path)
        return size

    monkeypatch.setattr(writing, "save", save)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("fault", ["noise", "NaN"])
def test_what_was_damaged_since_it_was_judged_is_not_written(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch, exact: bool, fault: str
) -> None:
    """The final proof holds what is equal to the tolerances, and what approximates to its figures; it names
    the variant, and leaves nothing behind."""
    if exact:
        plant({"good": harmless}, speeds={"good": 0.5})
    else:
        plant({}, (rough(1, noise=0.001),), {"rough": 0.5})
    rng = np.random.default_rng(0)

    def spoil(array: Array) -> Array:
        if fault == "NaN":
            return array * np.nan
        return array + (1e-3 if exact else 1.0) * rng.standard_normal(array.shape)

    spoiled(monkeypatch, spoil)
    name = "fp32-fused" if exact else "rough"
    budgets = () if exact else (parse_budget("cosine>=0.99"),)
    with pytest.raises(ArtifactError, match=f"the variant '{name}' does not answer, as it was written"):
        optimized(classifier, tmp_path / "o.infer", budgets=budgets)
    assert not (tmp_path / "o.infer").exists()


def test_what_differs_at_golden_points_alone_is_dropped(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """They have magnitudes that the data has not, and the final proof asks them again."""
    with open_session(open_artifact(classifier)) as session:
        largest = max(
            float(session.run(feeds)["logits"].max()) for _, feeds, _ in session.artifact.golden()
        )
    data = [{"x": each[None] / 1e3} for each in np.load(rows)["inputs"][:8]]

    def clipped(model: ir.Model) -> PassResult:
        bound = weight(model.graph, "bound", np.float32(largest * 0.9))
        return _then(model, lambda value: [ir.node("Min", [value, bound])])

    plant({"clipped": clipped}, speeds={"clipped": 0.5})
    found = optimized(classifier, tmp_path / "o.infer", data=np.concatenate([d["x"] for d in data]))
    assert not why(found)["clipped"][0]
    assert found.verdicts[0].why.startswith("its answers differ")


def test_a_graph_of_labels_alone_is_judged_by_them(tmp_path: Path, plant: Plant) -> None:
    """There is no cosine of labels: the share that is equal takes its place, and is written and proved."""
    proto = parse(
        "g (float[N, 8] x) => (int64[N] y) { a = MatMul(x, w) b = MatMul(a, v)"
        " y = ArgMax<axis = 1, keepdims = 0>(b) }"
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 8)), ("v", (8, 4))):
        array = np.round(rng.standard_normal(shape) * 64) / 64
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(proto, tmp_path / "labels.onnx")
    data = [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(64)]
    plant({}, (rough(0, 1, noise=3.0),), {"rough": 0.5, "rough-mixed": 0.5})
    found = optimized(
        tmp_path / "labels.onnx", tmp_path / "a.infer", data=data, budgets=(parse_budget("cosine>=0.999"),)
    )
    assert not found.verdicts[0].kept
    assert found.verdicts[0].figures["cosine"] < 0.9
    plant({}, (rough(1, noise=0.02),), {"rough": 0.5})
    found = optimized(
        tmp_path / "labels.onnx", tmp_path / "b.infer", data=data, budgets=(parse_budget("cosine>=0.9"),)
    )
    assert found.verdicts[0].kept


def test_metrics_are_measured_on_as_much_as_is_said(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """On more inputs than answers are compared on, but no more than do not take minutes."""
    x = np.random.default_rng(0).random((3 * MEASURED, 10)).astype(np.float32)
    labels = (x[:, 5:].sum(1) > x[:, :5].sum(1)).astype(int)
    np.savez(tmp_path / "many.npz", inputs=x, labels=labels)
    plant({}, (rough(1, noise=0.001),), {"rough": 0.5})
    found = optimized(
        classifier,
        tmp_path / "o.infer",
        data=tmp_path / "many.npz",
        budgets=(parse_budget("accuracy-1%"),),
    )
    said = f"256 feeds of many.npz that calibration did not see; metrics, if any, on {MEASURED} such inputs"
    assert found.data == said
