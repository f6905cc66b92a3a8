"""Writing YAML that can be read in one way only: strings are always quoted, in ASCII."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

_NO_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""What YAML 1.1 takes for a Boolean or nothing, in any case: https://yaml.org/type/bool.html"""

Value = str | int | bool | Mapping[str, "Value"] | Sequence["Value"]


def document(comment: Sequence[str], value: Mapping[str, Value]) -> str:
    """A document under lines of comment. Keys are words of letters."""
    return "".join(f"# {line}\n" for line in comment) + "\n".join(_lines(value)) + "\n"


def quoted(text: str) -> str:
    """A double-quoted scalar, which no parser takes for a number, a date or a Boolean."""
    beyond = {
        ord(c): f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text if c > "\x7e"
    }
    return json.dumps(text, ensure_ascii=False).translate(beyond)


def _lines(value: Value) -> list[str]:
    """A mapping or a sequence in block style, another value on one line."""
    if isinstance(value, str):
        return [quoted(value)]
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, int):
        return [str(value)]
    if not value:
        return ["{}" if isinstance(value, Mapping) else "[]"]
    found: list[str] = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            inner = _lines(item)
            key = quoted(key) if key.lower() in _NO_WORDS else key
            if _nested(item):
                found += [f"{key}:", *(f"  {line}" for line in inner)]
            else:
                found.append(f"{key}: {inner[0]}")
    else:
        for item in value:
            first, *rest = _lines(item)
            found += [f"- {first}", *(f"  {line}" for line in rest)]
    return found


def _nested(value: Value) -> bool:
    return not isinstance(value, (str, int)) and len(value) > 0
