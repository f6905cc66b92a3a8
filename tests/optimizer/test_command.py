"""Bad input, the command, and graphs of many kinds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import converters
import infer
from infer.errors import InferError
from infer.machine import this_machine
from infer.manifest import Saturation
from infer.optimizer import outcome as outcome_module
from infer.optimizer import parse_budget
from infer.optimizer import trial as trial_module
from infer.optimizer.targets import TARGETS
from tests.command import infer_command
from tests.optimizer.planted import WIDTH, Plant, harmless, optimized, rough, shift, why
from tests.tiny import edit_manifest, parse


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


def test_data_that_does_not_fit_is_refused(classifier: Path, tmp_path: Path) -> None:
    """Rows of another width; the message names the input, and nothing is written."""
    np.savez(tmp_path / "wide.npz", inputs=np.zeros((8, WIDTH + 1), np.float32), labels=np.zeros(8, int))
    arguments = ("--budget", "cosine>=0.99", "--data", tmp_path / "wide.npz")
    done = infer_command("optimize", classifier, "-o", tmp_path / "out.infer", *arguments)
    assert done.code == 1
    assert f"{WIDTH + 1}" in done.err
    assert "Traceback" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["wide.npz"]


def test_one_input_is_both_calibrated_with_and_judged(
    classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """And the evidence says that this is weak."""
    np.savez(tmp_path / "one.npz", inputs=np.full((1, WIDTH), 0.5, np.float32), labels=np.zeros(1, int))
    plant({}, (rough(),), {"rough": 0.5})
    arguments = ("--budget", "cosine>=0.99", "--data", tmp_path / "one.npz", "--threads", "1")
    done = infer_command("optimize", classifier, "-o", tmp_path / "out.infer", *arguments)
    assert done.code == 0, done.err
    assert "the 1 feeds of one.npz, which calibration has seen" in " ".join(done.out.split())


def test_the_working_folder_is_no_artifact(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path has no name of its own."""
    monkeypatch.chdir(classifier.parent)
    done = infer_command("optimize", classifier, "-o", ".")
    assert done.code == 1
    assert "exists and is not an artifact; choose another name" in done.err


@pytest.mark.parametrize("rows", [0, 3])
def test_a_file_of_rows_is_as_many_inputs(tmp_path: Path, plant: Plant, rows: int) -> None:
    """Of a plain graph, whose batch may vary; the same of a folder of files. None at all is refused."""
    onnx.save(
        parse("g (float[N, 4] x, float[4] w) => (float[N, 4] y) { y = Mul(x, w) }"), tmp_path / "m.onnx"
    )
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "ab":
        x = np.random.default_rng(ord(name)).random((rows, 4)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, w=np.ones(4, np.float32))
    plant({}, ())
    for data, count in ((folder / "a.npz", rows), (folder, 2 * rows)):
        done = infer_command(
            "optimize", tmp_path / "m.onnx", "-o", tmp_path / "o.infer", "--data", data, "--force"
        )
        if rows:
            said = f"judged on {count - count // 2} feeds of {data.name} that calibration did not see"
            assert said in " ".join(done.out.split())
        else:
            assert (done.code, done.out) == (1, "")
            assert f"the data '{data.name}' is empty" in done.err


def test_an_input_without_elements_is_refused(tmp_path: Path) -> None:
    """Nothing can be judged by it, and no artifact is written that could not be opened."""
    onnx.save(parse("g (float[1, L, 4] x) => (float[1, L, 4] y) { y = Relu(x) }"), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.zeros((1, 0, 4), np.float32))
    done = infer_command(
        "optimize", tmp_path / "m.onnx", "-o", tmp_path / "o.infer", "--data", tmp_path / "d.npz"
    )
    assert (done.code, done.out) == (1, "")
    assert "input 1 of d.npz: the reference's answer has no elements" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.npz", "m.onnx"]


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


def test_a_budget_about_a_metric_needs_answers(classifier: Path, tmp_path: Path) -> None:
    """Inputs alone have none."""
    given = {"budgets": (parse_budget("accuracy-1%"),), "data": [{f"c{i}": 0.5 for i in range(WIDTH)}]}
    with pytest.raises(InferError, match="needs data with known answers; give it with --data"):
        optimized(classifier, tmp_path / "o.infer", **given)


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


