"""Image preprocessing as data: a picture goes through steps and comes out as float32 (C, H, W).

Steps on the picture work on 8-bit RGB with pillow, as the original processors do; `rescale`
and `normalize` follow in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError, missing_package
from infer.signature import Array, TensorSpec
from infer.tasks import Setting, synthetic
from infer.tasks.pictures import MAX_PIXELS, open_picture

try:
    from PIL import Image
except (ImportError, OSError) as _error:
    raise missing_package("pillow", "image", _error) from _error

__all__ = [
    "RESAMPLING",
    "Placement",
    "Prepared",
    "Step",
    "apply_steps",
    "check_steps",
    "fixed_size",
    "open_picture",
    "picture_input",
    "prepare",
    "prepare_at",
    "synthetic_picture",
]

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of pillow's filters, by their number."""

_MAX_EDGE = 16_384
_MAX_INPUT_PIXELS = 2**26
"""What a graph takes may be this large (0.75 GiB in float32), and a spec may ask for no more."""

_MAX_STEPS = 16

_SIZES = ((480, 640), (640, 480), (426, 640), (512, 512))
"""Height and width of pictures that are made up, as small photographs have them."""

_FIELDS = {
    "resize": {"height", "width", "shortest_edge", "longest_edge", "multiple_of", "resample"},
    "center_crop": {"height", "width"},
    "pad": {"height", "width", "multiple_of", "fill", "centered"},
    "rescale": {"factor"},
    "normalize": {"mean", "std"},
}


@dataclass(frozen=True)
class Step:
    """One step. Which fields an `op` reads is said beside it.

    resize        resample, and height and width, or shortest_edge or longest_edge, which keep the aspect
                  ratio. With both, the longest edge is at most longest_edge. The size is rounded down
                  to a multiple of multiple_of
    center_crop   height, width; a smaller picture is padded with black
    pad           to height and width, or to the next multiple_of, with fill: below and to the right, or
                  all around if centered. After rescale or normalize, fill is in their numbers
    rescale       factor
    normalize     mean, std: one number a channel
    """

    op: str
    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    multiple_of: int | None = None
    resample: str = "bilinear"
    fill: float = 0.0
    centered: bool = False
    factor: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in what is fed: sizes are (width, height).

    The whole picture, of `size`, covers `width` × `height` pixels of the fed ones from `left` and `top`:
    what is outside of them was cropped, and what it does not cover is padding.
    """

    size: tuple[int, int]
    fed: tuple[int, int]
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Prepared:
    """What a picture became: `pixels`, float32, shape = (3, H, W), and where it lies in them."""

    pixels: Array
    placement: Placement


def check_steps(steps: Sequence[Step]) -> None:
    """Raises `ArtifactError` for steps this release lacks, or that no picture could go through."""
    if len(steps) > _MAX_STEPS:
        raise ArtifactError(f"there are {len(steps)} image steps; at most {_MAX_STEPS} are taken")
    floats = False
    for step in steps:
        if step.op not in _FIELDS:
            raise ArtifactError(f"unknown image step '{step.op}'; use one of {', '.join(_FIELDS)}")
        if floats and step.op in ("resize", "center_crop"):
            raise ArtifactError(f"image step '{step.op}' must come before rescale and normalize")
        floats = floats or step.op in ("rescale", "normalize")
        _check_step(step, floats)


def _check_step(step: Step, floats: bool) -> None:
    default = Step(step.op)
    for name in vars(step).keys() - _FIELDS[step.op] - {"op"}:
        if getattr(step, name) != getattr(default, name):
            raise ArtifactError(f"image step '{step.op}' does not take '{name}'")
    for name in ("height", "width", "shortest_edge", "longest_edge", "multiple_of"):
        value = getattr(step, name)
        if value is not None and not 1 <= value <= _MAX_EDGE:
            raise ArtifactError(f"image step '{step.op}' has {name} {value}; use 1 to {_MAX_EDGE}")
    if (step.height is None) != (step.width is None):
        raise ArtifactError(f"image step '{step.op}' needs both height and width, or neither")
    if step.height and step.width and step.height * step.width > _MAX_INPUT_PIXELS:
        raise ArtifactError(
            f"image step '{step.op}' asks for {step.width}×{step.height} pixels; at most"
            f" {_MAX_INPUT_PIXELS} are taken"
        )
    edges = step.shortest_edge is not None or step.longest_edge is not None
    if step.op == "resize" and (step.height is not None) == edges:
        raise ArtifactError("image step 'resize' needs height and width, or shortest_edge or longest_edge")
    if step.op == "pad" and (step.height is not None) == (step.multiple_of is not None):
        raise ArtifactError("image step 'pad' needs height and width, or multiple_of")
    if step.op == "center_crop" and step.height is None:
        raise ArtifactError("image step 'center_crop' needs height and width")
    if step.resample not in RESAMPLING:
        raise ArtifactError(f"unknown resample '{step.resample}'; use one of {', '.join(RESAMPLING)}")
    if not np.isfinite(_float32(step.fill)) or not (floats or 0 <= step.fill <= 255):
        raise ArtifactError(f"image step 'pad' fills with {step.fill}; before rescale, use 0 to 255")
    if step.op == "rescale" and (step.factor is None or not np.isfinite(_float32(step.factor))):
        raise ArtifactError("image step 'rescale' needs a factor that is a float32 number")
    if step.op == "normalize":
        mean, std = _float32(step.mean), _float32(step.std)
        if mean.shape != (3,) or std.shape != (3,) or not np.isfinite((mean, std)).all() or 0 in std:
            raise ArtifactError(
                "image step 'normalize' needs three numbers in mean and three, not 0, in std"
            )


def _float32(value: Any) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float64).astype(np.float32)


def fixed_size(steps: Sequence[Step]) -> tuple[int, int] | None:
    """Height and width of what every picture becomes, or None if they follow the picture's own."""
    size: tuple[int, int] | None = None
    for step in steps:
        if step.op in ("resize", "center_crop", "pad"):
            size = None
            if step.height is not None and step.width is not None:
                size = (_whole(step.height, step), _whole(step.width, step))
    return size


