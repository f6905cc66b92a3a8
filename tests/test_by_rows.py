"""An artifact whose plan answers many rows with another variant than few."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import infer
from infer.artifact import Artifact
from infer.backends import load_backend
from infer.batching.joining import Layout
from infer.errors import ArtifactError, BackendError
from infer.executables import ByRows, prepare
from infer.golden import prove
from infer.machine import this_machine
from infer.options import BatchOptions, PlanOptions, ShadowOptions
from infer.planner import make_plan
from infer.session import open_session
from infer.signature import Array
from infer.warm_up import warm_up
from tests.command import infer_command
from tests.tiny import classifier, edit_manifest, make_artifact, reseal
from tests.waiting import until

FROM = 4


def close(graph: onnx.ModelProto, by: float) -> onnx.ModelProto:
    """The same net with weights that are a little larger."""
    for tensor in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor) * np.float32(1 + by)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return graph


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """An artifact with a variant "near", whose answers are 2 in 1,000 off, for `FROM` rows or more here."""

    def make(by: float = 1e-3, **evidence: Any) -> Path:
        path = make_artifact(tmp_path / "net.infer")
        graph = path / "graphs" / "near.onnx"
        onnx.save(close(onnx.load(next((path / "graphs").glob("*.onnx"))), by), graph)
        plan = {"machine": this_machine().fingerprint, "device": "cpu", "num_threads": 1}
        plan |= {"runtime": "a library", "created": "2026-01-02T03:04:05+00:00"}
        said = {
            "changes": {"near": "1 of 1"},
            "budget": "cosine>=0.999",
            "figures": {"equal": 0.0, "cosine": 0.9999, "min-cosine": 0.999},
            "data": "feeds",
            "speed": {"against": "onnx", "ratio": 0.5, "low": 0.4, "high": 0.6, "machine": "x", "rows": 8},
            "neighbours": 0.0,
            "tolerances": {"logits": {"atol": 0.0, "rtol": 0.0, "scaled": 5e-3}},
            **evidence,
        }

        def edit(data: Any) -> None:
            first = data["variants"][0]
            data["variants"].append(
                {**first, "name": "near", "graph": "graphs/near.onnx", "evidence": said}
            )
            data["tuned"] = [
                {**plan, "variant": "near", "rows_from": FROM},
                {**plan, "variant": first["name"]},
            ]

        reseal(path)
        edit_manifest(path, edit)
        return path

    return make


def rows(count: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(count).standard_normal((count, 10)).astype(np.float32)}


def test_rows_decide_which_variant_answers(make: Make) -> None:
    """Each answers as it does alone, on both sides of the border, also where runs are watched."""
    path = make()
    with (
        infer.load(path) as session,
        infer.load(path, variant="onnx", num_threads=1) as few,
        infer.load(path, variant="near", num_threads=1) as many,
    ):
        for each in (session, session.watched(lambda stage: stage)):
            for count in (1, FROM - 1, FROM, 50):
                feeds = rows(count)
                alone, other = (few, many) if count < FROM else (many, few)
                found = each.run(feeds)["logits"]
                np.testing.assert_array_equal(found, alone.run(feeds)["logits"])
                assert not np.array_equal(found, other.run(feeds)["logits"])
                assert each.plan_for(feeds).variant == alone.plan.variant


def test_a_variant_that_is_asked_for_answers_all(make: Make) -> None:
    """A wish goes before what was measured."""
    with infer.load(make(), variant="onnx") as session:
        assert session.plan.larger is None
        assert session.plan_for(rows(50)).variant == "onnx"


def test_another_process_opens_the_same(make: Make) -> None:
    """From the recipe, and from the plan itself, which is plain data."""
    with infer.load(make()) as session:
        feeds, plan = rows(50), session.plan
        expected = session.run(feeds)["logits"]
        with pickle.loads(pickle.dumps(session)) as again:
            assert again.plan == plan
            np.testing.assert_array_equal(again.run(feeds)["logits"], expected)
        with open_session(session.artifact, plan=pickle.loads(pickle.dumps(plan))) as again:
            np.testing.assert_array_equal(again.run(feeds)["logits"], expected)


def test_what_is_said_of_the_plan(make: Make) -> None:
    """By `--explain`, by `infer inspect`, and as JSON."""
    path = make()
    np.savez(feeds := path.with_name("feeds.npz"), **rows(5))
    found = infer_command("run", path, "--feeds", feeds, "--explain")
    assert found.code == 0, found.err
    assert f"from {FROM} rows near on onnxruntime, cpu, threads 1" in found.out
    assert (
        f"from {FROM} rows on near on onnxruntime, cpu, threads 1: measured to be faster here" in found.out
    )
    told = infer_command("inspect", path).out
    assert f"threads on cpu of {this_machine().fingerprint}, from {FROM} rows on" in told
    assert "time ×0.500 (0.400–0.600) of onnx's, with 8 rows" in told
    plan = make_plan(Artifact.open(path).manifest, this_machine(), PlanOptions()).to_dict()
    assert isinstance(plan["larger"], dict)
    assert (plan["variant"], plan["larger"]["variant"], plan["larger"]["rows_from"]) == (
        "onnx",
        "near",
        FROM,
    )


def test_golden_points_hold_each_to_its_own(make: Make) -> None:
    """The variant that approximates may be as far off as when it was made, and no farther; the other one
    may not, though it is the same session."""
    with infer.load(make()) as session:
        for factor, within in ((1.0, [True, True]), (1.002, [False, True]), (1.02, [False, False])):
            points = [
                (str(n), rows(n), {"logits": session.run(rows(n))["logits"] * np.float32(factor)})
                for n in (1, 50)
            ]
            found = [difference.within for (difference,) in prove(session, points).values()]
            assert found == within


def test_verify_looks_at_what_is_prepared_for_many_rows(make: Make) -> None:
    """A wrong graph in its place is found, though golden points have few rows."""
    path = make()
    graph = path / "prepared" / "near.onnx"
    graph.parent.mkdir()
    onnx.save(close(onnx.load(path / "graphs" / "near.onnx"), 0.1), graph)
    reseal(path)
    prepared = {"graph": "prepared/near.onnx", "load_ratio": 0.5}
    here = f"onnxruntime {load_backend('onnxruntime').version}"
    edit_manifest(path, lambda data: data["tuned"][0].update(prepared=prepared, runtime=here))
    done = infer_command("verify", path)
    assert done.code == 1
    assert "variant 'near, prepared'" in done.err


def test_as_many_threads_as_asked_for_make_one_plan(make: Make) -> None:
    """Where two plans differ in nothing else, the graph is loaded once."""
    path = make()

    def edit(data: Any) -> None:
        for tuned, threads in zip(data["tuned"], (2, 1), strict=True):
            tuned.update(variant=data["variants"][0]["name"], num_threads=threads)

    edit_manifest(path, edit)
    with infer.load(path, num_threads=1) as session:
        assert session.plan.larger is None
        assert not any("rows" in reason for reason in session.plan.reasons)


def test_feeds_that_a_session_refuses_do_not_keep_it_from_opening(make: Make) -> None:
    """As many rows as the larger plan begins with may be more than one run may be fed with."""
    with infer.load(make(), max_feed_bytes=(FROM - 1) * 40) as session:
        assert session.run(rows(1))["logits"].shape == (1, 2)


def test_callers_are_answered_together(make: Make) -> None:
    """Rows of many callers by the one for many rows, within what that may be off."""
    path = make()
    with infer.load(path, variant="near") as session:
        many = session.run(rows(1))["logits"]
    found: list[Array] = []
    with infer.load(path, batching=BatchOptions(max_delay_s=0.2)) as session:
        assert isinstance(session.batcher.layout, Layout)
        few = session.run(rows(1))["logits"]

        def together() -> bool:
            futures = [session.submit(rows(1)) for _ in range(400)]
            found[:] = [future.result(20)["logits"] for future in futures]
            return any(np.abs(each - many).max() < np.abs(each - few).max() for each in found)

        # on a busy machine callers may come too slowly to be many
        assert any(together() for _ in range(20))
    for each in found:
        assert min(np.abs(each - many).max(), np.abs(each - few).max()) < 1e-5 * np.abs(few).max()


@pytest.mark.parametrize(
    ("by", "neighbours", "why"),
    [
        (0.1, 0.0, "golden rows answer otherwise beside others than alone"),
        (1e-3, 0.03, "an answer of near moves by up to 3.0% with its neighbours"),
    ],
)
def test_callers_are_not_answered_together_by_what_is_farther_off(
    make: Make, by: float, neighbours: float, why: str
) -> None:
    """Golden rows are joined to as many as the larger plan needs, so that it is it that is looked at."""
    with infer.load(make(by, neighbours=neighbours)) as session:
        assert session.batcher.layout == why


def test_a_shadow_checks_what_the_reference_did_not_answer(make: Make) -> None:
    """Few rows are the reference's own."""
    with infer.load(make(), shadow=ShadowOptions(share=1.0), warm_up=False) as session:
        shadow = session.shadow
        assert shadow is not None
        for _ in range(5):
            session.run(rows(1))
        session.run(rows(FROM))
        until(lambda: shadow.stats().checked == 1, wait_s=10)
        assert (shadow.stats().skipped, shadow.stats().off) == (0, 0)


