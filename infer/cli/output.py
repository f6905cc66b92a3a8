"""What commands print: one JSON document for programs, aligned text for people.

Names in an artifact may come from anyone, so no control character reaches a terminal.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

SCHEMA_VERSION = 1


# C0 and C1 controls with DEL; line and paragraph separators; marks that reorder text; half characters
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def shown(text: str) -> str:
    """`text` with control characters written as escapes, newlines among them."""
    return _CONTROLS.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def to_json(document: dict[str, Any], indent: int | None = None) -> str:
    """A JSON document with the version of its schema first.

    JSON has no NaN and no infinities; they become "NaN", "Infinity" and "-Infinity", as in ProtoJSON.
    """
    document = {"schema_version": SCHEMA_VERSION, **document}
    try:
        text = json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(document), ensure_ascii=False, indent=indent, allow_nan=False)
    # such characters occur in strings only, where JSON has an escape for each
    return re.sub(
        "[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", lambda m: f"\\u{ord(m.group()):04x}", text
    )


@contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Send what the body writes to stdout to stderr, native code and the user's model included: stdout is
    for the result."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):  # one of them is closed
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout."""
    click.echo(to_json(document, indent=1))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def heading(text: str) -> None:
    """A section's title."""
    click.echo(click.style(shown(text), bold=True))


def rows(pairs: Iterable[tuple[str, str | Sequence[str]]], indent: str = "  ") -> None:
    """Two aligned columns; a value of several lines stands under itself."""
    table = [
        (shown(name), [shown(line) for line in ([value] if isinstance(value, str) else value)])
        for name, value in pairs
    ]
    width = max((len(name) for name, _ in table), default=0)
    for name, lines in table:
        first, *rest = lines or [""]
        click.echo(f"{indent}{name:<{width}}  {first}")
        for line in rest:
            click.echo(f"{indent}{'':<{width}}  {line}")


def size(size_bytes: int) -> str:
    """A size for people: 1.0 MiB."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
