"""What is kept, and what is dropped and why."""

from __future__ import annotations

import os
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
from infer.artifact import Artifact
from infer.errors import InputError
from infer.manifest import TaskSpec
from infer.measure.statistics import Estimate
from infer.optimizer import INTERRUPTED, OUT_OF_TIME, parse_budget
from infer.optimizer import making as making_module
from infer.optimizer import search as search_module
from infer.optimizer import timing as timing_module
from infer.optimizer.material import _halves
from infer.optimizer.passes import PassResult
from infer.optimizer.recipes import Recipe
from infer.optimizer.rewriting import constant, take_place, tidy
from infer.optimizer.sensitivity import kept_in_float
from tests.command import infer_command
from tests.optimizer.planted import (
    WIDTH,
    Plant,
    added,
    detour,
    harmless,
    nothing,
    optimized,
    products,
    rough,
    shift,
    why,
)
from tests.tiny import edit_manifest, parse


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


@pytest.mark.parametrize(
    ("exact", "whole", "shipped"), [(True, 1.0, True), (False, 1.0, False), (False, 0.9, True)]
)
def test_what_approximates_is_shipped_for_a_gain_alone(
    exact: bool,
    whole: float,
    shipped: bool,
    classifier: Path,
    rows: Path,
    tmp_path: Path,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each step was measured to be faster, and all of them beside the reference are as fast as that: equal
    answers cost nothing, others would be given away."""
    name = "one" if exact else "rough"
    plant(*(({"one": harmless}, ()) if exact else ({}, (rough(),))), speeds={})
    looks = iter(
        [0.9, 0.9, whole, whole]
    )  # a glance, a full look, and the whole, measured again if need be

    def ratio(*_: Any) -> Estimate:
        found = next(looks)
        return Estimate(found, found - 0.02, found + 0.02)

    monkeypatch.setattr(timing_module, "time_ratio", ratio)
    budgets = () if exact else (parse_budget("cosine>=0.99"),)
    found = optimized(classifier, tmp_path / "out.infer", data=rows, budgets=budgets)
    assert why(found)[name] == (True, "faster")
    assert (found.outcome.best is not None) == shipped
    if not shipped:
        kept, reason = why(found)["all together"]
        assert (kept, reason.split()[:3]) == (False, ["rough", "is", "not"])


def test_what_keeps_the_numbers_stays_where_what_does_not_is_dropped(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is faster than the reference by itself; the verdict is about the other one."""
    plant({"one": harmless}, (rough(),), speeds={})

    def ratio(candidate: Any, against: Any, *_: Any) -> Estimate:
        whole = (candidate.name, against.name) == ("rough", "reference")
        found = 1.0 if whole else 0.9
        return Estimate(found, found - 0.02, found + 0.02)

    monkeypatch.setattr(timing_module, "time_ratio", ratio)
    budgets = (parse_budget("cosine>=0.99"),)
    found = optimized(classifier, tmp_path / "out.infer", data=rows, budgets=budgets)
    assert why(found)["rough"][0]
    assert why(found)["all together"][0] is False
    assert (found.best, found.replaced) == ("fp32-fused", {"rough"})
    assert found.outcome.ratio is not None
    assert found.outcome.ratio.value == 0.9
    assert [each.name for each in found.artifact.manifest.variants] == ["fp32", "fp32-fused"]


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


@pytest.mark.parametrize(("budget", "kept"), [("accuracy-0.5%", False), ("accuracy-3.5%", True)])
def test_three_points_are_told_from_half_a_point(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant, budget: str, kept: bool
) -> None:
    """Of 100 rows that calibration did not see, a variant answers three otherwise, and is twice as fast."""
    data = np.load(rows)
    _, judged = _halves([{place: place} for place in range(len(data["inputs"]))])
    halves = data["inputs"][judged].reshape(len(judged), 2, -1).sum(axis=2)
    margins = np.sort([2 * (right - left) for left, right in halves if right > left])
    bias = np.array([margins[2:4].mean(), 0], np.float32)

    def build(model: ir.Model, *_: Any) -> PassResult:
        return added(model, bias)

    plant(
        {}, (Recipe("biased", "biased", ("once",), lambda model: [model.graph[0]], build),), {"biased": 0.5}
    )
    found = optimized(classifier, tmp_path / "o.infer", budgets=(parse_budget(budget),), data=rows)
    verdict = found.verdicts[0]
    assert (verdict.name, verdict.kept, verdict.broken) == ("biased", kept, not kept)
    assert verdict.figures["accuracy"] == pytest.approx(0.97)
    assert kept or verdict.why.startswith("accuracy 1.0000 → 0.9700")


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


def test_one_attempt_without_memory_is_not_the_end(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """Whatever is raised where one thing is tried, the others are tried, and the best is shipped."""

    def large(model: ir.Model) -> PassResult:
        raise MemoryError

    def odd(model: ir.Model) -> PassResult:
        raise KeyError("a name that is nowhere")

    plant({"large": large, "odd": odd, "good": harmless}, speeds={"good": 0.8})
    found = optimized(classifier, tmp_path / "out.infer")
    assert why(found) == {
        "large": (False, "it fails: there is not enough memory"),
        "odd": (False, "it fails: KeyError: 'a name that is nowhere'"),
        "good": (True, "faster"),
    }
    assert found.best == "fp32-fused"


def test_what_was_replaced_is_said(
    classifier: Path, tmp_path: Path, two_backends: Callable[[dict[str, float]], None]
) -> None:
    """What was kept at first, and is not in the output, because something else took its place."""
    two_backends({"good": 0.9, "openvino": 0.5})
    found = optimized(classifier, tmp_path / "out.infer")
    assert why(found) == {"good": (True, "faster"), "openvino": (True, "faster")}
    assert found.replaced == {"good"}
    two_backends({"good": 0.9})
    assert optimized(classifier, tmp_path / "other.infer").replaced == frozenset()


def test_all_together_may_be_slower(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept at first is not in the output then, and the verdicts say so."""
    plant({"good": harmless}, speeds={})
    ratios = iter([0.8, 0.8, 1.3])
    told = lambda *_: (lambda found: Estimate(found, found, found))(next(ratios))  # noqa: E731
    monkeypatch.setattr(timing_module, "time_ratio", told)
    found = optimized(classifier, tmp_path / "out.infer")
    assert why(found) == {"good": (True, "faster"), "all together": (False, "good is slower")}
    assert found.replaced == {"good"}
    assert [v.name for v in found.artifact.manifest.variants] == ["fp32"]


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


def interrupt_at(name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Estimate]:
    """Ctrl-C comes when this one is timed; what timed it before."""
    told = timing_module.time_ratio

    def stop(candidate: Any, *rest: Any) -> Estimate:
        if candidate.name == name:
            raise KeyboardInterrupt
        return told(candidate, *rest)

    monkeypatch.setattr(timing_module, "time_ratio", stop)
    return told


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
    told = interrupt_at("second", monkeypatch)
    found = optimized(classifier, tmp_path / "out.infer")
    assert found.unfinished == INTERRUPTED
    assert why(found) == {"first": (True, "faster")}
    assert Artifact.open(tmp_path / "out.infer").manifest.variants[1].name == "fp32-fused"
    monkeypatch.setattr(timing_module, "time_ratio", told)
    before = tried.count("first")
    found = optimized(classifier, tmp_path / "out.infer", overwrite=True)
    assert found.unfinished == ""
    assert why(found) == {"first": (True, "faster"), "second": (True, "faster")}
    assert tried.count("first") == before + 1  # once, below the second
    assert [path.name for path in tmp_path.iterdir()] == ["out.infer"]


def test_an_interrupt_is_not_told_as_slowness(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was faster by then is in the output, though nobody timed the whole."""
    plant({"first": harmless, "second": harmless}, speeds={"first": 0.8})
    interrupt_at("second", monkeypatch)
    done = infer_command("optimize", classifier, "-o", tmp_path / "out.infer", "--threads", "1")
    said = " ".join(done.out.split())
    assert "time faster step by step; interrupted before all of it was timed" in said
    assert "variant fp32-fused" in said
    assert "nothing was faster" not in said


class Named(torch.nn.Module):
    """Its input is called x, and its output logits."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.net(x)}


def test_a_recipe_that_loses_too_much_says_where(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """The value at which the cosine falls the most, and the module of the original that makes it."""
    plant({}, (rough(0, noise=9.0),), {})
    found = optimized(classifier, tmp_path / "out.infer", budgets=(parse_budget("cosine>=0.9999"),))
    assert found.verdicts[0].broken
    assert ", most of it at value '" in found.verdicts[0].why
    assert " in mix, " in found.verdicts[0].why


def test_a_recipe_that_is_all_or_nothing_spares_no_nodes(tmp_path: Path) -> None:
    """Half precision for the file's size, beyond the budget: dropped, and the search goes on."""
    torch.manual_seed(0)
    path = tmp_path / "wide.infer"
    net = Named(torch.nn.Linear(128, 128)).eval()
    converters.convert(net, path, example_inputs={"x": torch.rand(4, 128)})
    found = optimized(path, tmp_path / "o.infer", objective="size", budgets=(parse_budget("cosine>=1"),))
    (half,) = [verdict for verdict in found.verdicts if verdict.name.startswith("half")]
    assert (half.kept, half.broken) == (False, True)
    assert Artifact.open(tmp_path / "o.infer").manifest.variants[0].name == "fp32"


def test_a_metric_that_calibration_inputs_do_not_have_ends_no_search(tmp_path: Path, plant: Plant) -> None:
    """The area under the curve of three classes, of which the inputs to calibrate with have two: what is
    spared is then told by the judged ones."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 3)).eval()
    columns = [{"name": f"c{i}", "kind": "numeric"} for i in range(WIDTH)]
    setting = {"input": "x", "output": "logits", "labels": ["a", "b", "c"], "columns": columns}
    task = TaskSpec("tabular-classification", setting)
    path = tmp_path / "three.infer"
    converters.convert(Named(net), path, example_inputs={"x": torch.rand(4, WIDTH)}, task=task)
    x = 9 * np.random.default_rng(0).standard_normal((60, WIDTH)).astype(np.float32)
    labels = net(torch.from_numpy(x)).argmax(1).numpy()
    calibrating, judging = _halves([{i: i} for i in range(len(x))])
    assert set(labels[judging]) == {0, 1, 2}
    labels[calibrating] = np.minimum(labels[calibrating], 1)
    np.savez(tmp_path / "rows.npz", inputs=x, labels=labels)
    plant({}, (rough(0, noise=9.0),), {})
    found = optimized(
        path, tmp_path / "o.infer", budgets=(parse_budget("roc_auc-1%"),), data=tmp_path / "rows.npz"
    )
    assert {verdict.name for verdict in found.verdicts} >= {"rough", "rough-mixed"}
    assert (tmp_path / "o.infer").is_dir()


def test_what_ends_the_process_is_not_tried_again(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """A library that crashes takes the search with it. The next one goes on behind what it crashed at, and
    says so."""
    here, output = os.getpid(), tmp_path / "out.infer"

    def crashing(model: ir.Model) -> PassResult:
        assert os.getpid() != here
        os._exit(9)

    def planted() -> None:
        plant(
            {"first": harmless, "crashing": crashing, "last": harmless}, speeds={"first": 0.8, "last": 0.8}
        )

    if not (child := os.fork()):
        try:
            planted()
            optimized(classifier, output)
        finally:
            os._exit(1)  # not another pytest
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not output.exists()
    planted()
    found = optimized(classifier, output)
    assert found.unfinished == ""
    kept, reason = why(found)["crashing"]
    assert not kept
    assert reason.startswith("the process ended while it was tried")
    assert ".out.infer.optimizing" in reason
    assert {name for name, (kept, _) in why(found).items() if kept} == {"first", "last"}
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


def test_other_weights_at_the_same_place_are_tried_anew(tmp_path: Path, plant: Plant) -> None:
    """A plain graph that was exported again, with the same name and size, between two runs of a search that
    did not come to its end: what was found about the old one is not shipped."""
    graph, output = tmp_path / "m.onnx", tmp_path / "out.infer"

    def export(seed: int) -> None:
        proto = parse(f"g (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{ y = MatMul(x, w) }}")
        w = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
        onnx.save(proto, graph)

    def doubled(model: ir.Model) -> PassResult:
        return harmless(model)

    def stop(model: ir.Model) -> PassResult:
        raise KeyboardInterrupt

    export(1)
    plant({"good": doubled, "stop": stop}, speeds={"good": 0.5})
    assert optimized(graph, output).unfinished == INTERRUPTED
    before = graph.stat().st_size
    export(2)
    assert graph.stat().st_size == before
    plant({"good": doubled}, speeds={"good": 0.5})
    optimized(graph, output, overwrite=True)
    x = {"x": np.eye(WIDTH, dtype=np.float32)}
    with infer.load(graph) as new, infer.load(output) as shipped:
        assert shipped.plan.variant == "fp32-fused"
        np.testing.assert_allclose(shipped.run(x)["y"], new.run(x)["y"], rtol=1e-5, atol=1e-6)


def test_the_same_command_goes_on(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """Without --force, over what it wrote itself; not over anything else, nor with other options."""
    output = tmp_path / "out.infer"
    command = ("optimize", classifier, "-o", output, "--threads", "1")
    plant({"good": harmless}, speeds={"good": 0.8})
    stopped = infer_command(*command, "--time", "0s")
    assert stopped.code == 0
    assert "the same command goes on from here" in stopped.err
    other = infer_command(*command, "--time", "0s", "--objective", "throughput")
    assert other.code == 1
    assert "exists; replace it with --force" in other.err
    manifest = (output / "manifest.json").read_bytes()
    edit_manifest(output, lambda data: data.update(name="mine"))
    assert "exists; replace it with --force" in infer_command(*command).err
    (output / "manifest.json").write_bytes(manifest)
    done = infer_command(*command)
    assert done.code == 0, done.err
    assert Artifact.open(output).manifest.variants[-1].name == "fp32-fused"
    assert "exists; replace it with --force" in infer_command(*command).err


def test_a_search_that_dies_goes_on_once_more(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """What an earlier one wrote is still its own, although this one did not come to write anything."""
    output = tmp_path / "out.infer"
    plant({"good": harmless}, speeds={"good": 0.8})
    assert optimized(classifier, output, time_s=0.0).unfinished == OUT_OF_TIME

    def dies(model: ir.Model) -> PassResult:
        raise SystemExit(3)  # as good as a crash: nothing is written

    plant({"good": dies}, speeds={"good": 0.8})
    with pytest.raises(SystemExit):
        optimized(classifier, output)
    plant({"good": harmless}, speeds={"good": 0.8})
    assert why(optimized(classifier, output)) == {"good": (True, "faster")}


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