def test_budget_and_metrics_are_shown(classifier: Path, rows: Path, tmp_path: Path, plant: Plant) -> None:
    """What answers were held to, what the original has, and what each variant has of it."""
    plant({}, (rough(),), {"rough": 0.5})
    arguments = ("--budget", "accuracy-1%", "--data", rows, "--threads", "1")
    done = infer_command("optimize", classifier, "-o", tmp_path / "out.infer", *arguments)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "budget accuracy-1%; the original has accuracy 1.0000" in said
    assert ", accuracy 1.0000 ×0.500" in said
    shown = infer_command("optimize", classifier, "-o", tmp_path / "b.infer", *arguments, "--json")
    document = json.loads(shown.out)
    assert (document["budget"], document["reference_metrics"]) == ("accuracy-1%", {"accuracy": 1.0})
    assert [verdict["replaced"] for verdict in document["verdicts"]] == [False]


def test_a_budget_that_nothing_met_is_not_told_as_slowness(
    classifier: Path, rows: Path, tmp_path: Path, plant: Plant
) -> None:
    """The result names what was nearest."""
    plant({}, (rough(0, 1), replace(rough(0, 1, noise=9.0), name="rougher")), {})
    arguments = ("--budget", "cosine>=0.99999999", "--data", rows, "--threads", "1")
    done = infer_command("optimize", classifier, "-o", tmp_path / "out.infer", *arguments)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "nothing that approximates was within the budget" in said
    assert "nearest rough: cosine 0." in said
    assert "nothing was faster" not in said


