"""Detectors find what the original pipelines find, in pixels of the original picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from skimage import data as photos

import converters
import infer
from converters.sources import SourceRequest, open_source
from infer.errors import ArtifactError, InputError
from infer.signature import Range, Signature, TensorSpec
from infer.tasks import Setting
from infer.tasks.boxes import corners, overlaps, suppress
from infer.tasks.object_detection import Detection, ObjectDetection
from infer.tasks.pixels import Step, prepare
from tests.architectures import ARCHITECTURES

EDGES = {"size": {"shortest_edge": 96, "longest_edge": 140}}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("DetrImageProcessor", EDGES),
    "conditional-detr": ("ConditionalDetrImageProcessor", EDGES),
    "deformable-detr": ("DeformableDetrImageProcessor", EDGES),
    "yolos": ("YolosImageProcessor", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
    "rt-detr": ("RTDetrImageProcessor", {"size": {"height": 96, "width": 96}}),
    "rt-detr-v2": ("RTDetrImageProcessor", {"size": {"height": 96, "width": 96}}),
    "d-fine": ("RTDetrImageProcessor", {"size": {"height": 64, "width": 96}}),
}
RELATIVES = {
    "rt-detr-v2": ("rt-detr", "RTDetrV2ForObjectDetection"),
    "d-fine": ("rt-detr", "DFineForObjectDetection"),
}
"""Families that are built as another one is, and their class."""

THRESHOLD = 0.1
PHOTOS = [getattr(photos, name)() for name in ("cat", "coffee", "astronaut", "rocket")]


def save(name: str, folder: Path, **settings: Any) -> Path:
    """A small random detector of a family, as its users have it; scores differ from query to query."""
    known = {architecture.name: architecture for architecture in ARCHITECTURES}
    architecture = known.get(name)
    if architecture is None:
        base, model_class = RELATIVES[name]
        architecture = replace(known[base], model_class=model_class)
    architecture.save(folder)
    model = getattr(transformers, architecture.model_class).from_pretrained(folder)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if any(part in key for part in ("query_position_embed", "detection_tokens", "class_")):
                parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    kind, kept = PROCESSORS[name]
    config = {"image_processor_type": kind, **kept, **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


def original(folder: Path, photo: Any) -> list[Detection]:
    """transformers' own pipeline on one photo: processor, model, post-processing; best first."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    size = photo.shape[:2]
    with torch.no_grad():
        outputs = model(**processor(photo, return_tensors="pt"))
    (found,) = processor.post_process_object_detection(outputs, THRESHOLD, target_sizes=[size])
    rows = zip(*(found[key].tolist() for key in ("scores", "labels", "boxes")), strict=True)
    made = [Detection(config.id2label[label], score, label, tuple(box)) for score, label, box in rows]
    return sorted(made, key=lambda d: -d.score)


def task_of(folder: Path, *inputs: str) -> ObjectDetection:
    """The task that converting `folder` would attach, answered by the PyTorch model."""
    example = {"pixel_values": torch.zeros(2, 3, 96, 96), "pixel_mask": torch.ones(2, 96, 96).long()}
    given = {name: example[name] for name in inputs}
    source = open_source(SourceRequest(str(folder), "detector", example_inputs=given))
    source.module.eval()
    assert source.task is not None, source.notes
    spec = dict(source.task.spec, threshold=THRESHOLD)
    dims = {"pixel_values": ("float32", 3), "pixel_mask": ("int64",)}
    signature = Signature(
        tuple(TensorSpec(n, dims[n][0], ("batch", *dims[n][1:], "h", "w")) for n in given),
        (
            TensorSpec("logits", "float32", ("batch", "queries", "classes")),
            TensorSpec("pred_boxes", "float32", ("batch", "queries", 4)),
        ),
    )

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            outputs = source.module(**{name: torch.from_numpy(feed) for name, feed in feeds.items()})
        return {name: outputs[name].numpy() for name in ("logits", "pred_boxes")}

    return ObjectDetection(Setting("object-detection", spec, signature, None, Path, run))


