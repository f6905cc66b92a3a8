"""The command line, called in this process."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from dataclasses import dataclass
from unittest import mock

from infer.cli import main

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@dataclass(frozen=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


class _Stream(io.TextIOWrapper):
    """A text stream with bytes behind it; it says it is a terminal if `terminal`."""

    terminal = False

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        self.flush()
        raw = self.buffer
        assert isinstance(raw, io.BytesIO)
        return raw.getvalue().decode("utf-8")


def infer_command(*args: object, stdin: bytes = b"", terminal: bool = False) -> Outcome:
    """What `infer ARGS` does. On a terminal, control sequences are not filtered by click."""
    out, err = _Stream(io.BytesIO(), "utf-8"), _Stream(io.BytesIO(), "utf-8")
    given = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
    out.terminal = err.terminal = terminal
    patched = (
        ("argv", ["infer", *map(str, args)]),
        ("stdin", given),
        ("unraisablehook", sys.unraisablehook),
    )
    with contextlib.ExitStack() as stack:
        for name, value in patched:
            stack.enter_context(mock.patch.object(sys, name, value))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: object = None
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            try:
                main()
            except SystemExit as done:
                code = done.code
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
    assert isinstance(code, int)
    return Outcome(code, out.text(), err.text())
