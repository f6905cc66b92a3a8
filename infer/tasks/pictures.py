"""Pictures as people have them, opened as upright 8-bit RGB: what image tasks start from.

Files are read by pillow's own readers of six formats, chosen by their first bytes. None of them
starts a program, and the size is checked before anything is decoded.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

import numpy as np

from infer.errors import InputError, missing_package

try:
    from PIL import Image, ImageFile, ImageOps
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.GifImagePlugin import GifImageFile
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.TiffImagePlugin import TiffImageFile
    from PIL.WebPImagePlugin import WebPImageFile
except ImportError as _error:
    raise missing_package("pillow", "image", _error) from _error

MAX_PIXELS = 178_956_970
"""A decompressed picture may have this many pixels (512 MiB of RGB), pillow's own hard limit."""

# Image.open would choose among forty readers, one of which starts ghostscript, and warns of large pictures
_READERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"BM", BmpImageFile),
    (b"GIF8", GifImageFile),
    (b"II", TiffImageFile),
    (b"MM", TiffImageFile),
)

_EIGHT_BITS = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
)
"""pillow's modes that have a meaning as colours without knowing more than the pixels."""


def open_picture(source: Any) -> Image.Image:
    """An RGB picture from a path, encoded bytes, a pillow image, or a uint8 array (H, W, 3) or (H, W).

    The orientation a camera recorded is applied; of an animation, the first frame is taken; alpha is
    dropped, as the original processors do; 16-bit grey is scaled by 1/257. Raises `InputError`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _rgb(source, "the given image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(io.BytesIO(bytes(source)), "the given bytes")
    if not isinstance(source, (str, Path)):
        raise InputError(
            f"an image must be a path, bytes, a pillow image or a uint8 array, but a"
            f" {type(source).__name__} came"
        )
    path = Path(source)
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            raise InputError(f"'{path}' is not a file; an image must be a regular file")
        with path.open("rb") as file:
            return _read(file, f"'{path}'")
    except FileNotFoundError as error:
        raise InputError(f"there is no image '{path}'; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        raise InputError(f"'{path}' cannot be read as an image ({error})") from error


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if isinstance(array, np.ma.MaskedArray):
        raise InputError("an image array must not be masked; fill what is masked with .filled(0)")
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise InputError(
            f"an image array must be uint8 with shape (H, W, 3) or (H, W), but {array.dtype}"
            f" {list(array.shape)} came; scale it to 0–255 and put channels last"
        )
    _check_size(array.shape[1], array.shape[0], "the given array")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _read(file: IO[bytes], where: str) -> Image.Image:
    start = file.read(16)
    file.seek(0)
    reader = next((reader for magic, reader in _READERS if start.startswith(magic)), None)
    if reader is None:
        raise InputError(
            f"{where} cannot be read as an image: it is not JPEG, PNG, WebP, BMP, TIFF or GIF; convert it"
        )
    try:
        with reader(file) as picture:
            _check_size(*picture.size, where)
            return _rgb(picture, where)
    except InputError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        raise InputError(
            f"{where} cannot be read as an image ({error}); the file is damaged or cut short"
        ) from error


def _check_size(width: int, height: int, where: str) -> None:
    if not (width and height):
        raise InputError(f"{where} has {width}×{height} pixels; an image needs one at least")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{where} cannot be read as an image: it has {width}×{height} pixels, and at most"
            f" {MAX_PIXELS} are decoded; scale it down or cut it into tiles first"
        )


def _rgb(picture: Image.Image, where: str) -> Image.Image:
    _check_size(*picture.size, where)
    wide = picture.mode.startswith("I;16")
    if not wide and picture.mode not in _EIGHT_BITS:
        raise InputError(
            f"{where} has pixels of mode '{picture.mode}', whose range an RGB task cannot know; scale"
            f" them to 0–255 and save them as 8-bit RGB"
        )
    try:
        picture = ImageOps.exif_transpose(picture)
        if wide:
            # 65,535 / 257 is 255; pillow's own conversion would clip at 255
            grey = (np.asarray(picture).astype(np.uint32) + 128) // 257
            picture = Image.fromarray(grey.astype(np.uint8))
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")  # same colours, without pillow's warning
        return picture.convert("RGB")
    except Exception as error:  # a lazy image is decoded here, and decoders raise many kinds
        raise InputError(
            f"{where} cannot be read as an image ({error}); the file is damaged or cut short"
        ) from error