def picture_input(setting: Setting, name: str, steps: Sequence[Step]) -> TensorSpec:
    """The input called `name`, which must take what `steps` make of pictures. Raises `ArtifactError`."""
    check_steps(steps)
    spec = setting.input(name, dtypes=("float32",), rank=4)
    if spec.dims[1] not in (3, str(spec.dims[1])):
        raise ArtifactError(
            f"the task '{setting.name}' gives float32 pictures [batch, 3, height, width], but the model"
            f" takes {spec}; convert it again with the input that takes pictures"
        )
    for made, taken in zip(fixed_size(steps) or (), spec.dims[2:], strict=False):
        if isinstance(taken, int) and made != taken:
            raise ArtifactError(
                f"the image steps of task '{setting.name}' make {fixed_size(steps)} of every picture"
                f" (height, width), but the model takes {spec}; change the steps to its size"
            )
    return spec


def apply_steps(picture: Image.Image, steps: Sequence[Step]) -> Array:
    """Pixels as float32, shape = (3, H, W). Raises `ArtifactError` for a step this release lacks, and
    `InputError` for a picture that does not fit the steps."""
    return prepare(picture, steps).pixels


def prepare_at(pictures: Sequence[Any], place: int, steps: Sequence[Step]) -> Prepared:
    """The picture at a place of a list, opened and after `steps`; errors name the place.

    Raises `InputError`.
    """
    try:
        return prepare(open_picture(pictures[place]), steps)
    except InputError as error:
        raise InputError(f"picture {place}: {error}") from error


def prepare(picture: Image.Image, steps: Sequence[Step]) -> Prepared:
    """The picture after `steps`, and where it came to lie. Raises as `apply_steps` does."""
    check_steps(steps)
    size = picture.size
    array: Array | None = None
    left, top, width, height = 0.0, 0.0, float(picture.width), float(picture.height)
    for step in steps:
        if step.op == "resize":
            old = picture.size
            picture = _resize(picture, step)
            across, down = picture.width / old[0], picture.height / old[1]
            left, width = left * across, width * across
            top, height = top * down, height * down
        elif step.op == "center_crop":
            picture, x, y = _center_crop(picture, step)
            left, top = left - x, top - y
        elif step.op == "pad":
            if array is None:
                picture, x, y = _pad_picture(picture, step)
            else:
                array, x, y = _pad_array(array, step)
            left, top = left + x, top + y
        else:
            array = _floats(picture) if array is None else array
            array = _rescale(array, step) if step.op == "rescale" else _normalize(array, step)
    array = _floats(picture) if array is None else array
    fed = (array.shape[1], array.shape[0])
    pixels = np.ascontiguousarray(array.transpose(2, 0, 1))
    return Prepared(pixels, Placement(size, fed, left, top, width, height))


