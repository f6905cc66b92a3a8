"""What variants are calibrated and judged with."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import converters
from infer.errors import InputError
from infer.machine import this_machine
from infer.manifest import TaskSpec
from infer.optimizer import parse_budget
from infer.optimizer.material import JUDGED, MEASURED, _halves, _measured, all_nan, material
from infer.optimizer.tables import ids_of
from infer.session import open_artifact, open_session
from tests.optimizer.planted import Plant, optimized, rough
from tests.text_models import bert_folder
from tests.tiny import edit_manifest, parse

COLOURS = ("crimson", "teal", "gold")


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=60))
def test_halves_have_nothing_in_common(count: int, pairs: list[tuple[int, int]]) -> None:
    """Not even one of a pair; unless there are too few, when both are all. Lone entries are all used."""
    lone = [{i: i} for i in range(count)]
    for asked in (lone, [dict(zip(pair, pair, strict=True)) for pair in pairs]):
        calibrating, judging = _halves(asked)
        if calibrating == judging:
            assert sorted(judging) == list(range(len(asked)))
            continue
        seen, held = ({key for place in half for key in asked[place]} for half in (calibrating, judging))
        assert seen
        assert held
        assert not seen & held
        if asked is lone:
            assert len(calibrating) == count // 2
            assert len(calibrating) + len(judging) == count


def test_all_pairs_of_a_few_things_can_be_halved() -> None:
    calibrating, judging = _halves([{i: i, j: j} for i, j in combinations(range(12), 2)])
    assert len(calibrating) >= 10 <= len(judging)


class MeanColour(torch.nn.Module):
    """A vector for a picture; twice as long as it need be, so that there is a product."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(3, 64, bias=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.mix(x.mean((2, 3)))}


@pytest.fixture
def embedding(tmp_path: Path) -> Path:
    """Its artifact."""
    torch.manual_seed(0)
    steps = [
        {"op": "resize", "height": 4, "width": 4},
        {"op": "rescale", "factor": 1 / 255},
    ]
    task = TaskSpec("image-embedding", {"input": "x", "output": "y", "steps": steps})
    path = tmp_path / "e.infer"
    example = {"x": torch.rand(2, 3, 4, 4)}
    converters.convert(MeanColour().eval(), path, example_inputs=example, task=task)
    return path


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A folder with a folder of pictures for each of three."""
    rng = np.random.default_rng(0)
    for colour in COLOURS:
        (tmp_path / "people" / colour).mkdir(parents=True)
        base = np.array(Image.new("RGB", (1, 1), colour))[0, 0].astype(int)
        for i in range(6):
            pixel = np.clip(base + rng.integers(-20, 20, 3), 0, 255).astype(np.uint8)
            Image.fromarray(np.tile(pixel, (4, 4, 1))).save(tmp_path / "people" / colour / f"{i}.png")
    return tmp_path / "people"


def test_pairs_are_asked_one_by_one(embedding: Path, people: Path) -> None:
    """Data of who is who has pairs, and the graph sees each picture of them once."""
    with open_session(open_artifact(embedding)) as session:
        found = material(session, people)
    assert len(found.calibration) == 9 or len(found.calibration) == 10  # half of 18, and one of a pair
    assert len(found.judged) == 18 - len(found.calibration)
    assert found.dataset is not None
    assert {len(pair) for pair in found.dataset.inputs} == {2}
    assert found.described == (
        f"{len(found.judged)} feeds of people that calibration did not see; metrics, if any, on"
        f" {len(found.dataset.inputs)} pairs of such"
    )


def test_embeddings_are_optimized_on_their_pairs(
    embedding: Path, people: Path, tmp_path: Path, plant: Plant
) -> None:
    """What changes numbers is judged by the task's metric of pairs."""
    plant({}, (rough(),))
    budget = parse_budget("roc_auc-5%")
    found = optimized(embedding, tmp_path / "out.infer", data=people, budgets=(budget,))
    (verdict,) = found.verdicts
    assert verdict.name == "rough"
    assert verdict.figures["roc_auc"] > 0.9


