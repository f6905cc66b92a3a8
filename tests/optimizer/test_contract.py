"""The fusion contract: what the original does, against the graph that is shipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import converters
from infer.measure.statistics import Estimate
from infer.optimizer import search as search_module
from infer.optimizer.contract import Counted, count, shortfalls, whole
from infer.optimizer.passes import PassResult
from infer.optimizer.passes.attention import attention
from infer.optimizer.verdict import Verdict
from infer.options import PlanOptions
from infer.planner import make_plan
from infer.session import open_artifact
from tests.command import infer_command
from tests.optimizer.planted import Plant, harmless, optimized
from tests.tiny import parse

FASTER, SLOWER = Estimate(0.9, 0.8, 1.0), Estimate(1.2, 1.1, 1.3)
CENSUS = {"attention": 4}
UNFUSED = Counted({"attention": 0})


def verdict(**changes: Any) -> Verdict:
    """Of a pass that rewrote four attentions, answered rightly and was slower."""
    known = {"found": 4, "rewritten": 4, "ratio": SLOWER, "kept": False, "why": "slower"}
    return Verdict(**{"name": "attention", **known, **changes})


def test_what_is_shipped_counts() -> None:
    """Whatever a pass did on the way: a graph that has all of it, or more, falls short of nothing."""
    dropped = verdict()
    assert shortfalls([dropped], CENSUS, Counted({"attention": 4})) == []
    assert shortfalls([dropped], CENSUS, Counted({"attention": 5})) == []
    assert shortfalls([dropped], CENSUS, UNFUSED) != []


@pytest.mark.parametrize(
    ("verdicts", "unfinished", "instead", "excused", "said"),
    [
        ([verdict()], "", "", True, "the pass attention rewrote 4 of 4; dropped: slower"),
        ([verdict(kept=True, ratio=FASTER)], "", "dropped: openvino is faster", True, "openvino is faster"),
        ([], "out of time", "", False, "no pass for it was tried (out of time)"),
        ([verdict(found=3, rewritten=3)], "", "", False, "1 were not recognized in the graph"),
        ([verdict(rewritten=3, declined={"a reason": 1})], "", "", False, "rewrote 3 of 4; 1: a reason"),
        ([verdict(ratio=None, broken=True, why="its answers differ")], "", "", False, "its answers differ"),
        ([verdict(ratio=None, why="it fails: no")], "", "", False, "it fails: no"),
        (
            [verdict(ratio=None, broken=True, why="its answers differ")],
            "interrupted",
            "",
            False,
            "not all was tried (interrupted)",
        ),
        ([verdict(ratio=None, broken=True), verdict(name="guarded-attention")], "", "", True, "guarded"),
    ],
)
def test_only_a_measurement_excuses_what_passes_did_not_do(
    verdicts: list[Verdict], unfinished: str, instead: str, excused: bool, said: str
) -> None:
    """Slower than what is shipped: it is said, and no breach. Not tried, not recognized, declined, wrong:
    said, and a breach."""
    counted = Counted({"attention": 0}, instead=instead)
    (found,) = shortfalls(verdicts, CENSUS, counted, unfinished)
    assert found.excused == excused
    assert "the original does it 4 times, 0 are fused in the graph that is shipped" in str(found)
    assert said in str(found)


def test_what_cannot_be_held_against_anything_is_said() -> None:
    """No census, or no count: never silence."""
    (none,) = shortfalls([verdict()], {}, Counted({"attention": 4}))
    assert "nothing to hold the graph against" in str(none)
    (failed,) = shortfalls([verdict()], CENSUS, Counted(untold="it does not load"))
    assert str(failed) == "what is fused was not counted: it does not load"
    assert not none.excused
    assert not failed.excused


def optimized_by_backend(text: str, folder: Path, **weights: np.ndarray) -> Counted:
    """What is fused of a graph, as ONNX Runtime optimizes it."""
    proto = parse(text, opset=21, ir_version=10)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    onnx.save(proto, folder / "g.onnx")
    artifact = open_artifact(folder / "g.onnx")
    return whole(
        folder / "g.onnx", make_plan(artifact.manifest, search_module.this_machine(), PlanOptions())
    )


def test_a_clip_is_an_activation_only_as_relu6_or_hard_tanh(tmp_path: Path) -> None:
    """Any other bounds, and bounds that are computed, are no activation; nor is a Tanh in a product."""
    bounds = {"a": 0.0, "b": 6.0, "c": -1.0, "d": 1.0, "e": 0.0, "f": 10.0}
    counted = optimized_by_backend(
        """g (float[B, 8] x, float m) => (float[B, 8] y) {
        p = Clip(x, a, b) q = Clip(p, c, d) r = Clip(q, e, f) s = Clip(r, e, m)
        t = Gemm(s, w, v) u = Tanh(t) y = Neg(u) }""",
        tmp_path,
        w=np.ones((8, 8), np.float32),
        v=np.ones(8, np.float32),
        **{name: np.array(bound, np.float32) for name, bound in bounds.items()},
    )
    assert counted.whole["activation"] == 2
    assert counted.left["activation"]["Clip"] == 2
    (found,) = shortfalls([], {"activation": 3}, counted)
    assert "the original does it 3 times, 2 are one node" in str(found)
    assert "Clip (2×)" in str(found)
    assert not found.excused


NORMALIZED = {name: np.ones(4, np.float32) for name in ("s", "o", "m", "v")}


@pytest.mark.parametrize(
    ("before", "excused", "said"),
    [
        ("p = Conv(x, w)", None, ""),
        ("p = ConvTranspose(x, w)", None, ""),
        ("p = Relu(x)", True, "could take them up: behind Relu (1×)"),
    ],
)
def test_batch_norms_are_held_against_the_weights_before_them(
    before: str, excused: bool | None, said: str, tmp_path: Path
) -> None:
    """Folded into a convolution they are gone; one behind anything else is said."""
    counted = optimized_by_backend(
        f"""g (float[B, 4, H, W] x) => (float[B, 4, h, i] y) {{
        {before} n = BatchNormalization(p, s, o, m, v) y = Relu(n) }}""",
        tmp_path,
        w=np.ones((4, 4, 3, 3), np.float32),
        **NORMALIZED,
    )
    found = shortfalls([], {"batch norm": 1}, counted)
    assert [shortfall.excused for shortfall in found] == ([] if excused is None else [excused])
    assert said in "".join(map(str, found))


def test_a_batch_norm_behind_a_product_falls_short(tmp_path: Path) -> None:
    """Its rows were laid out anew between, as in LevIT, and ONNX Runtime does not see through that."""
    counted = optimized_by_backend(
        """g (float[B, R, 4] x) => (float[N, 4] y) {
        p = MatMul(x, w) i = Constant<value = int64[2] {-1, 4}>() r = Reshape(p, i)
        n = BatchNormalization(r, s, o, m, v) y = Relu(n) }""",
        tmp_path,
        w=np.ones((4, 4), np.float32),
        **NORMALIZED,
    )
    (found,) = shortfalls([], {"batch norm": 1}, counted)
    assert not found.excused
    assert "1 are nodes of their own; ONNX Runtime folds none behind MatMul (1×)" in str(found)


def test_an_activation_that_a_convolution_could_compute_is_said() -> None:
    """Alone behind one that has none, and with a kernel for both."""

    def convolving(activation: str, extra: str = "") -> Counted:
        graph = "(float[B, 4, H, W] x, float[4, 4, 3, 3] w) => (float[B, 4, h, i] y) { p = Conv(x, w)"
        return count(ir.from_proto(parse(f"g {graph} {extra} y = {activation} }}")))

    (found,) = shortfalls([], {"convolution": 1}, convolving("Relu(p)"))
    assert "of 1, 1 do not compute the activation behind them" in str(found)
    assert "Relu (1×)" in str(found)
    assert shortfalls([], {"convolution": 1}, convolving("Elu(p)")) == []
    assert shortfalls([], {"convolution": 1}, convolving("Add(q, p)", "q = Relu(p)")) == []


def test_norms_say_what_they_are_written_with(tmp_path: Path) -> None:
    """A group norm in plain arithmetic is not made whole; what is gone altogether is excused."""
    counted = optimized_by_backend(
        """g (float[B, 4, 9] x) => (float[B, 4, 9] y) {
        i = Constant<value = int64[1] {2}>() a = ReduceMean(x, i) b = Sub(x, a) c = Mul(b, b)
        d = ReduceSum(c, i) e = Sqrt(d) y = Div(b, e) }""",
        tmp_path,
    )
    (found,) = shortfalls([], {"norm": 1}, counted)
    assert not found.excused
    assert "ReduceMean (1×)" in str(found)
    (gone,) = shortfalls([], {"norm": 1}, Counted({"norm": 0}))
    assert gone.excused
    assert "nothing is left of the others" in str(gone)


@pytest.mark.parametrize(("ratio", "excused"), [(SLOWER, True), (None, False)])
def test_a_pass_that_helps_with_norms_is_said(ratio: Estimate | None, excused: bool) -> None:
    """The backend makes six of seven whole; the last a pass rewrote, and was slower, or was not timed."""
    counted = Counted({"norm": 6}, {"norm": {"ReduceMean": 2}})
    tried = verdict(name="group-norm", found=1, rewritten=1, ratio=ratio)
    (found,) = shortfalls([tried], {"norm": 7}, counted)
    assert found.excused == excused
    assert "the pass group-norm rewrote 1 of 1; dropped: slower" in str(found)


class Attending(torch.nn.Module):
    """One attention between two products."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, rows, _ = x.shape
        q, k, v = self.project(x).view(batch, rows, 3, 4, 4).permute(2, 0, 3, 1, 4)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        answer: torch.Tensor = self.out(attended.transpose(1, 2).reshape(batch, rows, 16))
        return answer


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, as an artifact."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("attending") / "a.infer"
    converters.convert(Attending().eval(), path, example_inputs=(torch.randn(2, 5, 16),))
    return path


