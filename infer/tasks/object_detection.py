"""object-detection: a picture in, the things in it out, each with its label and its box."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError
from infer.signature import Array
from infer.tasks import Setting
from infer.tasks.boxes import FORMATS, corners, suppress
from infer.tasks.labels import ACTIVATIONS, Classes, activate
from infer.tasks.pixels import Placement, Prepared, Step, picture_input, prepare_at, synthetic_picture
from infer.tasks.rows import Part, answer, answer_parts, batch_rows

# pictures for detection are large; a few keep the cores busy
_BATCH_SIZE = 4
_MAX_WAITING = 16
"""So many pictures may wait for others of their size."""

_UNITS = ("picture", "input", "pixels")
_NOTHING = ("none", "first", "last")
_MOST = 100_000


@dataclass(frozen=True)
class ObjectDetectionSpec:
    """`input` takes pictures, `mask`, if the model has one, 1 where a picture is and 0 where padding is.

    `boxes` is the output with shape (batch, queries, 4), `scores` that with (batch, queries, classes).

    box_format      xyxy, cxcywh or xywh
    box_unit        what box numbers count: "picture", fractions of the picture without its padding;
                    "input", fractions of what is fed; "pixels" of what is fed
    activation      makes scores of the model's numbers: softmax, sigmoid or none
    nothing         the class that means there is nothing: "first", "last" or "none"
    one_label       whether a query speaks of one thing, or of one for each class
    threshold       less probable things are not told
    max_detections  at most so many things are told, the best
    nms_iou         of two boxes of a class that overlap more, the better one stays; null: all stay
    max_candidates  at most so many enter that comparison, the best
    clip            whether boxes end where the picture ends
    """

    input: str
    boxes: str
    scores: str
    steps: tuple[Step, ...]
    labels: tuple[str, ...] = ()
    mask: str | None = None
    box_format: str = "cxcywh"
    box_unit: str = "picture"
    activation: str = "softmax"
    nothing: str = "none"
    one_label: bool = False
    threshold: float = 0.5
    max_detections: int = 100
    nms_iou: float | None = None
    max_candidates: int = 1000
    clip: bool = False


@dataclass(frozen=True)
class Detection:
    """A thing found: `box` is (x0, y0, x1, y1) in pixels of the upright picture, `index` the place of the
    label among the labels."""

    label: str
    score: float
    index: int
    box: tuple[float, float, float, float]


class ObjectDetection:
    """An input is what `open_picture` takes; a result is a list of `Detection`, best first.

    Pictures run together with others of their size only, without padding between them, so that an
    answer does not depend on its neighbours.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(ObjectDetectionSpec)
        self.classes = Classes(self.spec.labels, self.spec.activation)
        _check(setting, self.spec)

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, lambda many: answer_parts(self.setting, self.parts(many), self.decode))

    def parts(self, pictures: Sequence[Any]) -> Iterator[Part]:
        """Feeds: float32, shape = (batch, 3, H, W), and the mask. Raises `InputError`."""
        batch_size = batch_rows(self.setting.signature, _BATCH_SIZE)
        waiting: dict[tuple[int, int], dict[int, Prepared]] = {}
        for i in range(len(pictures)):
            prepared = prepare_at(pictures, i, self.spec.steps)
            same = waiting.setdefault(prepared.placement.fed, {})
            same[i] = prepared
            if len(same) == batch_size:
                yield self._part(waiting.pop(prepared.placement.fed))
            elif sum(map(len, waiting.values())) > _MAX_WAITING:
                yield self._part(waiting.pop(max(waiting, key=lambda fed: len(waiting[fed]))))
        for same in waiting.values():
            yield self._part(same)

    def _part(self, prepared: Mapping[int, Prepared]) -> Part:
        placements = [item.placement for item in prepared.values()]
        feeds = {self.spec.input: np.stack([item.pixels for item in prepared.values()])}
        if self.spec.mask is not None:
            dtype = self.setting.input(self.spec.mask).numpy_dtype
            feeds[self.spec.mask] = np.stack([_mask(placement) for placement in placements]).astype(dtype)
        return Part(tuple(prepared), feeds, placements)

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Placement]) -> list[list[Detection]]:
        return self.detections(outputs, about, self.spec.threshold)

    def detections(
        self, outputs: Mapping[str, Array], about: Sequence[Placement], threshold: float
    ) -> list[list[Detection]]:
        """The things in each picture with a score above `threshold`, best first."""
        boxes, scores = outputs[self.spec.boxes], outputs[self.spec.scores]
        if boxes.ndim != 3 or scores.ndim != 3 or boxes.shape != (*scores.shape[:2], 4):
            raise ArtifactError(
                f"a detector's boxes must have shape (batch, queries, 4) and its scores (batch, queries,"
                f" classes), but they have {list(boxes.shape)} and {list(scores.shape)}"
            )
        with np.errstate(invalid="ignore"):  # infinite numbers become none, and are dropped below
            scores = activate(scores.astype(np.float64), self.spec.activation)[..., _things(self.spec)]
            boxes = corners(boxes, self.spec.box_format)
        if self.spec.labels and scores.shape[2] != len(self.spec.labels):
            raise ArtifactError(
                f"the artifact has {len(self.spec.labels)} labels, but the model gives {scores.shape[2]}"
                f" classes of things; convert it again with one label for each class"
            )
        return [self._found(*row, threshold) for row in zip(boxes, scores, about, strict=True)]

    def _found(
        self, boxes: Array, scores: Array, placement: Placement, threshold: float
    ) -> list[Detection]:
        spec = self.spec
        if spec.one_label:
            queries, labels = np.arange(len(scores)), scores.argmax(axis=1)
        else:
            queries, labels = np.nonzero(scores > threshold)
        scores = scores[queries, labels]
        # a box with numbers that are none is no box
        finite = np.asarray(np.isfinite(boxes).all(axis=1))
        good = np.flatnonzero((scores > threshold) & finite[queries])
        most = spec.max_detections if spec.nms_iou is None else spec.max_candidates
        best = good[np.argsort(-scores[good], kind="stable")][:most]
        boxes, labels, scores = (
            _in_picture(boxes[queries[best]], spec, placement),
            labels[best],
            scores[best],
        )
        if spec.nms_iou is not None:
            kept = suppress(boxes, labels, spec.nms_iou, spec.max_detections)
            boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
        found = zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
        return [
            Detection(self.classes.label(index), score, index, (x0, y0, x1, y1))
            for index, score, (x0, y0, x1, y1) in found
        ]

    def synthetic(self, rng: np.random.Generator) -> Array:
        return synthetic_picture(rng, self.spec.steps)

    def read(self, path: Path) -> Sequence[Any]:
        return [path]

    def parse(self, text: str) -> Any:
        return Path(text)

    def to_json(self, result: Sequence[Detection]) -> Any:
        return {"detections": [asdict(found) for found in result]}

    def describe(self, result: Sequence[Detection]) -> str:
        if not result:
            return f"nothing with a score above {self.spec.threshold:.0%}"
        return "\n".join(
            f"{found.score:7.2%}  {' '.join(found.label.splitlines())}  at {_shown(found.box)}"
            for found in result
        )


