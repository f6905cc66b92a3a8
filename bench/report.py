"""What a benchmark found: printed, and kept in a file if one is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from infer.drafts import file_draft
from infer.machine import this_machine


def report(title: str, lines: Sequence[str], made_by: str, output: Path | None) -> None:
    """Markdown, under the machine that it was measured on and the module that measured."""
    machine = this_machine()
    cores = f"On {machine.cores} cores ({machine.cpu}), which clients share where there are any."
    made = f"{cores} Made by `python -m {made_by}`."
    text = "\n".join([f"# {title}", "", made, "", *lines])
    click.echo(text)
    if output is not None:
        with file_draft(output) as draft:
            draft.write_text(text + "\n", encoding="utf-8")
