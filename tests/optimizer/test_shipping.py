"""What is written: for which machine, made ready to load, counted."""

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
import infer
from infer.backends.openvino import OpenvinoBackend
from infer.compiled import forget, kept
from infer.errors import IntegrityError
from infer.measure.statistics import Estimate
from infer.optimizer import parse_budget, preparing
from infer.optimizer.apart import Planned
from infer.optimizer.passes import PassResult
from tests.command import infer_command
from tests.optimizer.planted import WIDTH, Plant, harmless, optimized, why
from tests.tiny import edit_manifest


@pytest.mark.parametrize(("speed", "kept"), [(1.0, True), (1.02, True), (1.05, False)])
def test_a_smaller_variant_is_kept_for_its_size(
    speed: float, kept: bool, classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """If it is not slower than is noticed, by itself and as a whole beside the reference."""

    def larger(model: ir.Model) -> PassResult:
        model.metadata_props["weight"] = "x" * 10_000
        return PassResult(1, 1)

    def smaller(model: ir.Model) -> PassResult:
        for node in model.graph:
            node.metadata_props.clear()
        return PassResult(1, 1)

    plant({"larger": larger, "smaller": smaller}, speeds={"larger": 0.5, "smaller": speed})
    done = optimized(classifier, tmp_path / "out.infer", objective="size")
    found = why(done)
    assert found["larger"] == (False, "it is not smaller")
    assert found["smaller"][0] == kept
    assert (done.best == "fp32-fused") == kept


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


def timed_loads(packed_s: float = 0.006) -> Callable[[Any], float]:
    """The graph itself loads in 10 ms, as it is prepared in 5, and with packed weights in so long."""
    told = iter((0.010, 0.005, packed_s))

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


def test_a_graph_that_then_runs_slower_is_not_prepared(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much sooner it loads: that is once, and it runs often."""
    monkeypatch.setattr(preparing, "_load_s", timed_loads())
    asked = []

    def slower(ours: Planned, theirs: Planned, *_: Any) -> Estimate:
        asked.append((ours.plan.prepared is not None, theirs.plan.prepared))
        return Estimate(1.2, 1.1, 1.3)

    monkeypatch.setattr(preparing, "ratio_apart", slower)
    found = optimized(classifier, tmp_path / "a.infer", backends=("onnxruntime",)).artifact.manifest
    assert asked
    assert set(asked) == {(True, None)}
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
    infer.load(tmp_path / "a.infer").close()  # it is not read
    edit_manifest(tmp_path / "a.infer", lambda data: data["tuned"][0].update(runtime=tuned.runtime))
    with pytest.raises(IntegrityError, match="differs from the sha256"):
        infer.load(tmp_path / "a.infer")


@pytest.mark.parametrize(
    ("taken", "variant"), [(0.005, "openvino"), (0.0095, "openvino"), (0.005, "openvino-bfloat16")]
)
def test_what_openvino_compiles_is_kept_where_the_first_answer_comes_sooner(
    classifier: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
    taken: float,
    variant: str,
) -> None:
    """In the user's cache, not in the artifact, which says its sha256; if it is gone, it is compiled, to
    compute in the same type."""
    told = iter((0.010, taken))

    def load(opening: Callable[[], Any]) -> float:
        opening().close()
        return next(told)

    monkeypatch.setattr(preparing, "_load_s", load)
    monkeypatch.setattr(OpenvinoBackend, "compute_dtypes", lambda self, machine, signature: ("bfloat16",))
    two_backends({variant: 0.5})
    output = tmp_path / "out.infer"
    budgets = (parse_budget("cosine>=0.99"),) if variant == "openvino-bfloat16" else ()
    tuned = optimized(classifier, output, budgets=budgets).artifact.manifest.tuned[0]
    assert tuned.variant == variant
    found = tuned.compiled
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
    assert f"{variant}, compiled before" in infer_command("verify", output).out
    forget(found.sha256)
    with infer.load(output) as session:
        np.testing.assert_array_equal(session.run(x)["logits"], answer)
    assert "compiled before" not in infer_command("verify", output).out


def test_weights_are_kept_packed_where_that_loads_sooner(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph whose weights are not packed goes; sessions map those that are."""
    monkeypatch.setattr(preparing, "_load_s", timed_loads(packed_s=0.002))
    found = optimized(classifier, tmp_path / "a.infer", backends=("onnxruntime",)).artifact
    prepared = found.manifest.tuned[0].prepared
    assert prepared is not None
    assert prepared.load_ratio == pytest.approx(0.2)
    assert [path.name for path in (found.path / "prepared").iterdir()] == [Path(prepared.graph).name]
    assert prepared.graph.endswith("-packed.onnx")
    x = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}
    with infer.load(found.path) as session, infer.load(classifier) as before:
        assert session.plan.prepared == prepared.graph
        np.testing.assert_array_equal(session.run(x)["logits"], before.run(x)["logits"])
    assert infer_command("verify", found.path).code == 0


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
    assert "attention: the original does it 2 times" in done.err
    assert "several heads of queries share one of keys" in done.err or "not recognized" in done.err
    assert "not fused" in done.out
    assert (tmp_path / "o.infer").is_dir()


def test_what_is_prepared_must_be_worth_its_verification(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads are timed as a user's are: with all files verified, those that were added among them."""
    timed: list[tuple[bool, list[str]]] = []
    opening = preparing.open_session

    def spied(artifact: Any, options: Any, how: Any, *plan: Any) -> Any:
        unverified = [name for name, record in artifact.manifest.files.items() if record.sha256 is None]
        timed.append((how.verify, unverified))
        return opening(artifact, options, how, *plan)

    monkeypatch.setattr(preparing, "open_session", spied)
    optimized(classifier, tmp_path / "a.infer", backends=("onnxruntime",))
    assert len(timed) > 10
    assert all(verify and not unverified for verify, unverified in timed)
