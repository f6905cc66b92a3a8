"""What commands print: one JSON document for programs, aligned text for people.

Names in an artifact may come from anyone, so no control character reaches a terminal.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from infer.wording import shown, unseen

SCHEMA_VERSION = 1


def to_json(document: dict[str, Any], indent: int | None = None) -> str:
    """A JSON document with the version of its schema first.

    JSON has no NaN and no infinities; they become "NaN", "Infinity" and "-Infinity", as in ProtoJSON.
    """
    document = {"schema_version": SCHEMA_VERSION, **document}
    try:
        text = json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(document), ensure_ascii=False, indent=indent, allow_nan=False)
    # they occur in strings only, where JSON has an escape for each; its own newlines stay
    return text.translate({ord(c): _json_escape(c) for c in unseen(text) if c > "\x7e"})


def _json_escape(character: str) -> str:
    # json.dumps leaves DEL as it is
    return json.dumps(character)[1:-1] if character > "\x7f" else "\\u007f"


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
    """One JSON document on stdout: in UTF-8, or in ASCII where stdout has another encoding."""
    text = to_json(document, indent=1)
    if codecs.lookup(sys.stdout.encoding).name != "utf-8":
        text = json.dumps(json.loads(text), indent=1)
    click.echo(text)


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
