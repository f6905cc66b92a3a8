"""Image preprocessing as data: a picture goes through steps and comes out as float32 (C, H, W).

Steps on the picture work on 8-bit RGB with pillow, as the original processors do; `rescale`
and `normalize` follow in float32.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError, missing_package
from infer.signature import Array

try:
    from PIL import Image, ImageOps
except (ImportError, OSError) as _error:
    raise missing_package("pillow", "image", _error) from _error

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of pillow's filters, by their number."""

_MAX_PIXELS = 178_956_970
"""A decompressed picture may have this many pixels (512 MiB of RGB), pillow's own hard limit."""


@dataclass(frozen=True)
class Step:
    """One step. Which fields an `op` reads is said beside it.

    resize        resample, and height and width, or shortest_edge (aspect ratio is kept)
    center_crop   height, width; a smaller picture is padded with black
    rescale       factor
    normalize     mean, std: one number a channel
    """

    op: str
    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    resample: str = "bilinear"
    factor: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def open_picture(source: Any) -> Image.Image:
    """An RGB picture from a path, encoded bytes, a pillow image, or a uint8 array (H, W, 3) or (H, W).

    The orientation a camera recorded is applied. Raises `InputError`.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,)):
            raise InputError(
                f"an image array must be uint8 with shape (H, W, 3) or (H, W), but {source.dtype}"
                f" {list(source.shape)} came; scale it to 0–255 and put channels last"
            )
        return Image.fromarray(np.ascontiguousarray(source)).convert("RGB")
    if isinstance(source, Image.Image):
        return _upright(source)
    where = f"'{source}'" if isinstance(source, (str, Path)) else "the given bytes"
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    elif not isinstance(source, (str, Path)):
        raise InputError(
            f"an image must be a path, bytes, a pillow image or a uint8 array, but a"
            f" {type(source).__name__} came"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we set the limit
            with Image.open(source) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise Image.DecompressionBombError(f"more than {_MAX_PIXELS} pixels")
                return _upright(picture)
    except FileNotFoundError as error:
        raise InputError(f"there is no image {where}; check the path") from error
    except Exception as error:  # decoders raise many kinds for damaged files
        raise InputError(
            f"{where} cannot be read as an image ({error}); expected JPEG, PNG, WebP, BMP, TIFF or GIF"
        ) from error


def _upright(picture: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(picture).convert("RGB")


def apply_steps(picture: Image.Image, steps: Sequence[Step]) -> Array:
    """Pixels as float32, shape = (3, H, W). Raises `ArtifactError` for a step this release lacks."""
    array: Array | None = None
    for step in steps:
        if step.op in ("resize", "center_crop"):
            if array is not None:
                raise ArtifactError(f"image step '{step.op}' must come before rescale and normalize")
            picture = _resize(picture, step) if step.op == "resize" else _center_crop(picture, step)
        elif step.op in ("rescale", "normalize"):
            array = _floats(picture) if array is None else array
            array = _rescale(array, step) if step.op == "rescale" else _normalize(array, step)
        else:
            raise ArtifactError(
                f"unknown image step '{step.op}'; use resize, center_crop, rescale or normalize"
            )
    array = _floats(picture) if array is None else array
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _resize(picture: Image.Image, step: Step) -> Image.Image:
    if step.resample not in RESAMPLING:
        raise ArtifactError(f"unknown resample '{step.resample}'; use one of {', '.join(RESAMPLING)}")
    if step.shortest_edge is not None:
        width, height = picture.size
        edge, short, long = step.shortest_edge, min(picture.size), max(picture.size)
        size = (edge, int(edge * long / short))
        size = size if width <= height else size[::-1]
    else:
        size = (_need(step.width, step, "width"), _need(step.height, step, "height"))
    if size[0] * size[1] > _MAX_PIXELS:
        raise InputError(
            f"an image of {picture.width}×{picture.height} would be resized to {size[0]}×{size[1]},"
            f" more than {_MAX_PIXELS} pixels; crop it first"
        )
    return picture.resize(size, Image.Resampling(RESAMPLING.index(step.resample)))


def _center_crop(picture: Image.Image, step: Step) -> Image.Image:
    width, height = _need(step.width, step, "width"), _need(step.height, step, "height")
    # crop with a negative offset pads with black; // rounds it up to the original's padding
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _floats(picture: Image.Image) -> Array:
    return np.asarray(picture, dtype=np.float32)


def _rescale(array: Array, step: Step) -> Array:
    return np.asarray(array * np.float32(_need(step.factor, step, "factor")))


def _normalize(array: Array, step: Step) -> Array:
    if len(step.mean) != 3 or len(step.std) != 3 or 0.0 in step.std:
        raise ArtifactError("image step 'normalize' needs three numbers in mean and three, not 0, in std")
    mean, std = np.asarray(step.mean, np.float32), np.asarray(step.std, np.float32)
    return np.asarray((array - mean) / std)


def _need(value: Any, step: Step, field: str) -> Any:
    if value is None or (field != "factor" and value < 1):
        raise ArtifactError(f"image step '{step.op}' needs a positive '{field}'")
    return value