@pytest.mark.parametrize(("speed", "fused"), [(0.5, True), (2.0, False)])
def test_a_search_is_held_to_what_it_ships(
    speed: float, fused: bool, attending: Path, tmp_path: Path, plant: Plant
) -> None:
    """The pass that pays is in the output; one that does not is said to be dropped, and is no failure."""
    plant({"attention": attention}, speeds={"attention": speed})
    found = optimized(attending, tmp_path / "o.infer", prepare=False)
    assert found.whole.whole["attention"] == int(fused)
    assert [shortfall.excused for shortfall in found.shortfalls] == ([] if fused else [True])
    assert fused or "rewrote 1 of 1; dropped: " in str(found.shortfalls[0])


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_strict_fusion_holds_where_nothing_is_missing(
    attending: Path, tmp_path: Path, plant: Plant, speed: float
) -> None:
    """Or where what is missing was measured to be slower."""
    plant({"attention": attention}, speeds={"attention": speed})
    arguments = ["optimize", attending, "-o", tmp_path / "o.infer", "--threads", "1", "--strict-fusion"]
    done = infer_command(*arguments)
    assert done.code == 0, done.err


def test_strict_fusion_fails_if_time_was_over(attending: Path, tmp_path: Path) -> None:
    """Nothing was tried, so nothing is proved; the output is there all the same."""
    arguments = ["optimize", attending, "-o", tmp_path / "o.infer", "--threads", "1", "--strict-fusion"]
    done = infer_command(*arguments, "--time", "0s")
    assert done.code == 1
    assert "no pass for it was tried (out of time)" in done.err
    assert (tmp_path / "o.infer").is_dir()