def check_equal(ours: list[Detection], theirs: list[Detection]) -> None:
    """Same labels in the same order, scores within 1e-5, boxes within a thousandth of a pixel."""
    assert [d.label for d in ours] == [d.label for d in theirs]
    assert [d.index for d in ours] == [d.index for d in theirs]
    np.testing.assert_allclose([d.score for d in ours], [d.score for d in theirs], atol=1e-5, rtol=0)
    np.testing.assert_allclose([d.box for d in ours], [d.box for d in theirs], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_task_of_a_family_equals_transformers(name: str, tmp_path: Path) -> None:
    """On photos of four sizes in one list, each is answered as transformers answers it alone."""
    folder = save(name, tmp_path / "model")
    theirs = [original(folder, photo) for photo in PHOTOS]
    scores = [d.score for found in theirs for d in found]
    assert len({round(score, 3) for score in scores}) > 10
    assert np.ptp(scores) > 0.03
    for ours, expected in zip(task_of(folder, "pixel_values")(PHOTOS), theirs, strict=True):
        check_equal(ours, expected)


def test_a_mask_says_where_the_picture_is(tmp_path: Path) -> None:
    """DETR pads to a fixed size and is told so; boxes count the picture without its padding."""
    folder = save("detr", tmp_path / "model", pad_size={"height": 144, "width": 160})
    task = task_of(folder, "pixel_values", "pixel_mask")
    (part,) = task.parts(PHOTOS[:2])
    assert part.feeds["pixel_mask"].shape == (2, 144, 160)
    assert 0 < part.feeds["pixel_mask"].mean() < 1
    for ours, photo in zip(task(PHOTOS), PHOTOS, strict=True):
        check_equal(ours, original(folder, photo))


@pytest.mark.parametrize(
    "name", ["yolos", pytest.param("rt-detr", marks=(pytest.mark.slow, pytest.mark.long))]
)
def test_a_detector_folder_converts_with_its_task(name: str, tmp_path: Path) -> None:
    """The artifact, without torch, finds what transformers finds."""
    folder = save(name, tmp_path / "model")
    artifact = converters.convert(folder, tmp_path / "detector.infer")
    assert artifact.manifest.task is not None
    assert artifact.manifest.task.name == "object-detection"
    assert artifact.manifest.parity is not None
    assert artifact.manifest.parity.passed
    assert artifact.manifest.signature.dims == next(a for a in ARCHITECTURES if a.name == name).dims
    with infer.load(artifact.path) as session:
        task: Any = session.task
        task.spec = replace(task.spec, threshold=THRESHOLD)
        for ours, photo in zip(session(PHOTOS), PHOTOS, strict=True):
            check_equal(ours, original(folder, photo))


def test_a_detector_that_cannot_be_read_gets_no_task(tmp_path: Path) -> None:
    """A processor that scales to a largest height and width is not reproduced, and the note says so."""
    folder = save("detr", tmp_path / "model", size={"max_height": 90, "max_width": 100})
    source = open_source(SourceRequest(str(folder), "detector"))
    assert source.task is None
    assert any("no image steps for DetrImageProcessor" in note for note in source.notes)


# a made-up detector, of which the answers are known ------------------------------------------------


SPEC = {"input": "x", "boxes": "boxes", "scores": "scores", "steps": [], "activation": "none"}


def detector(
    boxes: Any = ((0.5, 0.5, 1.0, 1.0),),
    scores: Any = ((0.9, 0.1),),
    *,
    batch: int | str = "batch",
    ran: list[tuple[int, ...]] | None = None,
    changes: Mapping[str, Any] | None = None,
    **spec: Any,
) -> ObjectDetection:
    """A task whose graph finds the same in every picture; `ran` notes the shapes it was fed. The spec is
    `SPEC` with `spec` and `changes`."""

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        rows = len(feeds["x"])
        if ran is not None:
            ran.append(feeds["x"].shape)
        made = {"boxes": np.array(boxes, np.float32), "scores": np.array(scores, np.float32)}
        return {name: np.repeat(array[None], rows, axis=0) for name, array in made.items()}

    signature = Signature(
        (TensorSpec("x", "float32", (batch, 3, "h", "w")),),
        (
            TensorSpec("boxes", "float32", (batch, "n", 4)),
            TensorSpec("scores", "float32", (batch, "n", np.shape(scores)[1])),
        ),
    )
    return ObjectDetection(
        Setting("object-detection", {**SPEC, **spec, **(changes or {})}, signature, None, Path, run)
    )


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height))


