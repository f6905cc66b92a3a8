"""Progress on stderr: one line that is rewritten on a terminal, one line a step elsewhere."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import sys
import time
from types import TracebackType

import click

from infer.wording import shown

_COUNTDOWN_S = 10.0
"""Where lines stay, those that differ from the last in their numbers only come this far apart."""


class Progress:
    """Called with a sentence at each step; knows how long the work has taken."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._rewrite = sys.stderr.isatty()
        self._start = time.perf_counter()
        self._last = ("", -_COUNTDOWN_S)

    def __enter__(self) -> Progress:
        return self

    def __call__(self, sentence: str) -> None:
        if self._quiet:
            return
        try:
            self._tell(sentence)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._quiet = True  # the terminal was closed, and work goes on to its end

    def _tell(self, sentence: str) -> None:
        elapsed_s = time.perf_counter() - self._start
        line = f"{elapsed_s:5.1f} s  {shown(sentence)}"
        if self._rewrite:
            width = shutil.get_terminal_size().columns
            # not to be taken for a colour where those are off
            click.echo(f"\r\x1b[K{line[: width - 1]}", err=True, nl=False, color=True)
            return
        step, (last, at_s) = re.sub(r"[\d.]+", "", sentence), self._last
        if step != last or elapsed_s - at_s >= _COUNTDOWN_S:
            click.echo(line, err=True)
            self._last = (step, elapsed_s)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._rewrite and not self._quiet:
            with contextlib.suppress(OSError):  # as above
                click.echo("\r\x1b[K", err=True, nl=False, color=True)
