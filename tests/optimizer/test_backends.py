"""Settings and backends that take over where they are faster."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import infer
from infer import planner
from infer.artifact import Artifact
from infer.backends.openvino import OpenvinoBackend
from infer.errors import BackendError, InputError, MissingPackageError
from infer.machine import this_machine
from infer.measure.statistics import Estimate
from infer.optimizer import INTERRUPTED, OUT_OF_TIME, parse_budget
from infer.optimizer import making as making_module
from infer.optimizer import search as search_module
from infer.optimizer import timing as timing_module
from infer.optimizer import tuning as tuning_module
from infer.optimizer.apart import Planned
from infer.optimizer.gates import Contender, time_ratio
from infer.optimizer.outcome import Settings
from infer.optimizer.targets import Target
from infer.optimizer.tuning import SWITCHES
from tests.command import infer_command
from tests.optimizer.planted import WIDTH, Plant, harmless, optimized, rough, why


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are."""
    two = replace(this_machine(), cores=2)
    for module in ("session", "optimizer.search", "optimizer.timing", "optimizer.writing"):
        monkeypatch.setattr(f"infer.{module}.this_machine", lambda: two)


@pytest.mark.usefixtures("two_cores")
def test_fewer_threads_are_kept_where_they_are_faster(
    classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """They become part of the plan for this machine."""
    plant({}, speeds={"reference, threads-1": 0.7})
    found = optimized(classifier, tmp_path / "out.infer", num_threads=None)
    assert why(found) == {"threads-1": (True, "faster")}
    with infer.load(tmp_path / "out.infer") as loaded:
        assert loaded.plan.num_threads == 1


@pytest.mark.usefixtures("two_cores")
def test_settings_are_tried_although_time_for_graphs_is_over(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again for the graph that is the best when the search goes on."""
    plant({"good": harmless}, speeds={"good": 0.8, "reference, threads-1": 0.7, "good, threads-1": 1.3})
    with monkeypatch.context() as patched:
        patched.setattr("infer.optimizer.search._FOR_GRAPHS", 0.0)
        found = optimized(classifier, tmp_path / "out.infer", num_threads=None)
    assert (why(found), found.unfinished) == ({"threads-1": (True, "faster")}, OUT_OF_TIME)
    assert found.outcome.settings == Settings(1)

    def over(_: Any) -> None:
        raise search_module._OutOfTimeError

    with monkeypatch.context() as patched:
        patched.setattr(tuning_module.Tuning, "do_all", over)
        found = optimized(classifier, tmp_path / "out.infer", num_threads=None)
    assert (why(found), found.unfinished) == ({"good": (True, "faster")}, OUT_OF_TIME)
    assert found.outcome.settings == Settings(2)
    found = optimized(classifier, tmp_path / "out.infer", num_threads=None)
    assert (why(found), found.unfinished) == (
        {"good": (True, "faster"), "threads-1": (False, "slower")},
        "",
    )
    assert found.outcome.settings == Settings(2)


def test_settings_are_kept_where_they_are_faster(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on top of the other, as the plan for this machine; a single thread does not wait for others."""
    plant({}, speeds={"reference, no-spinning": 0.7, "reference, no-prepacking": 0.8})
    monkeypatch.setattr(tuning_module, "SWITCHES", SWITCHES)
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


@pytest.mark.parametrize(("ratio", "kept", "why_not"), [(0.9, True, "faster"), (1.0, False, "not faster")])
def test_huge_pages_are_kept_where_they_are_faster(
    classifier: Path,
    tmp_path: Path,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
    ratio: float,
    kept: bool,
    why_not: str,
) -> None:
    """Timed in processes of their own, and so is all together; sessions of the output then have them where
    the system gives any."""
    plant({})
    asked = []

    def told(ours: Planned, theirs: Planned, *_: Any) -> Estimate:
        asked.append((ours.plan.huge_pages, theirs.plan.huge_pages))
        return Estimate(ratio, ratio * 0.99, ratio * 1.01)

    monkeypatch.setattr(timing_module, "ratio_apart", told)
    monkeypatch.setattr(tuning_module, "huge_pages_work", lambda: True)
    monkeypatch.setattr(planner, "huge_pages_work", lambda: True)
    found = optimized(classifier, tmp_path / "out.infer", num_threads=1)
    assert why(found) == {"huge-pages": (kept, why_not)}
    assert found.outcome.settings == Settings(1, huge_pages=kept)
    assert asked == [(True, False)] * (1 + kept)
    said = infer_command("inspect", tmp_path / "out.infer").out
    assert ("memory in huge pages" in said) == kept
    assert ("memory in huge pages" in found.outcome.settings.said) == kept
    with infer.load(tmp_path / "out.infer", warm_up=False) as session:
        assert session.plan.huge_pages == kept
    monkeypatch.setattr(planner, "huge_pages_work", lambda: False)
    with infer.load(tmp_path / "out.infer", warm_up=False) as session:
        assert not session.plan.huge_pages
        assert any("no huge pages: this system" in reason for reason in session.plan.reasons) == kept


@pytest.mark.parametrize(
    ("speeds", "kept", "settings", "streams"),
    [
        ({}, set(), Settings(2), 1),
        ({"streams-2": 0.7}, {"streams-2"}, Settings(2, spinning=False, streams=2), 2),
        ({"a-thread-each": 0.7}, {"a-thread-each"}, Settings(1, spinning=False, streams=2), 2),
        (
            {"threads-1": 0.9, "a-thread-each": 0.7},
            {"threads-1", "a-thread-each"},
            Settings(1, spinning=False, streams=2),
            2,
        ),
        # a plan without spinning would have two by itself
        ({"no-spinning": 0.9}, {"no-spinning"}, Settings(2, spinning=False, streams=1), 1),
    ],
    ids=["as it is", "sharing threads", "a thread each", "one thread before", "one alone"],
)
def test_several_runs_at_once_for_throughput(
    speeds: dict[str, float],
    kept: set[str],
    settings: Settings,
    streams: int,
    classifier: Path,
    tmp_path: Path,
    plant: Plant,
    two_cores: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where that is faster they are part of the plan, within the cores that a caller asks for; where one
    is, that is."""
    plant({}, speeds={f"reference, {name}": speed for name, speed in speeds.items()})
    monkeypatch.setattr(tuning_module, "SWITCHES", {"no-spinning": SWITCHES["no-spinning"]})
    path = tmp_path / "out.infer"
    found = optimized(classifier, path, num_threads=None, objective="throughput")
    assert {name for name, (is_kept, _) in why(found).items() if is_kept} == kept
    assert {"a-thread-each"} < why(found).keys()
    assert ("streams-2" in why(found)) == ("threads-1" not in kept)
    assert found.outcome.settings == settings
    with infer.load(path) as session, infer.load(path, streams=1) as one:
        assert session.plan.streams == streams
        assert one.plan.streams == 1
        said = f"{streams} run{'s' * (streams > 1)} at once: measured to answer most here"
        assert (said in session.plan.reasons) == (settings.streams is not None)
    with infer.load(path, num_threads=1) as narrow:
        assert narrow.plan.streams == 1
    assert infer_command("inspect", path).out.count(", 2 runs at once") == (streams == 2)


def test_for_latency_one_run_is_timed(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lone caller gains nothing by several, though a plan without spinning has several by itself."""
    plant({})
    monkeypatch.setattr(tuning_module, "SWITCHES", {"no-spinning": SWITCHES["no-spinning"]})
    streams = {}

    def told(contender: Contender, *_: Any) -> Estimate:
        with contender.opening() as session:
            streams[contender.name] = (session.plan.spinning, session.plan.streams)
        return Estimate(0.1, 0.1, 0.1)

    monkeypatch.setattr(timing_module, "time_ratio", told)
    found = optimized(classifier, tmp_path / "out.infer", num_threads=2)
    assert why(found) == {"no-spinning": (True, "faster")}
    assert streams["reference, no-spinning"] == (False, 1)
    with infer.load(tmp_path / "out.infer", num_threads=2) as session:
        assert session.plan.streams == min(2, this_machine().cores)


def test_streams_that_fail_lose_nothing_else(
    classifier: Path, tmp_path: Path, plant: Plant, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where several runs at once need more memory than there is."""
    plant({})

    def told(contender: Contender, *_: Any) -> Estimate:
        if "streams-2" in contender.name:
            raise BackendError("there is no memory for it")
        found = 0.5 if "a-thread-each" in contender.name else 1.0
        return Estimate(found, found, found)

    monkeypatch.setattr(timing_module, "time_ratio", told)
    found = optimized(classifier, tmp_path / "out.infer", num_threads=None, objective="throughput")
    assert why(found)["streams-2"] == (False, "it fails: there is no memory for it")
    assert why(found)["a-thread-each"] == (True, "faster")


def test_threads_of_several_runs_are_not_those_of_one(
    classifier: Path, tmp_path: Path, plant: Plant, two_cores: None
) -> None:
    """A thread for each of two runs is no plan for who wants one run; a worker with one core has one."""
    plant({}, speeds={"reference, a-thread-each": 0.7})
    path = tmp_path / "out.infer"
    optimized(classifier, path, num_threads=None, objective="throughput")
    wishes = [
        {},
        {"streams": 2},
        {"streams": 1},
        {"spinning": True},
        {"num_threads": 2},
        {"num_threads": 1},
    ]
    for wish, expected in zip(wishes, [(1, 2), (1, 2), (2, 1), (2, 1), (2, 2), (1, 1)], strict=True):
        with infer.load(path, **wish) as session:
            assert (session.plan.num_threads, session.plan.streams) == expected, wish
            assert session.plan.cores == (1 if expected == (1, 1) else 2)


def test_ctrl_c_ends_a_look_and_the_search(classifier: Path, tmp_path: Path) -> None:
    """Rounds that were finished are no look: what was measured until then might keep anything."""

    class Asked:
        plan = SimpleNamespace(streams=1)
        count = 0

        def run(self, feeds: dict[str, np.ndarray]) -> None:
            self.count += 1
            time.sleep(0.001)
            if self.count == 400:
                raise KeyboardInterrupt

    sessions = [Asked(), Asked()]
    contenders = [Contender("c", lambda each=each: nullcontext(each)) for each in sessions]
    with pytest.raises(KeyboardInterrupt):
        time_ratio(*contenders, [{"x": np.zeros(1)}], 2.0, lambda said: None, 2)
    assert sessions[0].count >= 400 or sessions[1].count >= 400


@pytest.mark.parametrize(("streams", "against"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("count", [1, 3])
def test_streams_are_timed_by_as_many_callers(streams: int, against: int, count: int) -> None:
    """Both contenders answer all feeds equally often, each from as many threads as it has streams, which
    all have the same share."""
    feeds = [{"x": np.full(1, number)} for number in range(count)]

    class Asked:
        def __init__(self, streams: int) -> None:
            self.plan, self.seen = SimpleNamespace(streams=streams), []

        def run(self, feeds: dict[str, np.ndarray]) -> None:
            time.sleep(0.004)
            self.seen.append((threading.get_ident(), float(feeds["x"][0])))

    sessions = [Asked(streams), Asked(against)]
    contenders = [
        Contender(f"{each.plan.streams}", lambda each=each: nullcontext(each)) for each in sessions
    ]
    ratio = time_ratio(*contenders, feeds, 0.2, lambda said: None, 1)
    for each in sessions:
        shares = Counter(thread for thread, _ in each.seen)
        assert len(shares) == each.plan.streams
        assert set(Counter(number for _, number in each.seen).values()) == {len(each.seen) // count}
    assert ratio.low < against / streams * 1.2
    assert ratio.high > against / streams / 1.2


def test_settings_are_measured(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the best so far, with a ratio and its interval; what is not surely faster is not in the plan."""
    plant({})
    monkeypatch.setattr(tuning_module, "SWITCHES", SWITCHES)
    found = optimized(classifier, tmp_path / "out.infer", gate_s=0.05)
    (verdict,) = found.verdicts
    assert (verdict.name, verdict.against) == ("no-prepacking", "reference")
    assert verdict.ratio is not None
    assert verdict.kept == (verdict.why == "faster")
    assert verdict.ratio.high < 1 or not verdict.kept
    (tuned,) = found.artifact.manifest.tuned
    assert tuned.prepacking == found.outcome.settings.prepacking
    assert tuned.prepacking or verdict.kept


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


def computes_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: without kernels of its own OpenVINO computes in float32."""
    monkeypatch.setattr(OpenvinoBackend, "compute_dtypes", lambda self, machine, signature: ("bfloat16",))


def test_a_type_that_computes_sooner_needs_a_budget(
    classifier: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reference's own graph in bfloat16 is kept within a budget, and recipes are tried in it, too;
    where answers must be equal it is not tried."""
    computes_in_bfloat16(monkeypatch)
    two_backends({"openvino-bfloat16": 0.5})
    output, budgets = tmp_path / "out.infer", (parse_budget("cosine>=0.99"),)
    found = optimized(classifier, output, budgets=budgets)
    tried = {verdict.name: verdict for verdict in found.verdicts}
    assert tried["openvino-rough"].compute_dtype is None
    assert tried["openvino-rough-bfloat16"].compute_dtype == "bfloat16"
    assert tried["openvino-rough-bfloat16"].precision == tried["openvino-rough"].precision
    reference, variant = found.artifact.manifest.variants
    assert (variant.name, variant.compute_dtype, variant.graph) == (
        "openvino-bfloat16", "bfloat16", reference.graph,
    )  # fmt: skip
    assert variant.precision == "float32"
    assert "openvino in bfloat16" in infer_command("inspect", output).out
    with infer.load(output) as fast, infer.load(output, variant="fp32") as slow:
        assert (fast.plan.compute_dtype, slow.plan.compute_dtype) == ("bfloat16", None)
        assert "openvino, in bfloat16" in str(fast.plan)
        x = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}
        for name, answer in slow.run(x).items():
            np.testing.assert_allclose(fast.run(x)[name], answer, rtol=0.03, atol=0.03)
    assert infer_command("verify", output).code == 0
    assert "openvino-bfloat16" not in why(optimized(classifier, tmp_path / "equal.infer"))


def test_nodes_are_searched_for_once_for_both_types(
    classifier: Path,
    rows: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What must stay in float where the rest is computed in float32, stays so in bfloat16."""
    computes_in_bfloat16(monkeypatch)
    two_backends({"openvino-bfloat16": 0.5, "openvino-spoilt-bfloat16-mixed": 0.5})
    spoilt = Target("openvino", "cpu", {}, (replace(rough(0), name="openvino-spoilt"),))
    monkeypatch.setattr(
        search_module, "targets_of", lambda device: (Target("onnxruntime", "cpu", {}), spoilt)
    )
    searched: list[list[str]] = []

    def told(names: list[str], *_: Any) -> Iterator[list[str]]:
        searched.append(list(names))
        yield list(names)[:1]

    monkeypatch.setattr(making_module, "kept_in_float", told)
    budgets = (parse_budget("accuracy-1%"),)
    found = optimized(classifier, tmp_path / "out.infer", budgets=budgets, data=rows)
    tried = {verdict.name: verdict for verdict in found.verdicts}
    assert tried["openvino-spoilt-mixed"].within
    assert (found.best, tried[found.best].changed) == ("openvino-spoilt-bfloat16-mixed", "1 of 2")
    assert len(searched) == 1


def test_a_type_that_does_not_help_is_not_kept(
    classifier: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Recipes then compute in float32 alone what they do not quantize."""
    computes_in_bfloat16(monkeypatch)
    two_backends({"openvino-rough": 0.5})
    found = optimized(classifier, tmp_path / "out.infer", budgets=(parse_budget("cosine>=0.99"),))
    tried = {verdict.name: verdict for verdict in found.verdicts}
    assert (tried["openvino-bfloat16"].kept, tried["openvino-bfloat16"].why) == (False, "not faster")
    assert "openvino-rough-bfloat16" not in tried
    assert tried["openvino-rough"].compute_dtype is None
    assert found.best == "openvino-rough"
    assert found.artifact.manifest.variants[-1].compute_dtype is None


def test_an_interrupt_after_another_backend_took_over(
    classifier: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan names the library that was measured, and nothing is prepared by another one."""
    two_backends({"good": 0.9, "openvino": 0.5})
    told = timing_module.time_ratio

    def stop(candidate: Any, against: Any, *rest: Any) -> Estimate:
        if (candidate.name, against.name) == ("openvino", "reference"):
            raise KeyboardInterrupt
        return told(candidate, against, *rest)

    monkeypatch.setattr(timing_module, "time_ratio", stop)
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


def test_integers_are_tried_before_what_only_stores_weights(
    classifier: Path,
    tmp_path: Path,
    two_backends: Callable[[dict[str, float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of every backend, the best so far first: the time may be over before the last."""
    two_backends({"openvino": 0.5})
    weights = replace(rough(), name="weights", precision="int8 weights")
    integers = replace(rough(), name="integers", precision="int8 (by {})")
    targets = [
        Target("onnxruntime", "cpu", {}, (integers, weights)),
        Target("openvino", "cpu", {}, (replace(integers, name="openvino-integers"),)),
    ]
    monkeypatch.setattr(search_module, "targets_of", lambda device: targets)
    found = optimized(classifier, tmp_path / "out.infer", budgets=(parse_budget("cosine>=0.99"),))
    tried = [verdict.name for verdict in found.verdicts]
    assert tried[:4] == ["openvino", "openvino-integers", "integers", "weights"]


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
