"""The optimizer as a whole: what is kept, what is dropped and why, and what it writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import converters
import infer
from infer import planner
from infer.artifact import Artifact
from infer.compiled import forget, kept
from infer.errors import InferError, InputError, IntegrityError, MissingPackageError
from infer.manifest import TaskSpec
from infer.measure.statistics import Estimate
from infer.optimizer import (
    INTERRUPTED,
    OUT_OF_TIME,
    Optimized,
    OptimizeOptions,
    optimize,
    parse_budget,
    preparing,
)
from infer.optimizer import making as making_module
from infer.optimizer import search as search_module
from infer.optimizer import trial as trial_module
from infer.optimizer.contract import shortfalls
from infer.optimizer.outcome import Settings
from infer.optimizer.passes import PassResult
from infer.optimizer.recipes import Recipe
from infer.optimizer.rewriting import constant, put, take_place, tidy, weight
from infer.optimizer.search import SETTINGS
from infer.optimizer.sensitivity import kept_in_float
from infer.optimizer.targets import TARGETS, Target
from infer.optimizer.verdict import Verdict
from infer.session import open_artifact
from tests.command import infer_command
from tests.tiny import edit_manifest, parse

Plant = Callable[..., None]

WIDTH = 10


class Classifier(torch.nn.Module):
    """Rows of ten numbers to the larger half: its classes are known in closed form. Nothing of it can be
    left out: between the halves lies a product that is not the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.halves = torch.nn.Linear(WIDTH, 2, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(2 * torch.eye(WIDTH))
            rows = torch.zeros(2, WIDTH)
            rows[0, : WIDTH // 2] = 1
            rows[1, WIDTH // 2 :] = 1
            self.halves.weight.copy_(rows)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.halves(torch.relu(self.mix(x)))}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Classifier` as a tabular-classification artifact."""
    path = tmp_path_factory.mktemp("classifier") / "classifier.infer"
    columns = [{"name": f"c{i}", "kind": "numeric"} for i in range(WIDTH)]
    task = TaskSpec(
        "tabular-classification",
        {"input": "x", "output": "logits", "labels": ["left", "right"], "columns": columns},
    )
    example = {"x": torch.rand(4, WIDTH)}
    converters.convert(Classifier().eval(), path, example_inputs=example, task=task)
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 labelled rows for it."""
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    x = np.random.default_rng(0).random((200, WIDTH)).astype(np.float32)
    labels = (x[:, WIDTH // 2 :].sum(1) > x[:, : WIDTH // 2].sum(1)).astype(int)
    np.savez(path, inputs=x, labels=labels)
    return path


def nothing(model: ir.Model) -> PassResult:
    """Finds its pattern and cannot rewrite it."""
    return PassResult(1, 0, Counter({"the moon is full": 1}))


def detour(model: ir.Model) -> PassResult:
    """The same numbers by a longer way: sixty products with the identity."""
    node = model.graph[-1]
    value = node.inputs[0]
    assert value is not None
    eye = weight(model.graph, "eye", np.eye(WIDTH, dtype=np.float32))
    for _ in range(60):
        step = ir.node("MatMul", [value, eye])
        put(node, [step])
        value = step.outputs[0]
    node.replace_input_with(0, value)
    return PassResult(1, 1)


def shift(model: ir.Model) -> PassResult:
    """Other numbers."""
    output = model.graph.outputs[0]
    node = output.producer()
    assert node is not None
    added = ir.node("Add", [output, weight(model.graph, "shift", np.array(0.01, np.float32))])
    model.graph.append(added)
    added.outputs[0].shape, added.outputs[0].type = output.shape, output.type
    name, output.name = output.name, "before"
    added.outputs[0].name = name
    model.graph.outputs[0] = added.outputs[0]
    return PassResult(1, 1)


def harmless(model: ir.Model) -> PassResult:
    """The same numbers: twice the weights before, half of them after."""
    products = [node for node in model.graph if node.op_type in ("MatMul", "Gemm")]
    for node, factor in ((products[0], 2.0), (products[-1], 0.5)):
        matrix = constant(node.inputs[1])
        assert matrix is not None
        node.replace_input_with(1, weight(model.graph, "scaled", matrix * np.float32(factor)))
    return PassResult(1, 1)


def products(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in ("MatMul", "Gemm")]


def rough(*spoiled: int, noise: float = 1.0) -> Recipe:
    """Rounds weights, which are exact then; to those of the products at these places noise is added."""

    def build(model: ir.Model, given: Any, way: str, keep: Any) -> PassResult:
        result = PassResult()
        for place, node in enumerate(products(model)):
            result.found += 1
            if node.name in keep:
                continue
            matrix = constant(node.inputs[1])
            assert matrix is not None
            changed = np.round(matrix * 64) / 64
            if place in spoiled:
                changed = changed + noise * np.random.default_rng(2).standard_normal(matrix.shape)
            node.replace_input_with(1, weight(model.graph, "rough", changed.astype(np.float32)))
            result.rewritten += 1
        return result

    return Recipe("rough", "rounded", ("once",), products, build)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tests about settings spend time on them."""
    monkeypatch.setattr(search_module, "SETTINGS", {})


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Puts passes and recipes in the place of those there are; speeds are then as told, in turn."""

    def plant(
        passes: dict[str, Any], recipes: tuple[Recipe, ...] = (), speeds: dict[str, float] | None = None
    ) -> None:
        target = Target("onnxruntime", "cpu", passes, recipes)
        monkeypatch.setattr(search_module, "targets_of", lambda device: (target,))
        if speeds is None:
            return

        def told(candidate: Any, against: Any, *_: Any) -> Estimate:
            found = speeds.get(f"{candidate.name} beside {against.name}", speeds.get(candidate.name, 1.0))
            return Estimate(found, found * 0.99, found * 1.01)

        monkeypatch.setattr(trial_module, "time_ratio", told)

    return plant


def optimized(path: Path, output: Path, **options: Any) -> Optimized:
    given = {"gate_s": 0.2, "num_threads": 1, **options}
    return optimize(open_artifact(path), output, OptimizeOptions(**given))


def why(found: Optimized) -> dict[str, tuple[bool, str]]:
    return {verdict.name: (verdict.kept, verdict.why) for verdict in found.verdicts}


def test_what_is_equal_and_faster_is_kept_and_nothing_else(
    classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """A pass that changes numbers, one that does not fire, a slower one and one that is alike are dropped,
    each with its reason; the faster ones are kept on top of each other, and the output has their evidence
    and is what is loaded here."""
    plant(
        {
            "wrong": shift,
            "dud": nothing,
            "slow": detour,
            "good": harmless,
            "alike": harmless,
            "more": harmless,
        },
        speeds={"wrong": 0.1, "dud": 0.1, "slow": 1.5, "good": 0.8, "alike": 1.0, "more": 0.9},
    )
    found = optimized(classifier, tmp_path / "out.infer")
    assert why(found) == {
        "wrong": (False, found.verdicts[0].why),
        "dud": (False, "it could not be applied"),
        "slow": (False, "slower"),
        "good": (True, "faster"),
        "alike": (False, "not faster"),
        "more": (True, "faster"),
    }
    first = "its answers differ, first at output 'logits': "
    assert found.verdicts[0].why.startswith(first)
    assert found.verdicts[1].changed == "0 of 1 (1: the moon is full)"
    assert found.verdicts[5].against == "good"
    assert found.best == "fp32-fused"
    variant = Artifact.open(tmp_path / "out.infer").manifest.variants[1]
    assert variant.evidence is not None
    assert variant.evidence.changes == {"good": "1 of 1", "more": "1 of 1"}
    assert variant.evidence.figures["equal"] == 1.0
    x = np.random.default_rng(0).random((3, WIDTH)).astype(np.float32)
    with infer.load(classifier) as before, infer.load(tmp_path / "out.infer") as after:
        assert (before.plan.variant, after.plan.variant) == ("fp32", "fp32-fused")
        np.testing.assert_allclose(after.run({"x": x})["logits"], before.run({"x": x})["logits"], rtol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.infer"]


def test_what_is_slower_as_a_whole_is_not_shipped(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """Each step was measured to be faster than the one before, and the last one slower than the reference:
    then one of these was wrong, and the reference stays."""
    speeds = {"one": 0.9, "two": 0.9, "two beside reference": 1.2}
    plant({"one": harmless, "two": harmless}, speeds=speeds)
    found = optimized(classifier, tmp_path / "out.infer")
    assert why(found)["all together"] == (False, "two is slower")
    assert (found.best, found.outcome.ratio) == ("fp32", None)
    assert [v.name for v in Artifact.open(tmp_path / "out.infer").manifest.variants] == ["fp32"]


def test_slower_graphs_are_measured_to_be_slower(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """With real clocks: sixty more products are dropped as slower, and a graph that has them loses them."""
    plant({"slow": detour})
    assert why(optimized(classifier, tmp_path / "a.infer")) == {"slow": (False, "slower")}

    def straight(model: ir.Model) -> PassResult:
        steps = [node for node in model.graph if node.op_type == "MatMul"]
        eyes = [node for node in steps if (found := constant(node.inputs[1])) is not None
                and found.shape == (WIDTH, WIDTH) and np.array_equal(found, np.eye(WIDTH))]  # fmt: skip
        for node in eyes:
            assert node.inputs[0] is not None
            take_place(node.outputs[0], node.inputs[0])
        return PassResult(len(eyes), len(eyes))

    text = "".join(f" m{i + 1} = MatMul(m{i}, eye)" for i in range(60))
    proto = parse(
        f"g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ m0 = Relu(x) {text} y = Relu(m60) }}"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "eye"))
    onnx.save(proto, tmp_path / "long.onnx")
    plant({"straight": straight})
    found = optimized(tmp_path / "long.onnx", tmp_path / "b.infer")
    assert why(found) == {"straight": (True, "faster")}
    assert found.outcome.ratio is not None
    assert found.outcome.ratio.high < 0.8


def test_approximations_are_tried_only_within_a_budget(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """Without one, nothing that approximates is tried; with one that it keeps to, it is kept."""
    plant({}, (rough(1, noise=0.001),), {"rough": 0.5})
    assert why(optimized(classifier, tmp_path / "a.infer")) == {}
    budget = (parse_budget("accuracy-0.5%"), parse_budget("cosine>=0.999"))
    found = optimized(classifier, tmp_path / "b.infer", budgets=budget, data=rows)
    assert why(found) == {"rough": (True, "faster")}
    (variant,) = Artifact.open(tmp_path / "b.infer").manifest.variants[1:]
    assert variant.evidence is not None
    assert variant.evidence.budget == "accuracy-0.5% and cosine>=0.999"
    assert variant.evidence.figures["accuracy"] > 0.95
    assert variant.evidence.data == "100 feeds of rows.npz that calibration did not see"


def test_what_loses_too_much_keeps_some_nodes_in_float(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """A recipe that spoils one product is over the budget; the search finds which one it is."""
    plant({}, (rough(0),), {"rough-mixed": 0.7})
    budget = (parse_budget("accuracy-1%"),)
    found = optimized(classifier, tmp_path / "out.infer", budgets=budget, data=rows)
    whole, mixed = found.verdicts
    assert whole.broken
    assert whole.why.startswith("accuracy 1.0000 → 0.")
    assert (mixed.name, mixed.kept, mixed.changed) == ("rough-mixed", True, "1 of 2")


def test_what_is_lost_and_slow_is_not_searched_for_nodes(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """A recipe over the budget that is much slower as a whole would be slower in part; nor is one tried
    whose kernels are the same."""
    alike = replace(rough(), name="int4-weights")
    plant({}, (replace(rough(0), name="int8-weights"), alike), {"int8-weights": 1.5})
    found = optimized(classifier, tmp_path / "out.infer", budgets=(parse_budget("accuracy-1%"),), data=rows)
    lost, like = found.verdicts
    assert lost.why.startswith("accuracy 1.0000 → 0.")
    assert lost.why.endswith(", and it is slower")
    assert lost.ratio is not None
    assert like.why == "its kernels are those of int8-weights, which is slower"


def test_nodes_are_spared_for_what_they_save(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations of each product at the size that is timed, or its weights if files are to be smaller."""
    seen: list[list[float]] = []

    def told(costs: dict[str, float], *_: Any) -> Iterator[list[str]]:
        seen.append(list(costs.values()))
        return iter(())

    monkeypatch.setattr(making_module, "kept_in_float", told)
    for objective in ("throughput", "size"):
        small = replace(rough(0), build=lambda *given: shrunk(rough(0).build(*given), given[0]))
        plant({}, (small,), {})
        budgets = (parse_budget("accuracy-1%"),)
        optimized(
            classifier, tmp_path / f"{objective}.infer", budgets=budgets, data=rows, objective=objective
        )
    first, second = WIDTH * WIDTH, 2 * WIDTH
    assert seen == [[8 * 2 * first, 8 * 2 * second], [first, second]]


def shrunk(result: PassResult, model: ir.Model) -> PassResult:
    """The same without old weights and notes, so that the file is smaller."""
    tidy(model)
    for node in model.graph:
        node.metadata_props.clear()
    return result


def test_what_calibration_did_not_show_is_kept_in_float_next(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the nodes that calibration feeds told to keep do not suffice on what is judged, more are kept."""
    plant({}, (rough(0),), {"rough-mixed-2": 0.7})

    def told(names: list[str], *_: Any) -> Iterator[list[str]]:
        first, second = names
        yield [second]
        yield [second, first]

    monkeypatch.setattr(making_module, "kept_in_float", told)
    budgets = (parse_budget("accuracy-1%"),)
    found = optimized(classifier, tmp_path / "out.infer", budgets=budgets, data=rows)
    whole, mixed, again = found.verdicts
    assert (whole.broken, mixed.broken, again.broken) == (True, True, False)
    assert (mixed.name, again.name, again.rewritten) == ("rough-mixed", "rough-mixed-2", 0)


def test_a_search_for_nodes_that_ran_out_of_time_is_not_decided(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone on with later, and is not said to have found that nothing suffices."""
    plant({}, (rough(0),), {"rough-mixed": 0.7})
    late = pytest.MonkeyPatch()

    def out_of_time(*_: Any) -> Iterator[list[str]]:
        late.setattr(search_module.time, "monotonic", lambda: 1e12)
        return iter(())

    monkeypatch.setattr(making_module, "kept_in_float", out_of_time)
    budgets = (parse_budget("accuracy-1%"),)
    found = optimized(classifier, tmp_path / "out.infer", budgets=budgets, data=rows)
    late.undo()
    assert found.unfinished == OUT_OF_TIME
    assert [verdict.name for verdict in found.verdicts] == ["rough"]
    monkeypatch.setattr(making_module, "kept_in_float", kept_in_float)
    found = optimized(classifier, tmp_path / "out.infer", budgets=budgets, data=rows, overwrite=True)
    assert why(found)["rough-mixed"] == (True, "faster")


def test_a_recipe_that_cannot_be_followed_loses_nothing_else(
    classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """Such as one whose calibration meets a NaN: what was kept before is shipped."""

    def build(model: ir.Model, given: Any, way: str, keep: Any) -> PassResult:
        raise InputError("calibration input 1 gives NaN")

    broken = Recipe("broken", "int8", ("one way", "another"), products, build)
    plant({"good": harmless}, (broken,), {"good": 0.8})
    found = optimized(classifier, tmp_path / "out.infer", budgets=(parse_budget("cosine>=0.9"),))
    assert why(found) == {
        "good": (True, "faster"),
        "broken": (False, "it fails: calibration input 1 gives NaN"),
    }
    assert found.best == "fp32-fused"


def test_a_padded_row_is_judged(tmp_path: Path, plant: Plant) -> None:
    """Single rows have no padding, so a pass that forgets the mask would be equal on all of them."""

    class Masked(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return (x * attention_mask).sum(1)

    def forget(model: ir.Model) -> PassResult:
        product, total = model.graph
        total.replace_input_with(0, product.inputs[0])
        model.graph.remove(product, safe=True)
        return PassResult(1, 1)

    example = {"x": torch.rand(2, 6), "attention_mask": torch.ones(2, 6)}
    converters.convert(Masked().eval(), tmp_path / "m.infer", example_inputs=example)
    plant({"forget": forget}, speeds={"forget": 0.5})
    data = [{"x": np.ones((1, 6), np.float32), "attention_mask": np.ones((1, 6), np.float32)}] * 4
    found = optimized(tmp_path / "m.infer", tmp_path / "o.infer", data=data)
    assert [verdict.kept for verdict in found.verdicts] == [False]
    assert found.verdicts[0].why.startswith("its answers differ")


def test_a_budget_that_nothing_meets_ships_nothing(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """The output has the reference alone, and the verdict the best that was reached."""
    plant({}, (rough(0, 1),), {"rough": 0.1, "rough-mixed": 0.1})
    found = optimized(classifier, tmp_path / "out.infer", budgets=(parse_budget("cosine>=1"),), data=rows)
    assert not any(verdict.kept for verdict in found.verdicts)
    assert found.verdicts[0].figures["cosine"] < 1
    assert [v.name for v in Artifact.open(tmp_path / "out.infer").manifest.variants] == ["fp32"]


def test_an_interrupt_keeps_the_best_and_goes_on_later(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at the second pass: the first is in the output, and the next run does not try it again."""
    tried: list[str] = []

    def counted(name: str, rewrite: Any) -> Any:
        def counting(model: ir.Model) -> PassResult:
            tried.append(name)
            return rewrite(model)

        return counting

    plant(
        {"first": counted("first", harmless), "second": counted("second", harmless)},
        speeds={"first": 0.8, "second": 0.8},
    )
    told = trial_module.time_ratio

    def stop(candidate: Any, *rest: Any) -> Estimate:
        if candidate.name == "second":
            raise KeyboardInterrupt
        return told(candidate, *rest)

    monkeypatch.setattr(trial_module, "time_ratio", stop)
    found = optimized(classifier, tmp_path / "out.infer")
    assert found.unfinished == INTERRUPTED
    assert why(found) == {"first": (True, "faster")}
    assert Artifact.open(tmp_path / "out.infer").manifest.variants[1].name == "fp32-fused"
    monkeypatch.setattr(trial_module, "time_ratio", told)
    before = tried.count("first")
    found = optimized(classifier, tmp_path / "out.infer", overwrite=True)
    assert found.unfinished == ""
    assert why(found) == {"first": (True, "faster"), "second": (True, "faster")}
    assert tried.count("first") == before + 1  # once, below the second
    assert [path.name for path in tmp_path.iterdir()] == ["out.infer"]


def test_leftovers_of_another_search_are_not_trusted(
    classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """What was begun with other options, or is damaged, is begun anew."""
    plant({"good": harmless}, speeds={"good": 0.8})
    for left in ("{}", '{"key": "another", "verdicts": []}', "nonsense", '{"key": 3}'):
        folder = tmp_path / ".out.infer.optimizing"
        folder.mkdir()
        (folder / "state.json").write_text(left, encoding="utf-8")
        (folder / "stray").write_text("x", encoding="utf-8")
        found = optimized(classifier, tmp_path / "out.infer", overwrite=True)
        assert why(found) == {"good": (True, "faster")}
        assert not folder.exists()


def test_nothing_is_begun_after_the_time(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """The output is written all the same, and says nothing that was not measured."""
    plant({"good": harmless}, speeds={"good": 0.8})
    found = optimized(classifier, tmp_path / "out.infer", time_s=0.0)
    assert (found.unfinished, found.verdicts, found.best) == (OUT_OF_TIME, (), "fp32")
    assert found.outcome.ratio is None


def test_a_variant_that_fails_is_dropped(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """A graph that the backend refuses is no candidate, and the search goes on."""

    def broken(model: ir.Model) -> PassResult:
        model.graph[0].op_type = "NoSuchOperator"
        return PassResult(1, 1)

    plant({"broken": broken, "good": harmless}, speeds={"good": 0.8})
    found = why(optimized(classifier, tmp_path / "out.infer"))
    assert found["broken"][1].startswith("it fails: ")
    assert found["good"] == (True, "faster")


def test_fewer_threads_are_kept_where_they_are_faster(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They become part of the plan for this machine."""
    from infer import session
    from infer.machine import this_machine

    two = replace(this_machine(), cores=2)
    for module in (session, search_module):
        monkeypatch.setattr(module, "this_machine", lambda: two)
    monkeypatch.setattr("infer.optimizer.writing.this_machine", lambda: two)
    plant({}, speeds={"reference, threads-1": 0.7})
    found = optimized(classifier, tmp_path / "out.infer", num_threads=None)
    assert why(found) == {"threads-1": (True, "faster")}
    with infer.load(tmp_path / "out.infer") as loaded:
        assert loaded.plan.num_threads == 1


def test_settings_are_kept_where_they_are_faster(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on top of the other, as the plan for this machine; a single thread does not wait for others."""
    plant({}, speeds={"reference, no-spinning": 0.7, "reference, no-prepacking": 0.8})
    monkeypatch.setattr(search_module, "SETTINGS", SETTINGS)
    found = optimized(classifier, tmp_path / "two.infer", num_threads=2)
    assert why(found) == {"no-spinning": (True, "faster"), "no-prepacking": (True, "faster")}
    assert found.outcome.settings == Settings(2, spinning=False, prepacking=False)
    with infer.load(tmp_path / "two.infer") as session, infer.load(classifier) as before:
        assert (session.plan.spinning, session.plan.prepacking) == (False, False)
        assert any("no spinning: measured" in reason for reason in session.plan.reasons)
        x = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}
        for name, answer in before.run(x).items():
            np.testing.assert_allclose(session.run(x)[name], answer, rtol=1e-5, atol=1e-6)
    plant({}, speeds={"reference, no-spinning": 0.7, "reference, no-prepacking": 1.3})
    one = optimized(classifier, tmp_path / "one.infer", num_threads=1)
    assert why(one) == {"no-prepacking": (False, "slower")}
    assert one.outcome.settings == Settings(1)


def test_settings_are_measured(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the best so far, with a ratio and its interval; what is not surely faster is not in the plan."""
    plant({})
    monkeypatch.setattr(search_module, "SETTINGS", SETTINGS)
    found = optimized(classifier, tmp_path / "out.infer", gate_s=0.05)
    (verdict,) = found.verdicts
    assert (verdict.name, verdict.against) == ("no-prepacking", "reference")
    assert verdict.ratio is not None
    assert verdict.kept == (verdict.why == "faster")
    assert verdict.ratio.high < 1 or not verdict.kept
    (tuned,) = found.artifact.manifest.tuned
    assert tuned.prepacking == found.outcome.settings.prepacking
    assert tuned.prepacking or verdict.kept


@pytest.fixture
def two_backends(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """A pass of the default backend, and another backend with a recipe; speeds are as told."""

    def put(speeds: dict[str, float]) -> None:
        first = Target("onnxruntime", "cpu", {"good": harmless})
        second = Target("openvino", "cpu", {}, (replace(rough(), name="openvino-rough"),))
        monkeypatch.setattr(search_module, "targets_of", lambda device: (first, second))

        def told(candidate: Any, against: Any, *_: Any) -> Estimate:
            found = speeds.get(candidate.name, 1.0)
            return Estimate(found, found * 0.99, found * 1.01)

        monkeypatch.setattr(trial_module, "time_ratio", told)

    return put


def hide_openvino(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed, for what `module` loads."""
    load = module.load_backend

    def absent(name: str) -> Any:
        if name == "openvino":
            raise MissingPackageError('it needs openvino; pip install "infer-onnx[openvino]"')
        return load(name)

    monkeypatch.setattr(module, "load_backend", absent)


def test_another_backend_takes_over_where_it_is_faster(
    classifier: Path, tmp_path: Path, two_backends: Callable[[dict[str, float]], None]
) -> None:
    """The reference's own graph, in no second file, on the backend that was faster than the passes of the
    default; the output is loaded so, proves itself so, and runs elsewhere as ever."""
    two_backends({"good": 0.9, "openvino": 0.5})
    output = tmp_path / "out.infer"
    found = optimized(classifier, output)
    assert why(found) == {"good": (True, "faster"), "openvino": (True, "faster")}
    manifest = Artifact.open(output).manifest
    reference, variant = manifest.variants
    assert (variant.name, variant.backend, variant.graph) == ("openvino", "openvino", reference.graph)
    assert [name for name in manifest.files if name.startswith("graphs/")] == [reference.graph]
    assert manifest.tuned[0].runtime.startswith("openvino 20")
    with infer.load(output) as fast, infer.load(output, variant="fp32") as slow:
        assert (fast.plan.backend, slow.plan.backend) == ("openvino", "onnxruntime")
        x = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}
        for name, answer in slow.run(x).items():
            np.testing.assert_allclose(fast.run(x)[name], answer, rtol=1e-5, atol=1e-6)
    assert infer_command("verify", output).code == 0
    assert "openvino" in infer_command("inspect", output).out
    again = optimized(output, tmp_path / "again.infer").artifact.manifest
    assert [v.name for v in again.variants] == ["fp32", "openvino"]


def test_an_interrupt_after_another_backend_took_over(
    classifier: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan names the library that was measured, and nothing is prepared by another one."""
    two_backends({"good": 0.9, "openvino": 0.5})
    told = trial_module.time_ratio

    def stop(candidate: Any, against: Any, *rest: Any) -> Estimate:
        if (candidate.name, against.name) == ("openvino", "reference"):
            raise KeyboardInterrupt
        return told(candidate, against, *rest)

    monkeypatch.setattr(trial_module, "time_ratio", stop)
    found = optimized(classifier, tmp_path / "out.infer")
    assert found.unfinished == INTERRUPTED
    (tuned,) = found.artifact.manifest.tuned
    assert (tuned.variant, tuned.prepared) == ("openvino", None)
    assert tuned.runtime.startswith("openvino 20")


def test_a_variant_whose_backend_is_absent_is_not_proved(
    classifier: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`infer verify` proves the others, and says what it could not."""
    two_backends({"openvino": 0.5})
    optimized(classifier, tmp_path / "out.infer")
    hide_openvino(planner, monkeypatch)
    done = infer_command("verify", tmp_path / "out.infer")
    assert done.code == 0
    assert "not proved here: it needs openvino" in done.out
    document = json.loads(infer_command("verify", tmp_path / "out.infer", "--json").out)
    assert list(document["not_proved"]) == ["openvino"]
    assert list(document["variants"]) == ["fp32"]


def test_recipes_of_another_backend_run_on_it(
    classifier: Path, tmp_path: Path, two_backends: Callable[[dict[str, float]], None]
) -> None:
    """An approximating variant has its own graph and backend; the exact one stays beside it. Without the
    backend's package nothing of it is tried."""
    two_backends({"good": 0.9, "openvino-rough": 0.5})
    budgets = (parse_budget("cosine>=0.99"),)
    found = optimized(classifier, tmp_path / "out.infer", budgets=budgets)
    variants = found.artifact.manifest.variants
    assert [(v.name, v.backend) for v in variants] == [
        ("fp32", None),
        ("fp32-fused", "onnxruntime"),
        ("openvino-rough", "openvino"),
    ]
    assert found.best == "openvino-rough"
    found = optimized(classifier, tmp_path / "one.infer", budgets=budgets, backends=("onnxruntime",))
    assert why(found) == {"good": (True, "faster")}


def test_an_absent_backend_is_skipped_unless_it_is_asked_for(
    classifier: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By name it is an error that says what to install; an unknown name lists those there are."""
    two_backends({"good": 0.9})
    hide_openvino(search_module, monkeypatch)
    assert why(optimized(classifier, tmp_path / "out.infer")) == {"good": (True, "faster")}
    with pytest.raises(MissingPackageError, match="openvino"):
        optimized(classifier, tmp_path / "no.infer", backends=("openvino",))
    with pytest.raises(InputError, match="no backend 'tvm'; choose from onnxruntime, openvino"):
        optimized(classifier, tmp_path / "no.infer", backends=("tvm",))


def test_a_smaller_variant_is_kept_for_its_size(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """If it is not slower than is noticed."""

    def larger(model: ir.Model) -> PassResult:
        model.metadata_props["weight"] = "x" * 10_000
        return PassResult(1, 1)

    def smaller(model: ir.Model) -> PassResult:
        for node in model.graph:
            node.metadata_props.clear()
        return PassResult(1, 1)

    plant({"larger": larger, "smaller": smaller}, speeds={"larger": 0.5, "smaller": 1.0})
    found = why(optimized(classifier, tmp_path / "out.infer", objective="size"))
    assert found["larger"] == (False, "it is not smaller")
    assert found["smaller"][0]


def test_a_tuned_artifact_is_tuned_again_from_its_reference(
    classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """The plan for another machine stays, with its variant; this one's is replaced."""
    plant({"good": harmless}, speeds={"good": 0.8})
    first = optimized(classifier, tmp_path / "a.infer", prepare=False).artifact

    def elsewhere(data: Any) -> None:
        data["tuned"][0]["machine"] = "another machine"
        data["tuned"][0]["variant"] = data["variants"][1]["name"] = "old"

    edit_manifest(first.path, elsewhere)
    manifest = optimized(first.path, tmp_path / "b.infer", prepare=False).artifact.manifest
    assert [variant.name for variant in manifest.variants] == ["fp32", "old", "fp32-fused"]
    assert [(tuned.machine == "another machine", tuned.variant) for tuned in manifest.tuned] == [
        (True, "old"),
        (False, "fp32-fused"),
    ]
    again = optimized(tmp_path / "b.infer", tmp_path / "c.infer", prepare=False).artifact
    assert again.manifest.files.keys() == manifest.files.keys()
    plant({}, speeds={})
    less = optimized(tmp_path / "c.infer", tmp_path / "d.infer", prepare=False).artifact.manifest
    assert [variant.name for variant in less.variants] == ["fp32", "old"]
    graphs = {variant.name: variant.graph for variant in manifest.variants}
    assert len(set(graphs.values())) == 3  # what "old" is called in the file is not written over


def test_variants_of_two_machines_do_not_displace_each_other(
    classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """Where both are called alike, each keeps its graph, and each plan its own."""
    plant({"good": harmless}, speeds={"good": 0.8})
    first = optimized(classifier, tmp_path / "a.infer").artifact
    edit_manifest(first.path, lambda data: data["tuned"][0].update(machine="another machine"))
    manifest = optimized(first.path, tmp_path / "b.infer").artifact.manifest
    assert [variant.name for variant in manifest.variants] == ["fp32", "fp32-fused", "fp32-fused-2"]
    assert [tuned.variant for tuned in manifest.tuned] == ["fp32-fused", "fp32-fused-2"]
    assert len({variant.graph for variant in manifest.variants}) == 3


def timed_loads() -> Callable[[Any], float]:
    """The graph itself loads in 10 ms, as it is prepared in 5, and with packed weights in 6."""
    told = iter((0.010, 0.005, 0.006))

    def load(opening: Any) -> float:
        opening().close()
        return next(told)

    return load


def test_a_graph_that_does_not_load_sooner_is_not_prepared(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are not kept either."""
    monkeypatch.setattr(preparing, "_load_s", lambda opening: 0.01)
    found = optimized(classifier, tmp_path / "a.infer", backends=("onnxruntime",)).artifact.manifest
    assert found.tuned[0].prepared is None
    assert not (tmp_path / "a.infer" / "prepared").exists()


def test_the_best_graph_is_kept_as_it_is_optimized_here(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads sooner and answers alike; of another release of the library, or if not asked for, it is not
    used, and a damaged one is refused."""
    monkeypatch.setattr(preparing, "_load_s", timed_loads())
    found = optimized(classifier, tmp_path / "a.infer", backends=("onnxruntime",))
    (tuned,) = found.artifact.manifest.tuned
    assert tuned.prepared is not None
    assert tuned.prepared.load_ratio == 0.5
    x = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}
    with infer.load(tmp_path / "a.infer") as session, infer.load(classifier) as before:
        assert session.plan.prepared == tuned.prepared.graph
        assert any("loads in ×0.50" in reason for reason in session.plan.reasons)
        np.testing.assert_array_equal(session.run(x)["logits"], before.run(x)["logits"])
    verified = infer_command("verify", tmp_path / "a.infer")
    assert verified.code == 0
    assert "fp32, prepared" in verified.out
    bare = optimized(classifier, tmp_path / "b.infer", prepare=False).artifact.manifest
    assert bare.tuned[0].prepared is None
    assert not [name for name in bare.files if name.startswith("prepared")]
    edit_manifest(tmp_path / "a.infer", lambda data: data["tuned"][0].update(runtime="onnxruntime 1.0"))
    with infer.load(tmp_path / "a.infer") as session:
        assert session.plan.prepared is None
        assert any("for onnxruntime 1.0: loads sooner after" in reason for reason in session.plan.reasons)
    path = found.artifact.path / tuned.prepared.graph
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match="differs from the sha256"):
        infer.load(tmp_path / "a.infer")


@pytest.mark.parametrize("taken", [0.005, 0.0095])
def test_what_openvino_compiles_is_kept_where_the_first_answer_comes_sooner(
    classifier: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
    taken: float,
) -> None:
    """In the user's cache, not in the artifact, which says its sha256; if it is gone, it is compiled."""
    told = iter((0.010, taken))

    def load(opening: Callable[[], Any]) -> float:
        opening().close()
        return next(told)

    monkeypatch.setattr(preparing, "_load_s", load)
    two_backends({"openvino": 0.5})
    output = tmp_path / "out.infer"
    found = optimized(classifier, output).artifact.manifest.tuned[0].compiled
    x = {"x": np.random.default_rng(0).standard_normal((1, WIDTH)).astype(np.float32)}
    if taken > 0.009:
        assert found is None
        return
    assert found is not None
    assert found.load_ratio == taken / 0.010
    assert kept(found.sha256) is not None
    assert not [path for path in output.rglob("*") if found.sha256 in path.name]
    with infer.load(output) as session:
        assert session.plan.compiled == found.sha256
        answer = session.run(x)["logits"]
    assert "openvino, compiled before" in infer_command("verify", output).out
    forget(found.sha256)
    with infer.load(output) as session:
        np.testing.assert_array_equal(session.run(x)["logits"], answer)
    assert "compiled before" not in infer_command("verify", output).out


def test_a_prepared_graph_that_answers_otherwise_is_not_kept(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the library writes is compared before it is trusted."""
    told = preparing.save_optimized

    def spoiled(graph: Path, plan: Any, target: Path, *, packed: bool) -> None:
        told(graph, plan, target, packed=packed)
        model = onnx.load(target)
        weights = next(w for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT)
        array = onnx.numpy_helper.to_array(weights) + 1
        weights.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), weights.name))
        onnx.save(model, target)
        with infer.load(target) as session:  # it is wrong, not broken
            assert np.isfinite(session.run({"x": np.ones((1, WIDTH), np.float32)})["logits"]).all()

    monkeypatch.setattr(preparing, "save_optimized", spoiled)
    monkeypatch.setattr(preparing, "_load_s", timed_loads())
    found = optimized(classifier, tmp_path / "a.infer", backends=("onnxruntime",)).artifact.manifest
    assert found.tuned[0].prepared is None
    assert not (tmp_path / "a.infer" / "prepared").exists()


def test_what_is_fused_is_counted_where_it_was_right() -> None:
    """Of two passes for one thing the better one counts; one that failed or answered otherwise rewrote
    nothing; without a census nothing is said."""
    right = Estimate(0.9, 0.8, 1.0)
    plain = Verdict("attention", False, "its answers differ", found=4, rewritten=4, broken=True)
    guarded = Verdict("guarded-attention", True, "faster", found=4, rewritten=4, ratio=right)
    census = {"attention": 4, "norm": 9, "activation": 2}
    assert shortfalls([plain, guarded], census, {"norm": 9, "activation": 3}) == []
    assert shortfalls([plain, guarded], {}, {"norm": 0}) == []
    (said,) = shortfalls([plain], census, {})
    assert said == "attention: the original does it 4 times, 0 were rewritten; its answers differ"
    some = Verdict(
        "attention", False, "not faster", found=3, rewritten=2, declined={"a reason": 1}, ratio=right
    )
    assert shortfalls([some], census, {"norm": 8}) == [
        "attention: the original does it 4 times, 2 were rewritten; 1 were not recognized in the graph;"
        " 1: a reason",
        "norm: the original does it 9 times, 8 are one node in the graph",
    ]


def test_what_was_not_fused_is_said(tmp_path: Path) -> None:
    """A model whose queries outnumber its keys: the kernel declines one of its attentions, and the census
    of the original tells; with --strict-fusion that is a failure, but the output is there."""
    torch.manual_seed(0)
    part = torch.nn.Linear(8, 8)

    class Grouped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)
            self.part = part

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, rows, _ = x.shape
            q = self.q(x).view(batch, rows, 4, 2).transpose(1, 2)
            kv = self.kv(x).view(batch, rows, 2, 2).transpose(1, 2)
            one = torch.nn.functional.scaled_dot_product_attention(q, kv, kv, enable_gqa=True)
            p = self.part(x).view(batch, rows, 4, 2).transpose(1, 2)
            other = torch.nn.functional.scaled_dot_product_attention(p, p, p)
            return (one + other).transpose(1, 2).reshape(batch, rows, 8)

    converters.convert(Grouped().eval(), tmp_path / "g.infer", example_inputs=(torch.randn(2, 5, 8),))
    arguments = ["optimize", tmp_path / "g.infer", "-o", tmp_path / "o.infer", "--threads", "1", "--force"]
    done = infer_command(*arguments, "--time", "5s", "--strict-fusion")
    assert done.code == 1
    said = "attention: the original does it 2 times, 1 were rewritten"
    assert said in done.err
    assert "several heads of queries share one of keys" in done.err or "not recognized" in done.err
    assert "not fused" in done.out
    assert (tmp_path / "o.infer").is_dir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "accuracy-1%"], "needs data with known answers; give it with --data"),
        (["--budget", "nonsense"], "is no budget; write"),
        (["--budget", "speed-1%", "--data", "ROWS"], "the metrics of the data are accuracy, "),
        (["--budget", "accuracy+1%", "--data", "ROWS"], "write 'accuracy-1%'"),
        (["--data", "absent.npz"], "absent.npz"),
        (["--data", "EMPTY"], "has no rows"),
    ],
)
def test_bad_input_is_said_and_nothing_is_written(
    classifier: Path, rows: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """Exit code 1, one paragraph, no output."""
    empty = tmp_path / "empty.csv"
    empty.write_text(",".join([*(f"c{i}" for i in range(WIDTH)), "label"]) + "\n", encoding="utf-8")
    places = {"ROWS": str(rows), "EMPTY": str(empty)}
    given = [places.get(argument, argument) for argument in arguments]
    done = infer_command("optimize", classifier, "-o", tmp_path / "out.infer", *given)
    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["empty.csv"]


def test_an_output_that_exists_is_not_replaced_unasked(classifier: Path, tmp_path: Path) -> None:
    """And that is said before the search, not after it."""
    (tmp_path / "out.infer").mkdir()
    done = infer_command("optimize", classifier, "-o", tmp_path / "out.infer")
    assert done.code == 1
    assert "exists and is not an artifact; choose another name" in done.err
    assert "loading" not in done.err


def test_a_budget_about_a_metric_needs_a_task(tmp_path: Path) -> None:
    """A plain graph has none."""
    onnx.save(parse("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"), tmp_path / "m.onnx")
    with pytest.raises(InferError, match="the artifact's task 'tensors' has none"):
        optimized(tmp_path / "m.onnx", tmp_path / "o.infer", budgets=(parse_budget("accuracy-1%"),))


def test_the_command_shows_verdicts_and_result(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """A line for each thing tried, with what became of it and why; as JSON, the same."""
    plant({"wrong": shift, "good": harmless}, speeds={"good": 0.8})
    done = infer_command("optimize", classifier, "-o", tmp_path / "a.infer", "--threads", "1")
    assert done.code == 0, done.err
    assert "dropped: its answers differ, first at output 'logits'" in done.out
    assert "×0.800 (0.792–0.808) of reference's  kept: faster" in done.out
    assert "weak evidence, give real ones with --data" in done.out
    shown = infer_command("inspect", tmp_path / "a.infer").out
    assert "good: 1 of 1" in shown
    assert "time ×0.800 (0.792–0.808) of reference's" in shown
    verified = infer_command("verify", tmp_path / "a.infer")
    assert verified.code == 0, verified.err
    done = infer_command("optimize", classifier, "-o", tmp_path / "b.infer", "--threads", "1", "--json")
    document = json.loads(done.out)
    assert document["best"] == "fp32-fused"
    assert [verdict["kept"] for verdict in document["verdicts"]] == [False, True]
    assert done.err == ""


def test_verify_holds_approximations_to_what_they_had(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """The variant that approximates passes; once its graph is another one, it does not."""
    plant({}, (rough(1, noise=0.1),), {"rough": 0.5})
    budget = (parse_budget("cosine>=0.9"),)
    found = optimized(classifier, tmp_path / "out.infer", budgets=budget, data=rows)
    evidence = found.artifact.manifest.variants[1].evidence
    assert evidence is not None
    assert evidence.tolerances["logits"].scaled > 0.01
    assert infer_command("verify", tmp_path / "out.infer").code == 0

    def tighter(data: Any) -> None:
        data["variants"][1]["evidence"]["tolerances"]["logits"]["scaled"] *= 0.5

    edit_manifest(tmp_path / "out.infer", tighter)
    done = infer_command("verify", tmp_path / "out.infer")
    assert done.code == 1
    assert "variant 'rough' at" in done.err


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of a BERT that is wide enough to be worth quantizing."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    folder = tmp_path_factory.mktemp("encoder")
    BertModel(config).eval().save_pretrained(folder / "model")
    converters.convert(folder / "model", folder / "encoder.infer")
    return folder / "encoder.infer"


@pytest.mark.slow
def test_a_transformer_is_fused_and_quantized(encoder: Path, tmp_path: Path) -> None:
    """With the real passes and recipes: every attention and residual norm is rewritten and equal, products
    are quantized within the budget, and whatever was kept was measured to be faster."""
    found = optimized(encoder, tmp_path / "out.infer", budgets=(parse_budget("cosine>=0.99"),), gate_s=1.0)
    verdicts = {verdict.name: verdict for verdict in found.verdicts}
    assert verdicts["attention"].changed == "2 of 2"
    assert verdicts["skip-norm"].changed.startswith("4 of 5")
    assert verdicts["int8-dynamic"].changed == "13 of 13"
    for name in ("attention", "skip-norm"):
        assert verdicts[name].figures["equal"] == 1.0
    assert verdicts["int8-dynamic"].figures["cosine"] > 0.99
    for verdict in verdicts.values():
        if verdict.kept and verdict.ratio is not None:
            assert verdict.ratio.high < 1
    assert infer_command("verify", tmp_path / "out.infer").code == 0


CASES = {
    "opset 9, weights among the inputs": (
        "g (float[N, 64] x, float[64, 64] w) => (float[N, 64] y) { m = MatMul(x, w) y = Relu(m) }",
        9,
    ),
    "a branch": (
        "g (float[N, 64] x) => (float[N, 64] y) { s = ReduceSum<keepdims = 0>(x) z = Constant<value = float"
        " {0.0}>() c = Greater(s, z) m = MatMul(x, w) y = If(c) <then_branch = t () => (float[N, 64] a)"
        " { a = MatMul(m, w) }, else_branch = e () => (float[N, 64] b) { b = MatMul(m, w) }> }",
        17,
    ),
    "half precision": (
        "g (float16[N, 64] x) => (float16[N, 64] y) { m = MatMul(x, h) y = Relu(m) }",
        17,
    ),
    "a sequence": (
        "g (float[N, 64] x) => (float[N, 64] y) { m = MatMul(x, w) s = SequenceConstruct(m, x)"
        " i = Constant<value = int64 {0}>() y = SequenceAt(s, i) }",
        17,
    ),
    "quantized already": (
        "g (float[N, 64] x) => (float[N, 64] y) { q, s, z = DynamicQuantizeLinear(x)"
        " b = DequantizeLinear(q, s, z) y = MatMul(b, w) }",
        17,
    ),
    "nothing to do": ("g (float[N, 64] x) => (float[N, 64] y) { y = Relu(x) }", 17),
    "another rank for each feed": (
        "g (float[N, 64] x) => (float y) { m = MatMul(x, w) y = Squeeze(m) }",
        17,
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_odd_graphs_are_optimized_or_left(case: str, tmp_path: Path, plant: Plant) -> None:
    """Old opsets, branches, sequences, half precision, open ranks: with the real passes and recipes, and
    every speed said to be better, the output answers within the budget, and nothing fails."""
    text, opset = CASES[case]
    proto = parse(text, opset=opset, ir_version=3 if opset == 9 else 8)
    w = (np.random.default_rng(0).standard_normal((64, 64)) / 8).astype(np.float32)
    names = {value.name for value in proto.graph.input} | {
        n for node in proto.graph.node for n in node.input
    }
    if "w" in names or case == "a branch":
        proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    if "h" in names:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(w.astype(np.float16), "h"))
    onnx.save(proto, tmp_path / "m.onnx")
    row = TARGETS[0]
    plant(row.passes, row.recipes, dict.fromkeys((*row.passes, *(r.name for r in row.recipes)), 0.5))
    found = optimized(tmp_path / "m.onnx", tmp_path / "o.infer", budgets=(parse_budget("cosine>=0.99"),))
    for verdict in found.verdicts:
        assert "it fails" not in verdict.why
        if case == "quantized already" and verdict.name.startswith("int8"):
            assert "quantized already (DynamicQuantizeLinear)" in verdict.why
        if case.startswith("opset 9") and verdict.name.startswith("int8"):
            assert "need opset 13, and the graph has 9" in verdict.why
    if case == "a branch":
        assert why(found)["int8-dynamic"][0], why(found)
        assert found.best == "int4-weights"
    kind = np.float16 if case == "half precision" else np.float32
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(kind)
    with infer.load(tmp_path / "m.onnx") as before, infer.load(tmp_path / "o.infer") as after:
        expected, answer = before.run({"x": x})["y"].ravel(), after.run({"x": x})["y"].ravel()
    cosine = expected @ answer / np.linalg.norm(expected) / np.linalg.norm(answer)
    assert cosine > 0.99
