"""A 3-D U-Net that finds nuclei in the synthetic volume that stardist==0.9.2 carries (31 × 61 × 57 voxels,
16 bits, with a mask of every nucleus): the front of it to train on, a slab to stop by, the back held out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from bench.zoo.training import fit, trained
from bench.zoo.unet import UNet, dice, overlap_loss
from bench.zoo.unet_nuclei import read_image
from infer.evaluation import Dataset
from infer.manifest import TaskSpec
from infer.signature import Array
from infer.tasks.scans import Scan

WEIGHTS = "trained here"

CROP, CROPS_PER_EPOCH, EPOCHS = 16, 48, 12
TRAIN, VALIDATION, TEST = slice(0, 29), slice(29, 41), slice(41, 61)
# the volume does not say its spacing; slices are further apart than pixels, as is usual
SPACING_MM = (0.002, 0.001, 0.001)


def volumes() -> tuple[Array, Array]:
    """Intensities, uint16, and whether a voxel is in a nucleus."""
    return read_image("img3d"), read_image("mask3d") > 0


def scaling() -> tuple[float, float]:
    """Mean and standard deviation of the part to train on."""
    part = volumes()[0][:, TRAIN].astype(np.float64)
    return float(part.mean()), float(part.std())


def train(model: UNet) -> None:
    """Random crops, mirrored along any axis."""
    image, mask = volumes()
    mean, std = scaling()
    pair = torch.from_numpy(np.stack([(image - mean) / std, mask])).float()

    def step(places: torch.Tensor) -> torch.Tensor:
        crops = []
        for _ in places:
            room = [pair.shape[1] - CROP, TRAIN.stop - CROP, pair.shape[3] - CROP]
            z, y, x = (int(torch.randint(n + 1, ())) for n in room)
            crop = pair[:, z : z + CROP, y : y + CROP, x : x + CROP]
            crops.append(crop.flip([axis for axis in (1, 2, 3) if torch.rand(()) < 0.5]))
        x, y = torch.stack(crops).split(1, dim=1)
        return overlap_loss(model(x)["logits"], y)

    def validate() -> float:
        held = pair[:, :28, VALIDATION, :56]  # multiples of what the net halves
        return dice(model(held[None, :1])["logits"], held[None, 1:])

    fit(model, step, CROPS_PER_EPOCH, validate, epochs=EPOCHS, batch_size=4, learning_rate=5e-3, patience=5)


def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model, which takes `pixel_values`: float32, shape = (batch, 1, 16, 16, 16)."""
    example = torch.randn(2, 1, CROP, CROP, CROP, generator=torch.Generator().manual_seed(0))
    return trained(lambda: UNet(axes=3, width=8), train), {"pixel_values": example}


def task() -> TaskSpec:
    """Volumes of one channel, in overlapping windows of the size of the training crops."""
    mean, std = scaling()
    return TaskSpec(
        "image-segmentation",
        {
            "input": "pixel_values",
            "output": "logits",
            "mode": "sigmoid",
            "labels": ["nucleus"],
            "scan": {"steps": [{"op": "z_score", "mean": mean, "std": std}]},
            "windows": {"size": [CROP] * 3, "overlap": 0.5},
        },
    )


def samples() -> list[Scan]:
    """What the model has not seen."""
    return [Scan(np.ascontiguousarray(volumes()[0][:, TEST]), SPACING_MM)]


def dataset() -> Dataset:
    """The held-out part, 31 × 20 × 57 voxels."""
    return Dataset("nuclei in 3-D, held-out part", samples(), [volumes()[1][:, TEST]])
