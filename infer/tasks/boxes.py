"""Boxes around things: their formats, how much two of them overlap, and which of many to keep."""

from __future__ import annotations

import numpy as np

from infer.signature import Array

FORMATS = ("xyxy", "cxcywh", "xywh")
"""Two corners; centre, width and height; the upper left corner, width and height."""


def corners(boxes: Array, form: str) -> Array:
    """Boxes of a format as x0, y0, x1, y1; float64 of the same shape = (…, 4)."""
    first, second = boxes[..., :2].astype(np.float64), boxes[..., 2:].astype(np.float64)
    if form == "cxcywh":
        first, second = first - 0.5 * second, first + 0.5 * second
    elif form == "xywh":
        second = first + second
    return np.concatenate([first, second], axis=-1)


def areas(boxes: Array) -> Array:
    """Areas of corner boxes, shape = (n, 4); one whose corners are crossed has none."""
    return np.asarray(np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1))


def overlaps(ones: Array, others: Array) -> Array:
    """Intersection over union of corner boxes, shape = (ones, others); 0 where both are empty."""
    upper_left = np.maximum(ones[:, None, :2], others[None, :, :2])
    lower_right = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(lower_right - upper_left, 0.0), axis=2)
    united = areas(ones)[:, None] + areas(others)[None, :] - shared
    return np.asarray(np.divide(shared, united, out=np.zeros_like(shared), where=united > 0.0))


def suppress(boxes: Array, labels: Array, iou: float, most: int) -> Array:
    """Places of at most `most` boxes to keep, of corner boxes sorted best first.

    Greedy non-maximum suppression, class by class: a box goes if it overlaps a better one that was
    kept, of the same label, by more than `iou`.
    """
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(int(best))
        same = labels[left] == labels[best]
        left = left[~(same & (overlaps(boxes[best][None], boxes[left])[0] > iou))]
    return np.array(kept, np.int64)
