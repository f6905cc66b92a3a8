"""A one-stage detector of clothes, trained on scenes pasted from Fashion-MNIST items.

No anchors, as in FCOS (Tian et al. 2019): each cell of a feature map of stride 8 gives a score for every
class and the distances to the four edges of a box. Suppression of boxes on the same thing is the task's.
Items of training, validation and test scenes are different ones. Training takes about a minute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from bench.zoo.fashion_mnist import LABELS, split
from bench.zoo.training import fit, trained
from infer.evaluation import Dataset
from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "trained here"

SIZE, STRIDE = 96, 8
TRAIN, VALIDATION, TEST = 3000, 200, 300
MOST_ITEMS = 5


class Detector(nn.Module):
    """Pictures to boxes, x0, y0, x1, y1 in pixels, and the logits of ten classes, one row a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_block(3, 16, 2), *_block(16, 32, 2), *_block(32, 32), *_block(32, 64, 2),
            *_block(64, 64), *_block(64, 64), *_block(64, 64),
        )  # fmt: skip
        self.scores = nn.Conv2d(64, len(LABELS), 1)
        self.distances = nn.Conv2d(64, 4, 1)
        nn.init.constant_(self.scores.bias, -4.0)  # most cells have nothing to tell: focal loss's start

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.trunk(pixel_values)
        scores = self.scores(features).flatten(2).transpose(1, 2)
        # about half an item at the start
        distances = 16.0 * torch.exp(self.distances(features)).flatten(2).transpose(1, 2)
        centres = self.centres(features.shape[2], features.shape[3])
        boxes = torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)
        return {"boxes": boxes, "scores": scores}

    @staticmethod
    def centres(height: int, width: int) -> torch.Tensor:
        """Middles of the cells, x and y, shape = (height * width, 2)."""
        y = (torch.arange(height) + 0.5) * STRIDE
        x = (torch.arange(width) + 0.5) * STRIDE
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([columns, rows], dim=-1).reshape(-1, 2)