def test_nothing_found_is_an_empty_list() -> None:
    """Also for a list in which some have something, and for an empty list."""
    task = detector(threshold=0.95)
    assert task(blank(4, 4)) == []
    assert task([blank(4, 4), blank(8, 4)]) == [[], []]
    assert task([]) == []
    assert task.describe([]) == "nothing with a score above 95%"
    assert task.to_json([]) == {"detections": []}


def test_results_are_told_and_written() -> None:
    """A line for each thing, and plain data."""
    task = detector(labels=["cat", "dog"])
    (found,) = task(blank(40, 30))
    assert found == Detection("cat", pytest.approx(0.9), 0, (0.0, 0.0, 40.0, 30.0))
    assert task.describe([found]) == " 90.00%  cat  at (0, 0) – (40, 30)"
    assert json.loads(json.dumps(task.to_json([found])))["detections"][0]["box"] == [0.0, 0.0, 40.0, 30.0]


def test_pictures_run_with_others_of_their_size_and_come_back_in_order() -> None:
    """Also where they come in many sizes, more than may wait; and at a fixed batch, filled up, or within
    the limits of one that varies."""
    rng = np.random.default_rng(3)
    sizes = [(int(w), int(h)) for w, h in rng.integers(4, 7, (60, 2))]
    for batch, limits, rows in (
        ("batch", {}, Range(1, 4)),
        (3, {}, Range(3, 3)),
        ("batch", {"batch": Range(1, 2)}, Range(1, 2)),
        ("batch", {"batch": Range(6)}, Range(6, 6)),
    ):
        ran: list[tuple[int, ...]] = []
        task = detector(batch=batch, ran=ran)
        signature = replace(task.setting.signature, limits=limits)
        task = ObjectDetection(replace(task.setting, signature=signature))
        results = task([blank(*size) for size in sizes])
        assert [found.box[2:] for (found,) in results] == sizes
        assert len(ran) < 50
        assert all(shape[0] in rows for shape in ran)
        assert max(shape[0] for shape in ran) == rows.most


FORMATS: dict[str, tuple[float, float, float, float]] = {
    "xyxy": (0.1, 0.2, 0.4, 0.8),
    "cxcywh": (0.25, 0.5, 0.3, 0.6),
    "xywh": (0.1, 0.2, 0.3, 0.6),
}


@pytest.mark.parametrize("form", FORMATS)
def test_box_formats_agree(form: str) -> None:
    """Three ways to say the same box."""
    (found,) = detector([FORMATS[form]], box_format=form)(blank(100, 50))
    np.testing.assert_allclose(found.box, (10, 10, 40, 40), atol=1e-5)


WAYS: dict[str, list[dict[str, Any]]] = {
    "as it is": [],
    "stretched": [{"op": "resize", "height": 128, "width": 160}],
    "letterbox": [
        {"op": "resize", "longest_edge": 160},
        {"op": "pad", "height": 160, "width": 192, "centered": True, "fill": 0.0},
    ],
    "corner": [{"op": "resize", "shortest_edge": 120}, {"op": "pad", "multiple_of": 64}],
    "cropped": [{"op": "resize", "shortest_edge": 150}, {"op": "center_crop", "height": 140, "width": 190}],
    "crop first": [
        {"op": "center_crop", "height": 200, "width": 310},
        {"op": "resize", "shortest_edge": 100},
    ],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(300, 200), (211, 333)])
def test_boxes_come_back_to_the_picture_however_it_was_fed(way: str, size: tuple[int, int]) -> None:
    """A white rectangle is found in the pixels that are fed; its box there, in pixels and in fractions,
    becomes its box in the picture."""
    steps = [*WAYS[way], {"op": "rescale", "factor": 1 / 255}]
    true = (90, 80, 180, 150)
    picture = blank(*size)
    picture.paste("white", true)
    placed = prepare(picture, tuple(Step(**step) for step in steps))
    rows, columns = np.nonzero(placed.pixels[0] > 0.5)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
    scale = size[0] / placed.placement.width
    for unit, numbers in (("pixels", box), ("input", box / np.tile(placed.pixels.shape[:0:-1], 2))):
        task = detector([numbers], steps=steps, box_format="xyxy", box_unit=unit)
        (found,) = task(picture)
        # the edge of the rectangle falls between pixels that are fed
        np.testing.assert_allclose(found.box, true, atol=max(1.0, scale))


