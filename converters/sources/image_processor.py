"""What a model folder says of its image preprocessing, as steps the runtime executes.

The steps are held to the original processor on a test picture before they are believed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor

from infer.errors import ConversionError, InferError
from infer.tasks.pixels import RESAMPLING, Step, apply_steps

# uint8 arithmetic is the same; float32 sums may round differently in the last place
_TOLERANCE = 1e-5


def image_steps(folder: Path) -> tuple[tuple[Step, ...], str | None]:
    """The steps, and None; or no steps and what they cannot reproduce."""
    try:
        processor = load_processor(folder)
    except ConversionError as error:
        return (), f"no task: {error}"
    name = type(processor).__name__
    steps = _steps(processor)
    rng = np.random.default_rng(0)
    for height, width in ((301, 407), (160, 90)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
        try:
            actual = apply_steps(picture, steps)
        except InferError as error:
            return (), f"no task: infer has no image steps for {name} ({error}); preprocess yourself"
        if expected.shape != actual.shape or not np.allclose(expected, actual, atol=_TOLERANCE, rtol=0):
            return (), f"no task: infer's image steps do not reproduce {name}; preprocess yourself"
    return steps, None


def load_processor(folder: Path) -> Any:
    """The folder's image processor, which works with pillow. Raises `ConversionError`."""
    try:
        return AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # unknown processor types, absent torchvision
        raise ConversionError(
            f"its image processor does not load ({' '.join(str(error).split())[:200]})"
        ) from error


def _steps(processor: Any) -> tuple[Step, ...]:
    steps: list[Step] = []

    def get(field: str) -> Any:
        return getattr(processor, field, None)

    resample = RESAMPLING[int(get("resample"))] if get("resample") is not None else "bilinear"
    if get("do_resize"):
        size = dict(get("size") or {})
        edge = size.get("shortest_edge")
        crop_pct = get("crop_pct")
        if edge and crop_pct and edge < 384:  # ConvNeXT: enlarge, then crop
            steps.append(Step("resize", shortest_edge=int(edge / crop_pct), resample=resample))
            steps.append(Step("center_crop", height=edge, width=edge))
        elif edge and crop_pct:
            steps.append(Step("resize", height=edge, width=edge, resample=resample))
        elif edge:
            longest = size.get("longest_edge")
            multiple_of = 16 if type(processor).__name__.startswith("Yolos") else None
            steps.append(Step("resize", None, None, edge, longest, multiple_of, resample=resample))
        else:
            steps.append(
                Step("resize", height=size.get("height"), width=size.get("width"), resample=resample)
            )
    if get("do_center_crop"):
        crop = dict(get("crop_size") or {})
        steps.append(Step("center_crop", height=crop.get("height"), width=crop.get("width")))
    if get("do_rescale"):
        steps.append(Step("rescale", factor=float(get("rescale_factor"))))
    if get("do_normalize"):
        mean, std = get("image_mean"), get("image_std")
        steps.append(Step("normalize", mean=tuple(map(float, mean)), std=tuple(map(float, std))))
    if get("do_pad") and get("pad_size"):
        pad = dict(get("pad_size"))
        steps.append(Step("pad", height=pad.get("height"), width=pad.get("width")))
    return tuple(steps)