def _block(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


@dataclass(frozen=True)
class Scenes:
    """`pictures`, uint8, shape = (n, 96, 96); of the i-th things of each, `boxes`, shape = (n, 5, 4), and
    `labels`, shape = (n, 5), which are -1 where there are fewer."""

    pictures: Array
    boxes: Array
    labels: Array


def scenes(count: int, pictures: Array, labels: Array, seed: int) -> Scenes:
    """Items of random sizes, brightness and places on noise, hardly over each other; seeded."""
    rng = np.random.default_rng(seed)
    made = Scenes(
        np.zeros((count, SIZE, SIZE), np.uint8),
        np.zeros((count, MOST_ITEMS, 4), np.float32),
        np.full((count, MOST_ITEMS), -1, np.int64),
    )
    for i in range(count):
        canvas = (
            rng.uniform(0, 60) + rng.normal(0, 8, (SIZE, SIZE)) + np.linspace(0, rng.uniform(0, 40), SIZE)
        )
        placed: list[tuple[int, int, int, int]] = []
        for item in rng.integers(0, len(pictures), rng.integers(1, MOST_ITEMS + 1)):
            edge = int(rng.integers(22, 45))
            thing = np.asarray(
                Image.fromarray(pictures[item]).resize((edge, edge), Image.Resampling.BILINEAR)
            )
            rows, columns = np.nonzero(thing > 20)
            if not len(rows):
                continue
            thing = thing[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            height, width = thing.shape
            for _ in range(10):
                x, y = int(rng.integers(0, SIZE - width + 1)), int(rng.integers(0, SIZE - height + 1))
                if all(
                    x + width <= a + 3 or c <= x + 3 or y + height <= b + 3 or d <= y + 3
                    for a, b, c, d in placed
                ):
                    spot = canvas[y : y + height, x : x + width]
                    spot[:] = np.where(thing > 20, thing * rng.uniform(0.6, 1.0), spot)
                    made.boxes[i, len(placed)] = x, y, x + width, y + height
                    made.labels[i, len(placed)] = labels[item]
                    placed.append((x, y, x + width, y + height))
                    break
        made.pictures[i] = np.clip(canvas, 0, 255)
    return made


def _tensors(made: Scenes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures as the network takes them, and what each cell should tell: box and class, -1 for none."""
    pixels = torch.from_numpy(made.pictures).float()[:, None].expand(-1, 3, -1, -1) / 255
    boxes, labels = torch.from_numpy(made.boxes), torch.from_numpy(made.labels)
    centres = Detector.centres(SIZE // STRIDE, SIZE // STRIDE)
    middle, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    # a thing is told by the cells in the middle half of its box; at least those next to its middle
    reach = (half * 0.5).clamp(min=0.75 * STRIDE)
    inside = ((centres[None, :, None] - middle[:, None]).abs() < reach[:, None]).all(-1) & (labels >= 0)[
        :, None
    ]
    which = inside.float().argmax(dim=2)
    told = torch.where(inside.any(dim=2), labels.gather(1, which), -1)
    return pixels, boxes.gather(1, which[..., None].expand(-1, -1, 4)), told


def _loss(found: dict[str, torch.Tensor], boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Focal loss of the classes, and one less the generalized overlap (Rezatofighi et al. 2019)."""
    some = labels >= 0
    target = F.one_hot(labels.clamp(min=0), len(LABELS)).float() * some[..., None]
    plain = F.binary_cross_entropy_with_logits(found["scores"], target, reduction="none")
    certainty = torch.exp(-plain)
    focal = (0.25 * target + 0.75 * (1 - target)) * (1 - certainty) ** 2 * plain
    ours, theirs = found["boxes"][some], boxes[some]
    shared = (torch.minimum(ours[:, 2:], theirs[:, 2:]) - torch.maximum(ours[:, :2], theirs[:, :2])).clamp(
        min=0
    )
    hull = torch.maximum(ours[:, 2:], theirs[:, 2:]) - torch.minimum(ours[:, :2], theirs[:, :2])
    common, around = shared.prod(1), hull.prod(1)
    union = (ours[:, 2:] - ours[:, :2]).prod(1) + (theirs[:, 2:] - theirs[:, :2]).prod(1) - common
    overlap = common / union - (around - union) / around
    return (2.0 * focal.sum() + (1 - overlap).sum()) / some.sum().clamp(min=1)


def train(model: Detector) -> None:
    """Eight epochs at most; the loss on the validation scenes says when to stop."""
    pictures, labels = split("train")
    pixels, boxes, told = _tensors(scenes(TRAIN, pictures[:50_000], labels[:50_000], seed=1))
    held_out = _tensors(scenes(VALIDATION, pictures[50_000:], labels[50_000:], seed=2))
    fit(
        model,
        lambda places: _loss(model(pixels[places]), boxes[places], told[places]),
        rows=TRAIN,
        validate=lambda: -float(_loss(model(held_out[0]), *held_out[1:])),
        epochs=8,
        batch_size=16,
        learning_rate=3e-3,
    )


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model, which takes `pixel_values`: float32, shape = (batch, 3, height, width), 0 to 1."""
    example = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return trained(Detector, train), {"pixel_values": example}


def task() -> TaskSpec:
    """Pictures are fitted into 96×96; boxes of a class that overlap by more than half are one."""
    return TaskSpec(
        "object-detection",
        {
            "input": "pixel_values",
            "boxes": "boxes",
            "scores": "scores",
            "steps": [
                {"op": "resize", "longest_edge": SIZE},
                {"op": "pad", "height": SIZE, "width": SIZE},
                {"op": "rescale", "factor": 1 / 255},
            ],
            "labels": list(LABELS),
            "box_format": "xyxy",
            "box_unit": "pixels",
            "activation": "sigmoid",
            "threshold": 0.4,
            "nms_iou": 0.5,
            "clip": True,
        },
    )


def _test_scenes() -> Scenes:
    return scenes(TEST, *split("t10k"), seed=3)


def samples() -> list[Array]:
    """Scenes of items the model has not seen."""
    return list(_test_scenes().pictures)


def dataset() -> Dataset:
    """Scenes of the test items."""
    from infer.evaluation.detection import Truth

    made = _test_scenes()
    truths = []
    for labels, boxes in zip(made.labels.tolist(), made.boxes.tolist(), strict=True):
        things = zip(labels, boxes, strict=True)
        truths.append(tuple(Truth(label, tuple(box)) for label, box in things if label >= 0))
    return Dataset("Fashion-MNIST scenes, held-out items", list(made.pictures), truths)