def _things(spec: ObjectDetectionSpec) -> slice:
    """The classes that are of things."""
    return {"first": slice(1, None), "last": slice(0, -1)}.get(spec.nothing, slice(None))


def _in_picture(boxes: Array, spec: ObjectDetectionSpec, placement: Placement) -> Array:
    """Corner boxes as the model gives them, in pixels of the original picture; shape = (n, 4)."""
    size = np.array(placement.size * 2, np.float64)
    if spec.box_unit == "picture":
        boxes = boxes * size
    else:
        if spec.box_unit == "input":
            boxes = boxes * np.array(placement.fed * 2, np.float64)
        corner = np.array((placement.left, placement.top) * 2)
        boxes = (boxes - corner) * (size / np.array((placement.width, placement.height) * 2))
    return np.clip(boxes, 0.0, size) if spec.clip else boxes


def _mask(placement: Placement) -> Array:
    """1 where the picture is, shape = (H, W)."""
    width, height = placement.fed
    mask = np.zeros((height, width), np.int64)
    left, top = max(0, round(placement.left)), max(0, round(placement.top))
    right, bottom = placement.left + placement.width, placement.top + placement.height
    mask[top : max(0, round(bottom)), left : max(0, round(right))] = 1
    return mask


def _shown(box: Sequence[float]) -> str:
    x0, y0, x1, y1 = (round(edge) for edge in box)
    return f"({x0}, {y0}) – ({x1}, {y1})"


def _check(setting: Setting, spec: ObjectDetectionSpec) -> None:
    """Hold the spec to the signature and to what it may say. Raises `ArtifactError`."""
    picture_input(setting, spec.input, spec.steps)
    inputs = [spec.input]
    if spec.mask is not None:
        inputs.append(spec.mask)
        mask = setting.input(spec.mask)
        if len(mask.dims) != 3:
            raise ArtifactError(f"a detector's mask must be [batch, height, width], but is {mask}")
    setting.feeds_all(inputs)
    boxes, scores = setting.output(spec.boxes), setting.output(spec.scores)
    if len(boxes.dims) != 3 or boxes.dims[2] not in (4, str(boxes.dims[2])):
        raise ArtifactError(f"a detector's boxes must be [batch, queries, 4], but are {boxes}")
    if len(scores.dims) != 3:
        raise ArtifactError(f"a detector's scores must be [batch, queries, classes], but are {scores}")
    count = scores.dims[2]
    things = count - (spec.nothing != "none") if isinstance(count, int) else None
    if things is not None and (things < 1 or (spec.labels and len(spec.labels) != things)):
        raise ArtifactError(
            f"the artifact has {len(spec.labels)} labels, but the model gives {things} classes of things;"
            f" convert it again with one label for each class"
        )
    for field, known in (
        ("box_format", FORMATS),
        ("box_unit", _UNITS),
        ("activation", ACTIVATIONS),
        ("nothing", _NOTHING),
    ):
        if getattr(spec, field) not in known:
            raise ArtifactError(
                f"a detector has {field} '{getattr(spec, field)}'; use one of {', '.join(known)}"
            )
    for field in ("max_detections", "max_candidates"):
        if not 1 <= getattr(spec, field) <= _MOST:
            raise ArtifactError(f"a detector has {field} {getattr(spec, field)}; use 1 to {_MOST}")
    if spec.nms_iou is not None and not 0.0 < spec.nms_iou <= 1.0:
        raise ArtifactError(f"a detector has nms_iou {spec.nms_iou}; use a fraction from 0 to 1")
    if not math.isfinite(spec.threshold):
        raise ArtifactError(f"a detector has threshold {spec.threshold}; use a number")
