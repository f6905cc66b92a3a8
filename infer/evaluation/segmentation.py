"""Dice and IoU, for tasks that give masks.

Both count how well two areas overlap: IoU = |A ∩ B| / |A ∪ B|, Dice = 2|A ∩ B| / (|A| + |B|), which is
the F1 of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import InputError
from infer.evaluation import ClassMetrics, Dataset, Evaluation, Progress, gather
from infer.signature import Array
from infer.tasks.scans import read_scan

_IGNORED = 255
"""In a mask of classes, pixels of this value count nowhere, as in VOC and ADE20K."""


@dataclass(frozen=True, eq=False)
class _Counts:
    """Pixels of each class: found where they are, called so, and so in truth. And of all: right ones."""

    inside: Array
    called: Array
    truth: Array
    right: int
    pixels: int

    def mean(self, values: Array) -> float:
        """Of the classes that are there; 1 where there is none, and none was found."""
        there = self.called + self.truth > 0
        return float(values[there].mean()) if there.any() else 1.0

    def dice(self) -> Array:
        return np.asarray(2 * self.inside / np.maximum(self.called + self.truth, 1))

    def iou(self) -> Array:
        return np.asarray(self.inside / np.maximum(self.called + self.truth - self.inside, 1))


def read(path: Path, task: Any, columns: Mapping[str, str]) -> Dataset:
    """A folder with `images` and `masks`, in which what belongs together has the same name but for its end.

    Masks are PNG, TIFF, NIfTI, DICOM or .npz; a pixel's value is its class. Where classes may overlap,
    0 is none and i + 1 class i, or an .npz has shape (classes, *spatial); of a single class, every value
    but 0 is inside.
    """
    images, masks = (_by_stem(path / name) for name in ("images", "masks"))
    if lone := sorted(images.keys() ^ masks.keys()):
        raise InputError(
            f"'{path}' has {len(lone)} images without a mask, or masks without an image:"
            f" {', '.join(lone[:5])}"
        )
    return Dataset(path.name, [images[stem] for stem in images], [masks[stem] for stem in images])


def measure(task: Any, dataset: Dataset, progress: Progress) -> Evaluation:
    """Dice and IoU of the pixels of all inputs together, as means over the classes that are in the masks or
    in the answers; Dice of each input, as a mean over inputs; and the share of pixels that are right."""

    def decode(outputs: Mapping[str, Array], about: Sequence[Any]) -> list[_Counts | None]:
        results = task.decode(outputs, about)
        return [
            None if result is None else _compare(task, result, dataset.expected[piece.sheet.place])
            for result, piece in zip(results, about, strict=True)
        ]

    counts = gather(task, dataset, decode, progress, task.join)
    inside, called, truth = (
        np.sum([getattr(count, name) for count in counts], axis=0) for name in ("inside", "called", "truth")
    )
    total = _Counts(inside, called, truth, sum(c.right for c in counts), sum(c.pixels for c in counts))
    dice, iou = total.dice(), total.iou()
    metrics = {
        "dice": total.mean(dice),
        "iou": total.mean(iou),
        "dice_per_input": float(np.mean([count.mean(count.dice()) for count in counts])),
        "pixel_accuracy": total.right / max(1, total.pixels),
    }
    precision, recall = inside / np.maximum(called, 1), inside / np.maximum(truth, 1)
    labels = task.spec.labels or tuple(str(i) for i in range(len(dice)))
    rows = zip(labels, precision, recall, dice, truth, iou, strict=True)
    classes = tuple(
        ClassMetrics(label, float(p), float(r), float(f1), int(support), float(over))
        for label, p, r, f1, support, over in rows
    )
    return Evaluation(task.setting.name, dataset.name, len(counts), metrics, classes)


def _compare(task: Any, result: Any, expected: Any) -> _Counts:
    """What one answer has in common with its mask. Raises `InputError` if they do not fit."""
    classes, argmax = len(result.areas), task.spec.mode == "argmax"
    truth, where = _mask(expected)
    mask = result.mask
    if argmax:
        _same_shape(truth, mask.shape, where)
        counted = np.ones(truth.shape, bool) if classes > _IGNORED else truth != _IGNORED
        truth, mask = truth[counted], mask[counted]
        if truth.size and not 0 <= int(truth.min()) <= int(truth.max()) < classes:
            raise InputError(
                f"{where} has the values {truth.min()} to {truth.max()}, but the model's classes are 0 to"
                f" {classes - 1}, and {_IGNORED} for pixels that do not count"
            )
        right = truth == mask
        rows = [truth[right], mask, truth]
        counts = np.stack([np.bincount(row, minlength=classes) for row in rows])
    else:
        mask = mask.reshape(classes, *mask.shape[-(mask.ndim - (classes > 1)) :]).astype(bool)
        if classes == 1:
            truth = truth.reshape(truth.shape[1:] if truth.shape[:1] == (1,) else truth.shape)[None] != 0
        elif truth.ndim < mask.ndim:
            truth = np.stack([truth == i + 1 for i in range(classes)])
        _same_shape(truth, mask.shape, where)
        truth = truth.astype(bool)
        rows = [truth & mask, mask, truth]
        counts = np.stack([row.reshape(classes, -1).sum(axis=1) for row in rows])
        right = (truth == mask).all(axis=0)
    return _Counts(counts[0], counts[1], counts[2], int(right.sum()), right.size)


def _same_shape(truth: Array, shape: Sequence[int], where: str) -> None:
    if truth.shape != tuple(shape):
        raise InputError(f"{where} has shape {list(truth.shape)}, but the answer has {list(shape)}")


def _mask(expected: Any) -> tuple[Array, str]:
    """Whole numbers from a path or an array, and what to call them."""
    if not isinstance(expected, (str, Path)):
        array, where = np.asarray(expected), "a mask"
    else:
        where = f"'{expected}'"
        array = read_scan(expected, mask=True).array
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise InputError(f"{where} must hold whole numbers, one for each class")
    return array.astype(np.int64), where


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(
            f"there is no folder '{folder}'; expected images/ and masks/ with files of equal names"
        )
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith("."):
            continue
        stem = file.name[:-7] if file.name.lower().endswith(".nii.gz") else file.stem
        if stem in found:
            raise InputError(f"'{folder}' has two files called '{stem}': {found[stem].name}, {file.name}")
        found[stem] = file
    return found
