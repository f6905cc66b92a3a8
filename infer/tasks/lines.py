"""Texts out of bytes, one a line: files and stdin are read by the same rule."""

from __future__ import annotations

from pathlib import Path

from infer.errors import InputError


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, see `split_lines`. Raises `InputError`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no file '{path}'; check the path, or pass text with --text") from error
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from error
    return split_lines(data, f"'{path}'")


def split_lines(data: bytes, name: str) -> list[str]:
    r"""The lines of UTF-8 `data`, without those that hold nothing but white space.

    A line ends at \n or \r\n alone: U+2028, form feeds and their like are part of the text. A byte order
    mark at the start is not. Raises `InputError` naming `name` and the first byte that is not UTF-8.
    """
    try:
        text = data.decode("utf-8")  # not utf-8-sig, whose errors count from behind the mark
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first"
        ) from error
    lines = (line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n"))
    return [line for line in lines if line.strip()]
