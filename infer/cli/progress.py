"""Progress on stderr: one line that is rewritten on a terminal, one line a step elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

import click

from infer.wording import shown


class Progress:
    """Called with a sentence at each step; knows how long the work has taken."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._rewrite = sys.stderr.isatty()
        self._start = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __call__(self, sentence: str) -> None:
        if self._quiet:
            return
        elapsed_s = time.perf_counter() - self._start
        line = f"{elapsed_s:5.1f} s  {shown(sentence)}"
        if self._rewrite:
            width = shutil.get_terminal_size().columns
            # not to be taken for a colour where those are off
            click.echo(f"\r\x1b[K{line[: width - 1]}", err=True, nl=False, color=True)
        else:
            click.echo(line, err=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._rewrite and not self._quiet:
            click.echo("\r\x1b[K", err=True, nl=False, color=True)
