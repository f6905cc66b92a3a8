"""What a model folder of a detector says of its task, as the spec the runtime reads.

How a family's boxes are read is in a table here, and held to the folder's own processor before it is
believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from converters.sources.image_processor import image_steps, load_processor
from infer.manifest import TaskSpec
from infer.schema import encode
from infer.signature import Signature, TensorSpec
from infer.tasks import Setting
from infer.tasks.object_detection import ObjectDetection
from infer.tasks.pixels import Placement

_BEST_OF_QUERY = {"activation": "softmax", "nothing": "last", "one_label": True}
_BEST_OF_ALL = {"activation": "sigmoid"}
_READINGS: dict[str, tuple[Mapping[str, Any], int | None]] = {
    "detr": (_BEST_OF_QUERY, None),
    "yolos": (_BEST_OF_QUERY, None),
    "rt_detr": (_BEST_OF_ALL, None),
    "rt_detr_v2": (_BEST_OF_ALL, None),
    "d_fine": (_BEST_OF_ALL, None),
    "conditional_detr": (_BEST_OF_ALL, 100),
    "deformable_detr": (_BEST_OF_ALL, 100),
}
"""Model type → how its outputs are read, and how many are at most; None: one for each query."""


def detection_task(
    config: Any, folder: Path, inputs: tuple[str, ...], labels: list[str]
) -> tuple[TaskSpec | None, tuple[str, ...]]:
    """The task, and notes; or no task, and the note that says why."""
    if config.model_type not in _READINGS:
        return None, (f"no task: infer does not know how to read the boxes of '{config.model_type}'",)
    steps, problem = image_steps(folder)
    if problem:
        return None, (problem,)
    reading, most = _READINGS[config.model_type]
    queries = getattr(config, "num_detection_tokens", None) or config.num_queries
    spec = TaskSpec(
        "object-detection",
        {
            "input": "pixel_values",
            "mask": "pixel_mask" if "pixel_mask" in inputs else None,
            "boxes": "pred_boxes",
            "scores": "logits",
            "steps": encode(steps),
            "labels": labels,
            "max_detections": most or queries,
            **reading,
        },
    )
    if problem := _differs(spec, load_processor(folder), queries, inputs):
        return None, (problem,)
    return spec, ()


def _differs(spec: TaskSpec, processor: Any, queries: int, inputs: tuple[str, ...]) -> str | None:
    """Why the spec is not believed: on random outputs it must find what the processor finds."""
    classes = len(spec.spec["labels"]) + (spec.spec.get("nothing") == "last")
    signature = Signature(
        tuple(
            TensorSpec(
                name, "float32", ("batch", 3, "h", "w") if name == "pixel_values" else ("batch", "h", "w")
            )
            for name in inputs
        ),
        (
            TensorSpec("logits", "float32", ("batch", queries, classes)),
            TensorSpec("pred_boxes", "float32", ("batch", queries, 4)),
        ),
    )
    task = ObjectDetection(
        Setting(spec.name, spec.spec, signature, None, file=Path, run=lambda feeds: dict[str, Any]())
    )
    generator = torch.Generator().manual_seed(0)
    logits = 4.0 * torch.randn(2, queries, classes, generator=generator)
    boxes = torch.rand(2, queries, 4, generator=generator)
    sizes = [(480, 640), (333, 200)]
    theirs = processor.post_process_object_detection(
        SimpleNamespace(logits=logits, pred_boxes=boxes), threshold=0.5, target_sizes=sizes
    )
    outputs = {"logits": logits.numpy(), "pred_boxes": boxes.numpy()}
    about = [Placement((w, h), (w, h), 0.0, 0.0, w, h) for h, w in sizes]
    for ours, found in zip(task.detections(outputs, about, 0.5), theirs, strict=True):
        order = found["scores"].argsort(descending=True, stable=True)
        if len(ours) != len(order) or not (
            [d.index for d in ours] == found["labels"][order].tolist()
            and np.allclose([d.score for d in ours], found["scores"][order], atol=1e-6, rtol=0)
            and np.allclose(np.reshape([d.box for d in ours], (-1, 4)), found["boxes"][order], atol=1e-3)
        ):
            return (
                f"no task: infer does not read boxes as {type(processor).__name__} does; read them yourself"
            )
    return None
