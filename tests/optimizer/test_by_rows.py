"""What is faster for many rows than for few, and the other way round, is found and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infer
from infer.artifact import Artifact
from infer.errors import BackendError
from infer.measure.statistics import Estimate
from infer.optimizer import by_rows, parse_budget, preparing
from infer.optimizer import search as search_module
from infer.optimizer import timing as timing_module
from infer.optimizer import tuning as tuning_module
from tests.command import infer_command
from tests.optimizer.planted import WIDTH, Plant, harmless, optimized, rough, why

BUDGET = (parse_budget("cosine>=0.999"),)


@pytest.fixture(autouse=True)
def _rows(_no_settings_nor_rows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (search_module, tuning_module):
        monkeypatch.setattr(module, "other_rows", by_rows.other_rows)


def plans(artifact: Artifact) -> list[tuple[str, int, int]]:
    return [(tuned.variant, tuned.num_threads, tuned.rows_from) for tuned in artifact.manifest.tuned]


def test_what_was_dropped_for_one_row_is_kept_for_many(
    classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """From as many rows on as it was seen to be faster; its evidence says at how many it was measured."""
    speeds = {"rough": 1.05}
    speeds |= {f"rough, threads-1{at}": ratio for at, ratio in ((", 8 rows", 0.5), (", 4 rows", 0.7))}
    plant({"good": harmless}, (rough(),), {"good": 0.8, **speeds})
    found = optimized(classifier, tmp_path / "out.infer", budgets=BUDGET)
    assert why(found)["rough"] == (False, "slower")
    assert why(found)["8 rows"] == (True, "from 4 rows rough on onnxruntime, threads 1")
    assert plans(found.artifact) == [("fp32-fused", 1, 1), ("rough", 1, 4)]
    assert found.best == "fp32-fused"
    (many,) = (variant for variant in found.artifact.manifest.variants if variant.name == "rough")
    assert many.evidence is not None
    speed = many.evidence.speed
    assert (many.name, speed.against, speed.ratio, speed.rows) == ("rough", "fp32-fused", 0.5, 8)
    assert many.evidence.budget == "cosine>=0.999"
    with infer.load(tmp_path / "out.infer") as session:
        x = np.ones((5, WIDTH), np.float32)
        assert (session.plan_for({"x": x}).variant, session.plan_for({"x": x[:3]}).variant) == (
            "rough",
            "fp32-fused",
        )
        assert session.run({"x": x})["logits"].shape == (5, 2)
    verified = infer_command("verify", tmp_path / "out.infer")
    assert verified.code == 0, verified.err


def test_the_reference_stays_for_few_rows(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """Where the search was for many, and what won it is slower for one."""
    beside = "good, threads-1 beside reference, threads-1"
    speeds = {f"{beside}, 1 rows": 1.5, f"{beside}, 2 rows": 1.2, f"{beside}, 4 rows": 0.9}
    speeds |= {"good": 0.8, "reference, threads-1, 1 rows": 0.6}
    plant({"good": harmless}, speeds=speeds)
    found = optimized(classifier, tmp_path / "out.infer", objective="throughput")
    assert why(found)["1 row"] == (True, "below 4 rows reference on onnxruntime, threads 1")
    assert plans(found.artifact) == [("fp32", 1, 1), ("fp32-fused", 1, 4)]
    assert [variant.name for variant in found.artifact.manifest.variants] == ["fp32", "fp32-fused"]


def test_one_thread_for_few_rows(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """The same graph with fewer threads is another plan, and no other variant."""
    speeds = {"reference, threads-1 beside reference, threads-2, 1 rows": 0.6}
    plant({}, speeds={**speeds, "reference, threads-2 beside reference, threads-1": 0.9})
    found = optimized(classifier, tmp_path / "out.infer", objective="throughput", num_threads=None)
    assert plans(found.artifact) == [("fp32", 1, 1), ("fp32", 2, 2)]
    assert [variant.name for variant in found.artifact.manifest.variants] == ["fp32"]


def test_a_little_faster_is_not_worth_a_second_graph(
    classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """Which would be in memory, too."""
    plant({}, (rough(),), {"rough": 1.05, "rough, threads-1, 8 rows": 0.95})
    found = optimized(classifier, tmp_path / "out.infer", budgets=BUDGET)
    assert why(found)["8 rows"] == (False, "nothing is surely faster than reference, by enough")
    assert plans(found.artifact) == [("fp32", 1, 1)]


def test_what_breaks_the_budget_is_for_no_rows(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """However fast it is."""
    plant({}, (rough(0, 1, noise=9.0),), {"rough": 0.5, "rough, threads-1, 8 rows": 0.1})
    found = optimized(classifier, tmp_path / "out.infer", budgets=BUDGET)
    assert not why(found)["8 rows"][0]
    assert plans(found.artifact) == [("fp32", 1, 1)]


def test_smaller_files_have_one_plan(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """A second graph would make them larger."""
    plant({}, (rough(),), {"rough": 1.0, "rough, threads-1, 8 rows": 0.5})
    found = optimized(classifier, tmp_path / "out.infer", budgets=BUDGET, objective="size")
    assert "8 rows" not in why(found)


def test_the_command_says_it(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """A line among what was tried, and one in the result; the same as JSON."""
    plant({}, (rough(),), {"rough": 1.05, "rough, threads-1, 8 rows": 0.5})
    command = ("optimize", classifier, "--budget", "cosine>=0.999", "--threads", "1", "-o")
    done = infer_command(*command, tmp_path / "a.infer")
    assert done.code == 0, done.err
    assert "as the original's, but for what follows" in done.out
    assert "×0.500 of the time of fp32 with 8" in done.out
    assert "kept: from 8 rows rough on onnxruntime, threads 1" in done.out
    told = infer_command("inspect", tmp_path / "a.infer").out
    assert "of reference's, with 8 rows" in told
    assert "from 8 rows on" in told
    done = infer_command(*command, tmp_path / "b.infer", "--json")
    assert '"rows_from": 8' in done.out


def test_what_is_slower_beside_the_other_is_not_kept(
    classifier: Path, tmp_path: Path, plant: Plant
) -> None:
    """Both sizes are asked in turn, as a service is: one library's threads keep cores from the other's."""
    speeds = {"rough": 1.05, "rough, threads-1, 8 rows": 0.5, "reference and rough": 1.3}
    plant({}, (rough(),), speeds)
    found = optimized(classifier, tmp_path / "out.infer", budgets=BUDGET)
    assert why(found)["8 rows"] == (
        False,
        "rough ×0.50, but with feeds of both sizes in turn ×1.30",
    )
    assert plans(found.artifact) == [("fp32", 1, 1)]


@pytest.mark.parametrize(
    ("gained", "lost", "kept"), [(0.5, 1.09, True), (0.8, 1.03, True), (0.8, 1.05, False)]
)
def test_what_little_is_lost_in_turn_is_worth_five_times_the_gain(
    classifier: Path, tmp_path: Path, plant: Plant, gained: float, lost: float, kept: bool
) -> None:
    """With large feeds in turn, what small ones gain is hidden by how far large ones' times spread."""
    plant({}, (rough(),), {"rough": 1.05, "rough, threads-1, 8 rows": gained, "reference and rough": lost})
    assert why(optimized(classifier, tmp_path / "out.infer", budgets=BUDGET))["8 rows"][0] == kept