def test_boxes_are_clipped_if_the_spec_says_so() -> None:
    """A box over the edge of the picture."""
    (found,) = detector([(0.9, 0.5, 0.4, 0.2)])(blank(100, 100))
    assert found.box == pytest.approx((70, 40, 110, 60))
    (found,) = detector([(0.9, 0.5, 0.4, 0.2)], clip=True)(blank(100, 100))
    assert found.box == pytest.approx((70, 40, 100, 60))


@pytest.mark.parametrize(
    ("nothing", "expected"), [("first", ["b", "a"]), ("last", ["a", "b"]), ("none", None)]
)
def test_the_class_of_nothing_is_not_told(nothing: str, expected: list[str] | None) -> None:
    """First, as SSD has it, or last, as DETR; without one, every class is a thing."""
    scores = [(0.6, 0.3, 0.1), (0.05, 0.45, 0.5)]
    labels = ["a", "b"] if expected else ["x", "a", "b"]
    boxes = [(0.5, 0.5, 0.1, 0.1)] * 2
    task = detector(boxes, scores, labels=labels, nothing=nothing, one_label=True, threshold=0.2)
    found = task(blank(9, 9))
    by_hand = {"first": [("b", 0.5), ("a", 0.3)], "last": [("a", 0.6), ("b", 0.45)]}
    expected_pairs = by_hand.get(nothing, [("x", 0.6), ("b", 0.5)])
    assert [(d.label, pytest.approx(d.score)) for d in found] == expected_pairs


def test_numbers_that_are_none_are_not_told() -> None:
    """A box or a score of NaN or infinity, as a half-precision graph may give, hides no other."""
    boxes = [(0.5, 0.5, np.nan, 1), (np.inf, 0.5, 1, 1), (0.5, 0.5, 1, 1), (0.5, 0.5, 0.5, 0.5)]
    for activation in ("none", "softmax", "sigmoid"):
        task = detector(boxes, [(9.0,), (9.0,), (np.nan,), (9.0,)], activation=activation)
        assert [found.box for found in task(blank(8, 8))] == [(2.0, 2.0, 6.0, 6.0)]


def slow_suppression(boxes: np.ndarray[Any, Any], labels: list[int], iou: float) -> list[int]:
    """Greedy non-maximum suppression, box by box, with areas counted on a grid of whole pixels."""
    grids = [np.zeros((64, 64), bool) for _ in boxes]
    for grid, (x0, y0, x1, y1) in zip(grids, boxes.astype(int), strict=True):
        grid[y0:y1, x0:x1] = True
    kept: list[int] = []
    for i, grid in enumerate(grids):
        rivals = [grids[k] for k in kept if labels[k] == labels[i]]
        if all((grid & other).sum() <= iou * (grid | other).sum() for other in rivals):
            kept.append(i)
    return kept


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
def test_suppression_keeps_the_best_of_each_class(iou: float) -> None:
    """Equal to counting pixels, on random boxes; overlaps, too."""
    rng = np.random.default_rng(int(iou * 100))
    first = rng.integers(0, 30, (120, 2))
    boxes = np.concatenate([first, first + rng.integers(4, 34, (120, 2))], axis=1).astype(float)
    labels = rng.integers(0, 3, 120)
    expected = slow_suppression(boxes, labels.tolist(), iou)
    assert 10 < len(expected) < 120
    assert suppress(boxes, labels, iou, 1000).tolist() == expected
    assert suppress(boxes, labels, iou, 7).tolist() == expected[:7]


def test_overlaps_of_empty_and_crossed_boxes_are_none() -> None:
    """Nothing is divided by zero."""
    boxes = np.array([[0, 0, 2, 2], [1, 1, 1, 1], [3, 3, 1, 1], [1, 0, 3, 2]], float)
    expected = np.zeros((4, 4))
    expected[0, 0] = expected[3, 3] = 1.0
    expected[0, 3] = expected[3, 0] = 2 / 6
    np.testing.assert_allclose(overlaps(boxes, boxes), expected)
    np.testing.assert_array_equal(corners(boxes, "xyxy"), boxes)