def test_strict_fusion_fails_without_a_census(tmp_path: Path, plant: Plant) -> None:
    """Of a plain graph nobody knows what the original did."""
    proto = parse("g (float[B, 8] x) => (float[B, 8] y) { y = Relu(x) }")
    onnx.save(proto, tmp_path / "g.onnx")
    plant({}, speeds={})
    arguments = ["optimize", tmp_path / "g.onnx", "-o", tmp_path / "o.infer", "--threads", "1"]
    done = infer_command(*arguments, "--strict-fusion")
    assert done.code == 1
    assert "nothing to hold the graph against" in done.err
    done = infer_command(*arguments, "--force")
    assert (done.code, "nothing to hold the graph against" in done.out) == (0, True)


def test_another_backend_that_is_faster_excuses(
    attending: Path, tmp_path: Path, two_backends: Callable[[dict[str, float]], None]
) -> None:
    """What it fuses cannot be seen; the reference's graph is what is shipped beside it."""
    pytest.importorskip("openvino")
    two_backends({"good": 0.9, "openvino": 0.5})

    found = optimized(attending, tmp_path / "o.infer", prepare=False)
    assert found.best == "openvino"
    assert found.whole.instead == "dropped: openvino is faster, and what that fuses cannot be seen"


def test_a_count_that_fails_is_said(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no reason to lose the output, nor to be silent."""

    def failing(*_: Any) -> Counted:
        raise search_module.InferError("the disk is full")

    plant({"good": harmless, "none": lambda _: PassResult()}, speeds={"good": 0.5})
    monkeypatch.setattr(search_module, "whole", failing)
    (found,) = optimized(classifier, tmp_path / "o.infer", prepare=False).shortfalls
    assert str(found) == "what is fused was not counted: the disk is full"
