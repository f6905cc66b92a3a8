"""How text from anywhere, and sizes, are written for people: in a terminal and on a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

# Unicode's categories of what is not visible as itself: controls, newlines among them; marks that format or
# reorder text, or show nothing; half characters; separators of lines and of paragraphs
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def shown(text: str) -> str:
    """`text` with characters that a terminal would obey, or show nothing of, written as escapes."""
    return text.translate({ord(c): c.encode("unicode_escape").decode("ascii") for c in unseen(text)})


def unseen(text: str) -> list[str]:
    """The different characters of `text` that are not visible as themselves."""
    if text.isascii() and text.isprintable():
        return []
    return [c for c in set(text) if unicodedata.category(c) in _UNSEEN or _is_noncharacter(ord(c))]


def _is_noncharacter(code: int) -> bool:
    """Unicode will never assign these, and XML has no U+FFFE and U+FFFF."""
    return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF


def excerpt(value: Any, most: int = 60) -> str:
    """The first `most` characters of `repr(value)`; no more of a list or dict of millions is written."""
    text = ""
    for piece in _pieces(value, most):
        text += piece
        if len(text) >= most:
            break
    return text[:most]


def _pieces(value: Any, most: int) -> Iterator[str]:
    """What `repr(value)` is put together from; of a string, the first `most` characters at least."""
    if isinstance(value, dict | list):
        start, end = "{}" if isinstance(value, dict) else "[]"
        yield start
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _pieces(item, most)
            if isinstance(value, dict):
                yield ": "
                yield from _pieces(value[item], most)
        yield end
    else:
        yield repr(value[:most] if isinstance(value, str) else value)


def size(size_bytes: int) -> str:
    """A size for people: 1.0 MiB."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