def test_one_thread_beside_another_library(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """Two are as fast, but keep cores from it: then one is."""
    speeds = {"rough": 1.05, "rough, threads-2, 8 rows": 0.5, "rough, threads-1, 8 rows": 0.6}
    speeds["rough, threads-1 beside rough, threads-2, 8 rows"] = 1.2
    plant({}, (rough(),), speeds)
    threads: list[int] = []

    def opened(self: Any, few: Any, many: Any, rows_from: int) -> Any:
        threads.append(many.settings.num_threads)
        speeds["reference and rough"] = 1.3 if many.settings.num_threads == 2 else 1.0
        return by_rows_opened(self, few, many, rows_from)

    by_rows_opened = timing_module.Timing.by_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing_module.Timing, "by_rows", opened)
        found = optimized(classifier, tmp_path / "out.infer", budgets=BUDGET, num_threads=None)
    assert threads == [2, 1]
    assert why(found)["8 rows"] == (True, "from 8 rows rough on onnxruntime, threads 1")


def test_what_fails_with_other_rows_loses_nothing(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that works for few rows alone, or too little memory for many: the rest is written."""

    def fails(*_: object) -> None:
        raise BackendError("no memory for 8 rows")

    monkeypatch.setattr(search_module, "faster_at", fails)
    plant({"good": harmless}, speeds={"good": 0.8})
    found = optimized(classifier, tmp_path / "out.infer")
    assert why(found)["8 rows"] == (False, "it fails: no memory for 8 rows")
    assert plans(found.artifact) == [("fp32-fused", 1, 1)]


@pytest.mark.parametrize(
    ("one", "eight", "kept"),
    [(0.95, 1.0, True), (0.95, 1.09, False), (0.89, 1.09, True), (0.95, 1.5, True)],
    ids=["loses nothing", "is not worth it", "is worth it", "they get their own"],
)
def test_settings_are_held_to_other_rows(
    one: float,
    eight: float,
    kept: bool,
    classifier: Path,
    tmp_path: Path,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loss with eight must be worth a gain for the search's rows, unless they have another plan."""
    monkeypatch.setattr(tuning_module, "SWITCHES", {"no-prepacking": ("prepacking", 1)})
    speeds = {"reference, no-prepacking": one, "reference, no-prepacking, 8 rows": eight}
    plant({}, speeds=speeds)
    found = optimized(classifier, tmp_path / "out.infer")
    said = "faster" if kept else "faster, but ×1.09 with 8 rows"
    assert why(found)["no-prepacking"] == (kept, said)
    assert found.outcome.settings.prepacking != kept


def test_settings_are_kept_where_other_rows_fail(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nobody runs so many."""
    monkeypatch.setattr(tuning_module, "SWITCHES", {"no-prepacking": ("prepacking", 1)})
    plant({})

    def told(contender: Any, against: Any, timed: Any, *_: Any) -> Estimate:
        if len(next(iter(timed[0].values()))) > 1:
            raise BackendError("no memory for 8 rows")
        return Estimate(0.9, 0.89, 0.91)

    monkeypatch.setattr(timing_module, "time_ratio", told)
    found = optimized(classifier, tmp_path / "out.infer")
    assert why(found)["no-prepacking"] == (True, "faster")
    assert why(found)["8 rows"] == (False, "it fails: no memory for 8 rows")


def test_what_is_prepared_for_one_plan_is_not_the_other_s(
    classifier: Path, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both run one graph; packed weights of the first stay when those of the second are not worth it."""
    taken = iter((1.0, 0.5, 0.1, 1.0, 0.95, 0.95))
    monkeypatch.setattr(preparing, "_load_s", lambda opening: next(taken))
    plant({}, speeds={"reference, threads-1 beside reference, threads-2, 1 rows": 0.6})
    path = tmp_path / "out.infer"
    found = optimized(classifier, path, objective="throughput", num_threads=None)
    few, many = found.artifact.manifest.tuned
    assert few.prepared is not None
    assert (few.prepared.graph.endswith("-packed.onnx"), many.prepared) == (True, None)
    for name in found.artifact.manifest.files:
        assert (path / name).is_file()
    with infer.load(path) as session:
        assert session.plan.prepared == few.prepared.graph


def test_a_second_plan_goes_with_the_first(classifier: Path, tmp_path: Path, plant: Plant) -> None:
    """If that is slower as a whole, nothing of it is kept, and the table says so."""
    speeds = {"good": 0.8, "fp32-fused": 0.8, "good beside reference": 0.8}
    speeds |= {"rough": 1.05, "rough, threads-1, 8 rows": 0.5}
    plant({"good": harmless}, (rough(),), speeds)
    seen = {"good": 0}

    def told(candidate: Any, against: Any, timed: Any, *rest: Any) -> Estimate:
        found = given(candidate, against, timed, *rest)
        if candidate.name == "good" and against.name == "reference":
            seen["good"] += 1
            if seen["good"] > 2:  # a glance and a look found it faster before
                return Estimate(1.2, 1.19, 1.21)
        return found

    given = timing_module.time_ratio
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing_module, "time_ratio", told)
        found = optimized(classifier, tmp_path / "out.infer", budgets=BUDGET)
    assert why(found)["8 rows"] == (False, "good is not kept")
    assert plans(found.artifact) == [("fp32", 1, 1)]