def test_a_one_stage_detector_suppresses_in_the_task() -> None:
    """Two boxes on one thing become one; the same box of another class stays; the best come first."""
    boxes = [(0.5, 0.5, 0.4, 0.4), (0.52, 0.5, 0.4, 0.4), (0.1, 0.1, 0.1, 0.1)]
    scores = [(0.7, 0.0), (0.8, 0.6), (0.9, 0.0)]
    task = detector(boxes, scores, nms_iou=0.5)
    assert [(d.index, round(d.score, 3)) for d in task(blank(10, 10))] == [(0, 0.9), (0, 0.8), (1, 0.6)]
    task = detector(boxes, scores, nms_iou=0.5, max_detections=2)
    assert [round(d.score, 3) for d in task(blank(10, 10))] == [0.9, 0.8]
    task = detector(boxes, scores, nms_iou=0.5, max_candidates=1)
    assert [round(d.score, 3) for d in task(blank(10, 10))] == [0.9]


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "input": ({"input": "y"}, "names the input 'y', which the graph lacks; it has x"),
    "boxes": ({"boxes": "logits"}, "names the output 'logits'.*it has boxes, scores"),
    "swapped": ({"boxes": "scores", "scores": "boxes"}, r"must be \[batch, queries, 4\]"),
    "mask": ({"mask": "pixel_mask"}, "names the input 'pixel_mask'"),
    "picture as mask": ({"mask": "x"}, r"must be \[batch, height, width\]"),
    "labels": ({"labels": ["a"]}, "1 labels, but the model gives 2 classes of things"),
    "nothing": ({"nothing": "last", "labels": ["a", "b"]}, "2 labels, but the model gives 1 classes"),
    "other nothing": ({"nothing": "middle"}, "nothing 'middle'; use one of none, first, last"),
    "format": ({"box_format": "yxyx"}, "box_format 'yxyx'; use one of xyxy"),
    "unit": ({"box_unit": "inches"}, "box_unit 'inches'"),
    "activation": ({"activation": "relu"}, "activation 'relu'"),
    "iou": ({"nms_iou": 0.0}, "nms_iou 0.0; use a fraction"),
    "most": ({"max_detections": 0}, "max_detections 0; use 1 to 100000"),
    "candidates": ({"max_candidates": 10**9}, "max_candidates 1000000000"),
    "steps": ({"steps": [{"op": "resize", "shortest_edge": 0}]}, "shortest_edge 0"),
    "unknown key": ({"nms": True}, "unknown keys"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_spec_that_cannot_work_is_refused_when_the_task_is_made(case: str) -> None:
    """Before any picture is opened."""
    changes, words = HOSTILE[case]
    with pytest.raises(ArtifactError, match=words):
        detector(changes=changes)


def test_inputs_the_task_does_not_feed_are_named() -> None:
    """A model with a mask and a spec without one."""
    task = detector()
    x = task.setting.signature.inputs[0]
    signature = Signature(
        (x, TensorSpec("m", "int64", ("batch", "h", "w"))), task.setting.signature.outputs
    )
    with pytest.raises(ArtifactError, match="does not feed the graph's input 'm'"):
        ObjectDetection(replace(task.setting, signature=signature))


def test_outputs_of_other_shapes_are_refused() -> None:
    """A graph that gives other numbers of boxes and scores than it says."""
    task = detector([(0.5,) * 4] * 3, [(0.9, 0.1)] * 2)
    with pytest.raises(ArtifactError, match=r"but they have \[1, 3, 4\] and \[1, 2, 2\]"):
        task(blank(4, 4))


def test_a_bad_picture_in_a_list_is_named_by_its_place() -> None:
    """Unreadable, or too long for the padding."""
    with pytest.raises(InputError, match="picture 1: the given bytes cannot be read"):
        detector()([blank(4, 4), b"hello"])
    pad = [{"op": "pad", "height": 8, "width": 8}]
    with pytest.raises(InputError, match="picture 2: an image is 9×4 pixels after resizing"):
        detector(steps=pad)([blank(4, 4), blank(8, 8), blank(9, 4)])
