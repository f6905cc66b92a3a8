"""What commands print: one JSON document for programs, aligned text for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

SCHEMA_VERSION = 1


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout, with the version of its schema first."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **document}, ensure_ascii=False, indent=1))


def heading(text: str) -> None:
    """A section's title."""
    click.echo(click.style(text, bold=True))


def rows(pairs: Iterable[tuple[str, str]], indent: str = "  ") -> None:
    """Two aligned columns; long values wrap under themselves."""
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        first, *rest = value.splitlines() or [""]
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
