"""Mean average precision of detectors, as COCO measures it."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError, missing_package
from infer.evaluation import ClassMetrics, Dataset, Evaluation, Progress, gather
from infer.tasks.labels import Classes
from infer.tasks.object_detection import Detection

try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except (ImportError, OSError) as _error:
    raise missing_package("pycocotools", "eval", _error) from _error

_HALF, _THREE_QUARTERS = 0, 5  # where overlaps of 0.5 and 0.75 are in COCO's list of thresholds
_MOST = 100  # so many detections a picture count, as COCO has it


@dataclass(frozen=True)
class Truth:
    """A thing in a picture: its label, or the label's number, and its box (x0, y0, x1, y1) in pixels.

    A `crowd` is many things in one box: finding it any number of times is neither right nor wrong.
    """

    label: str | int
    box: tuple[float, float, float, float]
    crowd: bool = False


def read(path: Path, task: Any, columns: Mapping[str, str]) -> Dataset:
    """COCO annotations: a .json file, or a folder that holds one, and pictures beside it, or in `images`.

    Expected of each picture is a tuple of `Truth`. Categories are matched to the model's labels by their
    names, and to a model without labels by their ids.
    """
    file = _annotations(path)
    found = _read_json(file)
    try:
        named = found["categories"] if task.classes.labels else ()
        names = {category["id"]: str(category["name"]) for category in named}
        truths: dict[Any, list[Truth]] = {picture["id"]: [] for picture in found["images"]}
        for i, annotation in enumerate(found["annotations"]):
            truths[annotation["image_id"]].append(_truth(annotation, names, i, file))
        files = [_picture(file.parent, str(picture["file_name"])) for picture in found["images"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"'{file}' does not hold COCO annotations ({type(error).__name__}: {error}); it needs images"
            f" with id and file_name, annotations with image_id, category_id and bbox, and categories with"
            f" id and name"
        ) from error
    return Dataset(path.name, files, [tuple(truths[picture["id"]]) for picture in found["images"]])


def _annotations(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])
    if len(files) != 1:
        raise InputError(
            f"'{path}' holds {len(files)} .json files, of which one must be the annotations; name the file"
            f" itself with --data"
        )
    return files[0]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"there is no data '{path}'; check the path") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"'{path}' cannot be read as JSON ({error})") from error


def _truth(annotation: Mapping[str, Any], names: Mapping[Any, str], i: int, file: Path) -> Truth:
    x, y, width, height = (float(number) for number in annotation["bbox"])
    if not (math.isfinite(x + y + width + height) and width >= 0 and height >= 0):
        raise InputError(f"annotation {i} of '{file}' has the box {annotation['bbox']!r:.60}; it is none")
    label = names.get(annotation["category_id"], annotation["category_id"])
    return Truth(label, (x, y, x + width, y + height), bool(annotation.get("iscrowd", 0)))


def _picture(folder: Path, name: str) -> Path:
    """Where a picture is: beside the annotations, or where COCO's own folders have it."""
    places = [folder / name, *(folder / sub / name for sub in ("images", "../images", ".."))]
    return next((place for place in places if place.is_file()), places[0])


def measure(task: Any, dataset: Dataset, progress: Progress) -> Evaluation:
    """Mean average precision over overlaps of 0.5, 0.55 … 0.95 and over classes; that at an overlap of 0.5,
    and of 0.75. For each class, precision and recall at 0.5 of what the task itself would tell."""
    found: list[list[Detection]] = gather(
        task, dataset, lambda outputs, about: task.detections(outputs, about, 0.0), progress
    )
    classes: Classes = task.classes
    truths = [
        (picture, _index(classes, truth, picture), truth)
        for picture, expected in enumerate(dataset.expected)
        for truth in expected
    ]
    known = {index for _, index, _ in truths} | {d.index for each in found for d in each}
    count = max([len(classes.labels), *(index + 1 for index in known)])
    evaluated = _coco(found, truths, count)
    precision = evaluated.eval["precision"][:, :, :, 0, 0]
    metrics = {
        "map_50_95": _mean(precision),
        "map_50": _mean(precision[_HALF]),
        "map_75": _mean(precision[_THREE_QUARTERS]),
    }
    per_class = tuple(_class(evaluated, classes.label(k), k, task.spec.threshold) for k in range(count))
    return Evaluation(task.setting.name, dataset.name, len(found), metrics, per_class)


def _coco(
    found: Sequence[Sequence[Detection]], truths: Sequence[tuple[int, int, Truth]], count: int
) -> Any:
    """COCO's own evaluation, done. Its ids start at 1: it takes 0 for "matched by nothing"."""
    everything = {
        "images": [{"id": i + 1} for i in range(len(found))],
        "categories": [{"id": k + 1} for k in range(count)],
    }
    expected = [
        {**_entry(picture, index, truth.box), "iscrowd": int(truth.crowd), "id": i}
        for i, (picture, index, truth) in enumerate(truths, 1)
    ]
    told = [(picture, thing) for picture, things in enumerate(found) for thing in things]
    answers = [
        {**_entry(picture, thing.index, thing.box), "score": thing.score, "id": i}
        for i, (picture, thing) in enumerate(told, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress by printing
        sides = []
        for annotations in (expected, answers):
            side = COCO()
            side.dataset = {**everything, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType="bbox")
        evaluation.params.maxDets = [_MOST]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _entry(picture: int, index: int, box: Sequence[float]) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    width, height = max(0.0, x1 - x0), max(0.0, y1 - y0)
    return {
        "image_id": picture + 1,
        "category_id": index + 1,
        "bbox": [x0, y0, width, height],
        "area": width * height,
    }


def _mean(precision: Any) -> float:
    """Over what there is: COCO says -1 for classes without truths."""
    present = precision[precision > -1]
    return float(present.mean()) if present.size else 0.0


def _class(evaluated: Any, label: str, k: int, threshold: float) -> ClassMetrics:
    told = right = support = 0
    for each in evaluated.evalImgs:
        if each is None or each["category_id"] != k + 1:
            continue
        counted = ~each["dtIgnore"][_HALF].astype(bool) & (np.array(each["dtScores"]) > threshold)
        told += int(counted.sum())
        right += int((counted & (each["dtMatches"][_HALF] > 0)).sum())
        support += int((~np.array(each["gtIgnore"], bool)).sum())
    precision = right / told if told else 0.0
    recall = right / support if support else 0.0
    f1 = 2 * right / (told + support) if told + support else 0.0
    return ClassMetrics(label, precision, recall, f1, support)


def _index(classes: Classes, truth: Truth, picture: int) -> int:
    """A label's place from its name, or from its number."""
    if truth.label in classes.labels:
        return classes.labels.index(str(truth.label))
    if isinstance(truth.label, int) and 0 <= truth.label < (len(classes.labels) or truth.label + 1):
        return truth.label
    known = ", ".join(classes.labels[:10]) + (", …" if len(classes.labels) > 10 else "")
    raise InputError(
        f"picture {picture} has a thing labelled {truth.label!r:.60}, which the model does not know; it"
        f" knows {known or 'only numbers'}"
    )