def synthetic_picture(rng: np.random.Generator, steps: Sequence[Step]) -> Array:
    """A picture that a task might be asked: uint8, shape = (H, W, 3). Where the steps keep its size, those
    of several pictures differ."""
    size = fixed_size(steps)
    return synthetic.picture(rng, size or _SIZES[rng.integers(len(_SIZES))])


def _resize(picture: Image.Image, step: Step) -> Image.Image:
    width, height = _resized(picture.width, picture.height, step)
    if width * height > MAX_PIXELS:
        raise InputError(
            f"an image of {picture.width}×{picture.height} would be resized to {width}×{height},"
            f" more than {MAX_PIXELS} pixels; crop it first"
        )
    return picture.resize((width, height), Image.Resampling(RESAMPLING.index(step.resample)))


def _resized(width: int, height: int, step: Step) -> tuple[int, int]:
    """Width and height after a resize, rounded as the original processors round."""
    if step.height is not None and step.width is not None:
        return _whole(step.width, step), _whole(step.height, step)
    short, long = min(width, height), max(width, height)
    if step.shortest_edge is None:
        edge = step.longest_edge or long
        short, long = max(1, int(edge * short / long + 0.5)), edge
    else:
        exact: float = step.shortest_edge
        if step.longest_edge is not None and long / short * exact > step.longest_edge:
            exact = step.longest_edge * short / long
        # the shorter edge is rounded, the longer one cut: DETR's rule
        edge = round(exact)
        if edge != short:
            short, long = max(1, edge), max(1, int(exact * long / short))
    short, long = _whole(short, step), _whole(long, step)
    return (short, long) if width <= height else (long, short)


def _whole(edge: int, step: Step) -> int:
    """`edge` rounded down to a multiple, but not to nothing; `pad` has its own rule."""
    if step.multiple_of is None or step.op != "resize":
        return edge
    return max(step.multiple_of, edge - edge % step.multiple_of)


def _center_crop(picture: Image.Image, step: Step) -> tuple[Image.Image, int, int]:
    """The picture, and the place of its first pixel in the old one."""
    width, height = step.width or 0, step.height or 0
    # crop with a negative offset pads with black; // rounds it up to the original's padding
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height)), left, top


def _pad_picture(picture: Image.Image, step: Step) -> tuple[Image.Image, int, int]:
    """The picture, and where the old one lies in it."""
    width, height, left, top = _padding(picture.width, picture.height, step)
    padded = Image.new("RGB", (width, height), (round(step.fill),) * 3)
    padded.paste(picture, (left, top))
    return padded, left, top


def _pad_array(array: Array, step: Step) -> tuple[Array, int, int]:
    old_height, old_width = array.shape[:2]
    width, height, left, top = _padding(old_width, old_height, step)
    padded = np.full((height, width, 3), step.fill, np.float32)
    padded[top : top + old_height, left : left + old_width] = array
    return padded, left, top


def _padding(width: int, height: int, step: Step) -> tuple[int, int, int, int]:
    """New width and height, and where the old lies in the new."""
    if step.multiple_of is not None:
        new = (
            -(-width // step.multiple_of) * step.multiple_of,
            -(-height // step.multiple_of) * step.multiple_of,
        )
    else:
        new = (step.width or 0, step.height or 0)
    if new[0] < width or new[1] < height:
        raise InputError(
            f"an image is {width}×{height} pixels after resizing, but is padded to {new[0]}×{new[1]};"
            f" it is too long, crop it first"
        )
    _check_input_size(*new)
    if not step.centered:
        return (*new, 0, 0)
    return (*new, (new[0] - width) // 2, (new[1] - height) // 2)


def _floats(picture: Image.Image) -> Array:
    _check_input_size(*picture.size)
    return np.asarray(picture, dtype=np.float32)


def _check_input_size(width: int, height: int) -> None:
    if width * height > _MAX_INPUT_PIXELS:
        raise InputError(
            f"an image would be given to the model with {width}×{height} pixels, more than"
            f" {_MAX_INPUT_PIXELS}; crop or shrink it first"
        )


def _rescale(array: Array, step: Step) -> Array:
    return np.asarray(array * np.float32(step.factor or 0.0))


def _normalize(array: Array, step: Step) -> Array:
    return np.asarray((array - _float32(step.mean)) / _float32(step.std))
