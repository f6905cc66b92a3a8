"""Mean average precision equals what is worked out by hand, and COCO files are read as they are found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import converters
from infer.errors import InputError
from infer.evaluation import Dataset, evaluate_task, read_dataset
from infer.evaluation.detection import Truth
from infer.manifest import TaskSpec
from tests.command import infer_command
from tests.test_object_detection import detector
from tests.tiny import write

A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 40.0, 40.0), (50.0, 0.0, 60.0, 30.0)
LABELS = ["cat", "dog"]
PIXELS = {"box_format": "xyxy", "box_unit": "pixels", "labels": LABELS}


def measured(found: Sequence[tuple[Any, tuple[float, float]]], *truths: Truth) -> Any:
    """The evaluation of a detector that finds `found` (box and scores of cat and dog) in one picture."""
    boxes, scores = zip(*found, strict=True)
    picture = Image.new("RGB", (64, 64))
    return evaluate_task(detector(boxes, scores, **PIXELS), Dataset("by hand", [picture], [truths]))


def test_finding_everything_is_one() -> None:
    """Both things, at their places, with their labels."""
    found = measured([(A, (0.9, 0.0)), (B, (0.0, 0.8))], Truth("cat", A), Truth(1, B))
    assert found.metrics == pytest.approx({"map_50_95": 1.0, "map_50": 1.0, "map_75": 1.0})
    assert [(c.label, c.precision, c.recall, c.f1, c.support) for c in found.classes] == [
        ("cat", 1.0, 1.0, 1.0, 1),
        ("dog", 1.0, 1.0, 1.0, 1),
    ]


def test_average_precision_is_the_area_by_hand() -> None:
    """Of three cats, the best detection is right, the second wrong, the third right, one cat is missed.

    Precision is 1 up to recall 1/3, then 2/3 up to recall 2/3, then 0; COCO samples it at the recalls 0,
    0.01 … 1: at 34 of 101 points it is 1, at 33 it is 2/3.
    """
    wrong = (30.0, 50.0, 40.0, 60.0)
    found = measured(
        [(A, (0.9, 0.0)), (wrong, (0.8, 0.0)), (B, (0.7, 0.0))],
        *(Truth("cat", box) for box in (A, B, C)),
    )
    expected = (34 + 33 * 2 / 3) / 101
    assert found.metrics["map_50"] == pytest.approx(expected, abs=1e-9)
    assert found.metrics["map_50_95"] == pytest.approx(expected, abs=1e-9)
    (cat, dog) = found.classes
    assert (cat.precision, cat.recall, cat.support) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 3)
    assert (dog.support, dog.f1) == (0, 0.0)


def test_overlaps_are_counted_at_each_threshold() -> None:
    """A box that overlaps its truth by 0.72 is right at 0.5, 0.55, 0.6, 0.65 and 0.7: at 5 of 10."""
    found = measured([((0.0, 0.0, 10.0, 7.2), (0.9, 0.0))], Truth("cat", A))
    assert found.metrics == pytest.approx({"map_50_95": 0.5, "map_50": 1.0, "map_75": 0.0})


def test_the_wrong_label_and_the_same_thing_twice_are_wrong() -> None:
    """A dog where a cat is; and a second, less sure box on the same cat, which comes after recall 1."""
    found = measured([(A, (0.0, 0.9))], Truth("cat", A))
    assert found.metrics["map_50"] == 0.0
    found = measured([(A, (0.9, 0.0)), (A, (0.8, 0.0))], Truth("cat", A))
    assert found.metrics["map_50"] == pytest.approx(1.0)
    assert found.classes[0].precision == 0.5


def test_a_crowd_is_neither_right_nor_wrong() -> None:
    """Two boxes in a crowd of cats are not counted."""
    crowd = Truth("cat", (20.0, 20.0, 60.0, 60.0), crowd=True)
    inside = [((20.0, 20.0, 40.0, 40.0), (0.95, 0.0)), ((40.0, 40.0, 60.0, 60.0), (0.94, 0.0))]
    found = measured([*inside, (A, (0.9, 0.0))], Truth("cat", A), crowd)
    assert found.metrics["map_50"] == pytest.approx(1.0)
    assert (found.classes[0].precision, found.classes[0].support) == (1.0, 1)


def test_average_precision_is_not_cut_at_the_task_s_threshold() -> None:
    """Precision and recall of a class are of what the task tells, mean average precision is of all."""
    found = measured([(A, (0.4, 0.0))], Truth("cat", A))
    assert found.metrics["map_50"] == pytest.approx(1.0)
    assert (found.classes[0].precision, found.classes[0].recall) == (0.0, 0.0)


def test_an_unknown_label_is_named() -> None:
    """With what the model knows."""
    for label in ("horse", 2, -1):
        with pytest.raises(
            InputError, match=f"picture 0 has a thing labelled {label!r}.*it knows cat, dog"
        ):
            measured([(A, (0.9, 0.0))], Truth(label, A))


# files ---------------------------------------------------------------------------------------------


DOG = {"id": 7, "image_id": 3, "category_id": 18, "bbox": [1, 2, 30, 40], "area": 900, "iscrowd": 0}


def coco(folder: Path, **changes: Any) -> Path:
    """A folder of two pictures, on one of which there are a dog and a crowd of cats."""
    (folder / "images").mkdir(parents=True)
    for name in ("one.png", "two.png"):
        Image.new("RGB", (64, 48)).save(folder / "images" / name)
    cats = {"id": 9, "image_id": 3, "category_id": 17, "bbox": [0.5, 0, 9, 9], "area": 81, "iscrowd": 1}
    data = {
        "images": [{"id": 5, "file_name": "one.png"}, {"id": 3, "file_name": "two.png"}],
        "annotations": [DOG, cats],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        **changes,
    }
    (folder / "instances.json").write_text(json.dumps(data))
    return folder


def test_coco_annotations_are_read(tmp_path: Path) -> None:
    """From a folder or the file itself; pictures without annotations have none; ids are not places."""
    folder = coco(tmp_path / "data")
    task = detector(labels=LABELS)
    expected = [(), (Truth("dog", (1.0, 2.0, 31.0, 42.0)), Truth("cat", (0.5, 0.0, 9.5, 9.0), crowd=True))]
    for path in (folder, folder / "instances.json"):
        dataset = read_dataset(task, path)
        assert list(dataset.inputs) == [folder / "images" / name for name in ("one.png", "two.png")]
        assert dataset.expected == expected
    unnamed = read_dataset(detector(), folder)
    assert [truth.label for truth in unnamed.expected[1]] == [18, 17]


BROKEN: dict[str, tuple[Any, str]] = {
    "not coco": ({"images": None}, "does not hold COCO annotations"),
    "no file name": ({"images": [{"id": 5}]}, "does not hold COCO annotations"),
    "unknown picture": ({"images": []}, "does not hold COCO annotations"),
    "three numbers": (
        {"annotations": [{"image_id": 3, "category_id": 17, "bbox": [1, 2, 3]}]},
        "ValueError",
    ),
    "a word": ({"annotations": [{"image_id": 3, "category_id": 17, "bbox": "1234x"}]}, "ValueError"),
    "negative": (
        {"annotations": [{"image_id": 3, "category_id": 17, "bbox": [1, 2, -3, 4]}]},
        "it is none",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_not_coco_are_refused(tmp_path: Path, case: str) -> None:
    """With what they lack."""
    changes, words = BROKEN[case]
    with pytest.raises(InputError, match=words):
        read_dataset(detector(labels=LABELS), coco(tmp_path / "data", **changes))


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    """No file, no annotations, two of them, and no JSON."""
    task = detector(labels=LABELS)
    with pytest.raises(InputError, match="there is no data"):
        read_dataset(task, tmp_path / "none.json")
    with pytest.raises(InputError, match=r"holds 0 \.json files"):
        read_dataset(task, tmp_path)
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_dataset(task, tmp_path)
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(InputError, match=r"holds 2 \.json files"):
        read_dataset(task, tmp_path)
    with pytest.raises(InputError, match="does not hold COCO annotations"):
        read_dataset(task, tmp_path / "b.json")


BRIGHT = """g (float[1, 3, height, width] x) => (float[1, 1, 4] boxes, float[1, 1, 2] scores) {
    mean = ReduceMean<axes = [1, 2, 3], keepdims = 1>(x)
    shape = Constant<value = int64[3] {1, 1, 1}>()
    score = Reshape(mean, shape)
    zero = Constant<value = float[1, 1, 1] {0.0}>()
    scores = Concat<axis = 2>(score, zero)
    boxes = Constant<value = float[1, 1, 4] {0.5, 0.5, 0.5, 0.5}>()
}"""


def test_the_commands_tell_and_measure_what_is_found(tmp_path: Path) -> None:
    """`infer run` prints label, score and box, or JSON; `infer eval` prints mean average precision.

    The made-up detector sees a cat in the middle of bright pictures.
    """
    spec = {
        **{"input": "x", "boxes": "boxes", "scores": "scores", "labels": LABELS, "activation": "none"},
        "steps": [{"op": "rescale", "factor": 1 / 255}],
    }
    converters.convert(
        write(tmp_path, BRIGHT), tmp_path / "bright.infer", task=TaskSpec("object-detection", spec)
    )
    Image.new("RGB", (40, 20), (204, 204, 204)).save(tmp_path / "bright.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "dark.png")
    pictures = (tmp_path / "bright.png", tmp_path / "dark.png")
    outcome = infer_command("run", tmp_path / "bright.infer", *pictures)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[1] == " 80.00%  cat  at (10, 5) – (30, 15)"
    assert lines[3] == "nothing with a score above 50%"
    document = json.loads(infer_command("run", tmp_path / "bright.infer", *pictures, "--json").out)
    ((found,), nothing) = (result["detections"] for result in document["results"])
    assert nothing == []
    assert (found["label"], found["index"], found["box"]) == ("cat", 0, [10.0, 5.0, 30.0, 15.0])
    assert found["score"] == pytest.approx(0.8, abs=1e-5)
    data = {
        "images": [{"id": 1, "file_name": "bright.png"}, {"id": 2, "file_name": "dark.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [10, 5, 20, 10]}],
        "categories": [{"id": 4, "name": "cat"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(data))
    outcome = infer_command("eval", tmp_path / "bright.infer", "--data", tmp_path / "truth.json")
    assert outcome.code == 0, outcome.err
    words = outcome.out.split()
    assert words[words.index("map_50") + 1] == "1.0000"
    assert words.count("cat") == 1