def test_answers_to_what_is_judged_fit_the_memory(
    classifier: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a row are 8 bytes; a sixteenth of 800 are 50, so that the seventh row is the last. What is
    only calibrated with is not answered again, and is as much as ever."""
    with open_session(open_artifact(classifier)) as session:
        assert len(material(session, rows).judged) == 100
        small = replace(this_machine(), memory_bytes=800)
        monkeypatch.setattr("infer.optimizer.material.this_machine", lambda: small)
        found = material(session, rows)
    assert len(found.judged) == 7
    assert len(found.calibration) == 100
    assert found.described.startswith("7 feeds of rows.npz")


def test_made_up_ids_are_all_that_a_table_has(tmp_path: Path) -> None:
    """Where golden feeds say nothing of them: a graph that was quantized with ten words knows no others.
    Ids of two tables are those of the smaller one, and what chooses no rows is none."""
    proto = parse(
        "g (int64[N, T] ids, int64[N, T] kinds, int64[1] place) => (float[N, T, 2] y) {"
        " flat = Cast<to = 6>(ids) a = Gather(words, flat) b = Gather(few, ids) c = Gather(two, kinds)"
        " d = Add(a, b) e = Add(c, d) f = Gather<axis = 1>(words, place) g = ReduceSum(f) y = Add(e, g) }"
    )
    for name, count in (("words", 5000), ("few", 3000), ("two", 2)):
        table = np.random.default_rng(0).random((count, 2)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(table, name))
    onnx.save(proto, tmp_path / "words.onnx")
    assert ids_of(ir.load(tmp_path / "words.onnx").graph) == {"ids": 3000, "kinds": 2}
    with open_session(open_artifact(tmp_path / "words.onnx")) as session:
        found = material(session, None)
    ids = np.concatenate([feeds["ids"].ravel() for feeds in found.judged])
    assert 2900 < ids.max() < 3000
    assert {kind for feeds in found.judged for kind in feeds["kinds"].ravel().tolist()} == {0, 1}


def test_without_data_the_task_makes_inputs_up(embedding: Path) -> None:
    """Pictures, not noise about the example, which is judged and timed as well."""
    with open_session(open_artifact(embedding)) as session:
        found = material(session, None)
    assert found.described == "16 made-up inputs and the example: weak evidence, give real ones with --data"
    assert (len(found.calibration), len(found.judged), len(found.timed)) == (16, 17, 1)
    pictures = np.stack([feeds["x"][0] for feeds in (*found.calibration, *found.judged)])
    assert 0.0 <= pictures.min() < 0.2 < 0.8 < pictures.max() <= 1.0
    assert len({picture.tobytes() for picture in pictures}) == 33


def test_the_length_of_the_example_is_timed_too(tmp_path: Path) -> None:
    """However long it is beside texts that are made up."""
    folder = bert_folder(tmp_path / "bert", "SequenceClassification", max_position_embeddings=300)
    ids = torch.randint(5, 20, (2, 250))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": 0 * ids}
    artifact = converters.convert(folder, tmp_path / "b.infer", example_inputs=example)
    with open_session(artifact) as session:
        found = material(session, None)
    lengths = [feeds["input_ids"].shape[1] for feeds in found.timed]
    assert len(set(lengths[:-1])) > 3
    assert max(lengths[:-1]) < 200 < lengths[-1]


class TableOfFive(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(5, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.table(x).flatten(1)}


def test_inputs_that_a_model_refuses_are_made_like_its_example(tmp_path: Path) -> None:
    """A column of ids that calls itself numeric: most made-up numbers are no ids."""
    task = TaskSpec("tabular-classification", {"input": "x", "output": "y", "columns": [{"name": "id"}]})
    example = {"x": torch.tensor([[3], [4]])}
    path = tmp_path / "t.infer"
    artifact = converters.convert(TableOfFive().eval(), path, example_inputs=example, task=task)
    with open_session(artifact) as session:
        found = material(session, None)
    assert found.described == "16 made-up feeds: weak evidence, give real ones with --data"


@pytest.mark.parametrize("alike", [False, True])
def test_made_up_lengths_differ_from_each_other(tmp_path: Path, alike: bool) -> None:
    """Where a graph takes two lengths, what is right for equal ones only shows; where they must be equal,
    they are."""
    body = "y = Add(a, b)" if alike else "s = ReduceSum(b) y = Add(a, s)"
    onnx.save(
        parse(f"g (float[N, L, 4] a, float[N, M, 4] b) => (float[N, L, 4] y) {{ {body} }}"),
        tmp_path / "m.onnx",
    )
    with open_session(open_artifact(tmp_path / "m.onnx")) as session:
        found = material(session, None)
    lengths = {(feeds["a"].shape[1], feeds["b"].shape[1]) for feeds in found.judged}
    assert len(lengths) > 1
    assert all(a == b for a, b in lengths) == alike


def test_an_input_that_the_reference_answers_with_nan_is_named(classifier: Path, tmp_path: Path) -> None:
    """It says nothing about a variant; the cure is said. One NaN among numbers is no reason."""
    x = np.random.default_rng(0).random((40, 10)).astype(np.float32)
    with open_session(open_artifact(classifier)) as session:
        _, judging = _halves([{i: i} for i in range(len(x))])
        x[judging[3]] = 3e38  # overflows, and infinity times 0 is NaN
        np.savez(tmp_path / "rows.npz", inputs=x, labels=np.zeros(len(x), int))
        said = f"input {judging[3] + 1} of rows.npz: the reference answers with NaN alone"
        with pytest.raises(InputError, match=said):
            material(session, tmp_path / "rows.npz")
    nan, one = np.array([np.nan, np.nan]), np.array([np.nan, 1.0])
    assert all_nan({"a": nan, "b": np.array([1])})
    assert not all_nan({"a": nan, "b": one})
    assert not all_nan({"b": np.array([1])})


def test_made_up_feeds_that_find_nothing_judge_nothing(tmp_path: Path) -> None:
    """A detector that sees no object in noise gives no boxes, and every variant would be equal to it."""
    proto = parse(
        "g (float[N, 4] x) => (float[K] y) { far = Constant<value = float {1e9}>()"
        " m = Greater(x, far) f = Reshape(m, all) y = Compress(x, f) }",
        opset=21,
        ir_version=10,
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), "all"))
    onnx.save(proto, tmp_path / "m.onnx")
    with (
        open_session(open_artifact(tmp_path / "m.onnx")) as session,
        pytest.raises(InputError, match=r"with nothing at all.* give real ones with --data"),
    ):
        material(session, None)


@pytest.mark.parametrize(("least", "most", "timed"), [(2, None, (2, 8)), (3, 4, (3, 4))])
def test_a_batch_with_limits_is_fed_within_them(
    tmp_path: Path, least: int, most: int | None, timed: tuple[int, int]
) -> None:
    """One row where the model takes no single one; eight where it takes four at most."""

    class Rows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1)

    path = tmp_path / "m.infer"
    converters.convert(Rows().eval(), path, example_inputs={"x": torch.rand(3, 5)})

    def limit(data: Any) -> None:
        data["limits"] = {data["inputs"][0]["dims"][0]: {"least": least, "most": most}}

    edit_manifest(path, limit)
    with open_session(open_artifact(path)) as session:
        for batch, rows in zip((1, 8), timed, strict=True):
            found = material(session, None, batch)
            assert {len(feeds["x"]) for feeds in found.judged} == {least}
            assert {len(feeds["x"]) for feeds in found.timed} == {rows}
    assert optimized(path, tmp_path / "o.infer", objective="throughput").unfinished == ""


def test_no_more_inputs_are_measured_than_take_seconds() -> None:
    """Twice as many as are compared, and so on, while the reference answers them in 20 s; of pairs, those
    of these inputs."""
    rows = [{i: i} for i in range(10_000)]
    places = list(range(10_000))
    assert [len(_measured(rows, places, each_s)) for each_s in (1.0, 0.03, 0.015, 1e-4)] == [
        JUDGED,
        512,
        1024,
        MEASURED,
    ]
    pairs = [{i: i, j: j} for i, j in combinations(range(300), 2)]
    kept = _measured(pairs, list(range(len(pairs))), 1.0)
    assert len({key for place in kept for key in pairs[place]}) == JUDGED
    assert len(kept) == JUDGED * (JUDGED - 1) // 2