def test_the_other_kind_of_processor_is_told_of(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where products of integers would overflow, or be slower or faster; nothing where only weights are
    stored as integers."""
    machine, budgets = this_machine(), (parse_budget("cosine>=0.99"),)
    has, lacks = (
        replace(machine, isa=("avx2", "avx512_vnni")), replace(machine, isa=("avx2",))
    )  # fmt: skip
    recipe = replace(rough(), precision="int8 (dynamic)")
    none = Saturation()
    for number, (given, saturates, here, said) in enumerate(
        (
            (recipe, none, has, "no product can overflow on x86 without VNNI, where int8 gains less"),
            (recipe, none, lacks, "with VNNI int8 is faster"),
            (
                recipe,
                Saturation(7, 0, 16),
                has,
                "on x86 without VNNI products of 7 channels can overflow, of none with 16 inputs of"
                " calibration; tune it there",
            ),
            (
                recipe,
                Saturation(7, 2, 6),
                has,
                "on x86 without VNNI products of 7 channels can overflow, of 2 with 6 inputs of"
                " calibration, and answers would be others",
            ),
            (replace(recipe, precision="int8 weights (blocks of 32)"), none, has, ""),
        )
    ):
        plant({}, (given,), {"rough": 0.5})
        monkeypatch.setattr(trial_module, "saturation", lambda model, feeds, given=saturates: given)
        found = optimized(classifier, tmp_path / f"{number}.infer", budgets=budgets)
        monkeypatch.setattr(outcome_module, "this_machine", lambda here=here: here)
        assert found.elsewhere.startswith(said)
        assert bool(found.elsewhere) == bool(said)
        evidence = found.artifact.manifest.variants[1].evidence
        assert evidence is not None
        assert evidence.saturation == (saturates if said else None)
        shown = infer_command("inspect", tmp_path / f"{number}.infer").out
        assert ("can overflow on x86" in shown or "channels can overflow" in shown) == bool(said)


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
    "opset 7": ("g (float[N, 64] x) => (float[N, 64] y) { m = MatMul(x, w) y = Relu(m) }", 7),
    "opset 8": ("g (float[N, 64] x) => (float[N, 64] y) { m = MatMul(x, w) y = Sum(m, x) }", 8),
    "opset 9, weights among the inputs": (
        "g (float[N, 64] x, float[64, 64] w) => (float[N, 64] y) { m = MatMul(x, w) y = Relu(m) }",
        9,
    ),
    "opset 10": ("g (float[N, 64] x) => (float[N, 64] y) { m = MatMul(x, w) y, k = Dropout(m) }", 10),
    "opset 11": (
        "g (float[N, 64] x) => (float[N, 64] y) { m = MatMul(x, w) z = Constant<value = float {0.0}>()"
        " y = Clip(m, z) }",
        11,
    ),
    "an optional": (
        "g (float[N, 64] x) => (float[N, 64] y) { m = MatMul(x, w) o = Optional(m)"
        " y = OptionalGetElement(o) }",
        17,
    ),
    "optimized already": (
        "g (float[N, 64] x) => (float[N, 64] y) { m = com.microsoft.FusedMatMul<alpha = 0.5>(x, w)"
        " n = com.microsoft.Gelu(m) y = MatMul(n, w) }",
        17,
    ),
    "a branch": (
        "g (float[N, 64] x) => (float[N, 64] y) { s = ReduceSum<keepdims = 0>(x) z = Constant<value = float"
        " {0.0}>() c = Greater(s, z) m = MatMul(x, w) y = If(c) <then_branch = t () => (float[N, 64] a)"
        " { a = MatMul(m, w) }, else_branch = e () => (float[N, 64] b) { b = MatMul(m, w) }> }",
        17,
    ),
    "a loop": (
        "g (float[N, 64] x) => (float[N, 64] y) { n = Constant<value = int64 {3}>() m = MatMul(x, w)"
        " y = Loop(n, , m) <body = b (int64 i, bool k, float[N, 64] h) => (bool on, float[N, 64] next)"
        " { p = MatMul(h, w) next = Tanh(p) on = Identity(k) }> }",
        17,
    ),
    "a scan": (
        "g (float[N, 64] x) => (float[N, 64] y) { m = MatMul(x, w) z = Constant<value = float {0.0}>()"
        " s, y = Scan(z, m) <num_scan_inputs = 1, body = b (float t, float[64] r) => (float u, float[64] v)"
        " { v = Sub(r, t) u = ReduceMax<keepdims = 0>(v) }> }",
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


def test_operators_that_nothing_knows_are_named(tmp_path: Path) -> None:
    """Nothing can be measured of a graph that no backend runs: one sentence, and no output."""
    proto = parse("g (float[N, 64] x) => (float[N, 64] y) { y = Identity(x) }")
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "our.own", "Twist"
    proto.opset_import.add(domain="our.own", version=1)
    onnx.save(proto, tmp_path / "m.onnx")
    found = infer_command("optimize", tmp_path / "m.onnx", "-o", tmp_path / "o.infer")
    assert found.code != 0
    assert "Twist" in found.err
    assert "Traceback" not in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("case", list(CASES))
def test_odd_graphs_are_optimized_or_left(case: str, tmp_path: Path, plant: Plant) -> None:
    """Old opsets, branches, sequences, half precision, open ranks: with the real passes and recipes, and
    every speed said to be better, the output answers within the budget, and nothing fails."""
    text, opset = CASES[case]
    proto = parse(text, opset=opset, ir_version=8 if opset > 9 else 3)
    if case == "optimized already":
        proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    w = (np.random.default_rng(0).standard_normal((64, 64)) / 8).astype(np.float32)
    names = {value.name for value in proto.graph.input} | {
        n for node in proto.graph.node for n in node.input
    }
    if "w" in names or case in ("a branch", "a loop"):
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
        if case.startswith("opset") and verdict.name.startswith("int8"):
            assert f"need opset 13, and the graph has {opset}" in verdict.why
    if case == "a branch":
        assert why(found)["int8-dynamic"][0], why(found)
        assert found.best == "int4-weights"
    kind = np.float16 if case == "half precision" else np.float32
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(kind)
    with infer.load(tmp_path / "m.onnx") as before, infer.load(tmp_path / "o.infer") as after:
        expected, answer = before.run({"x": x})["y"].ravel(), after.run({"x": x})["y"].ravel()
    cosine = expected @ answer / np.linalg.norm(expected) / np.linalg.norm(answer)
    assert cosine > 0.99