def test_both_are_warm_before_the_first_caller(make: Make) -> None:
    """One row, and as many as the larger plan begins with."""
    artifact = Artifact.open(make())
    asked = []

    def run(feeds: Mapping[str, object], outputs: object = None) -> dict[str, Array]:
        x = feeds["x"]
        assert isinstance(x, np.ndarray)
        asked.append(len(x))
        return {}

    warm_up(artifact, make_plan(artifact.manifest, this_machine(), PlanOptions()), run, True)
    assert asked == [1, FROM]


def test_what_was_loaded_is_closed_if_the_other_cannot_be(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And both are closed with the session."""
    path = make()
    closed: list[ByRows] = []
    from infer.backends.ort import OrtExecutable

    monkeypatch.setattr(OrtExecutable, "close", lambda self: closed.append(self))
    with infer.load(path):
        pass
    assert len(set(map(id, closed))) == 2
    closed.clear()
    artifact = Artifact.open(path)
    plan = make_plan(artifact.manifest, this_machine(), PlanOptions())
    (path / "graphs" / "near.onnx").write_bytes(b"no graph")
    with pytest.raises((BackendError, ArtifactError)):
        prepare(artifact, plan)
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [({"num_threads": 0}, "less than one thread"), ({"streams": -1}, "less than one run at once")],
)
def test_plans_that_nothing_could_follow_are_refused(make: Make, change: dict[str, int], why: str) -> None:
    """Rather than waited for."""
    path = make()
    edit_manifest(path, lambda data: data["tuned"][0].update(change))
    with pytest.raises(ArtifactError, match=f"has a plan for {why}"):
        Artifact.open(path)


@pytest.mark.parametrize(
    ("begins", "why"),
    [((1, 1), r"\[1, 1\]"), ((2, 4), r"\[2, 4\]"), ((1, 2, 3), r"\[1, 2, 3\]"), ((0,), r"\[0\]")],
)
def test_plans_that_leave_rows_open_are_refused(make: Make, begins: tuple[int, ...], why: str) -> None:
    """One for all rows, or two that meet."""
    path = make()

    def edit(data: Any) -> None:
        data["tuned"] = [{**data["tuned"][0], "rows_from": begin} for begin in begins]

    edit_manifest(path, edit)
    with pytest.raises(ArtifactError, match=f"plans for cpu that begin at {why}"):
        Artifact.open(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data["inputs"][0].update(dims=[3, 10]), "its rows are fixed"),
        (lambda data: data.update(inputs=[]), "its rows are fixed"),
        (lambda data: data.update(limits={"batch": {"least": 1, "most": 3}}), "which there cannot be"),
    ],
)
def test_a_plan_for_many_rows_needs_rows(make: Make, change: Callable[[Any], None], why: str) -> None:
    """Of a model whose batch is fixed, or ends before, there is nothing to tell apart."""
    path = make()
    edit_manifest(path, change)
    with pytest.raises(ArtifactError, match=why):
        Artifact.open(path)


def test_an_older_artifact_has_one_plan_for_all_rows(make: Make, tmp_path: Path) -> None:
    """What says nothing of rows is for all of them."""
    path = make()
    shutil.copytree(path, old := tmp_path / "old.infer")

    def edit(data: Any) -> None:
        data["tuned"] = [{k: v for k, v in data["tuned"][0].items() if k != "rows_from"}]

    edit_manifest(old, edit)
    with infer.load(old) as session:
        assert (session.plan.variant, session.plan.larger) == ("near", None)


def test_the_closed_form(make: Make) -> None:
    """Both variants answer what the net is known to answer, as nearly as each may."""
    from tests.tiny import classify

    with infer.load(make()) as session:
        for count, within in ((1, 1e-5), (FROM, 5e-3)):
            expected = classify(classifier(), rows(count)["x"])
            found = session.run(rows(count))["logits"]
            assert np.abs(found - expected).max() <= within * np.abs(expected).max()
