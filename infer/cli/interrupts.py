"""Ctrl-C, SIGTERM and the end of the terminal, from the first moment on.

While modules are imported, this one first, Ctrl-C ends the program at once: there is nothing to clear
away, and an exception would pass through code that is not ours. While a command runs, both are exceptions,
so that drafts are removed on the way out.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as in typing, which takes longer to import than all else here

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from typing import NoReturn

MESSAGE = "Interrupted. Nothing was left half done."

came = 0
"""The signal that came while a command ran, or 0. Libraries written in C may turn the exception that it
raised into one of their own, such as an ImportError."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came, which end things as Ctrl-C does: what was found so far is kept."""


def _while_importing() -> bool:
    """Let Ctrl-C end the program, unless it means something else; whether it does."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    try:
        signal.signal(signal.SIGINT, _leave)
    except ValueError:  # in another thread than the main one, which signals do not reach
        return False
    return True


def imported() -> None:
    """Give Ctrl-C back to Python, for those who import the command line as a library."""
    if _ends_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def while_running() -> None:
    """Raise `KeyboardInterrupt` and `Terminated` from now on, and remember the signal in `came`."""
    global came
    came = 0
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", None)):
        # a shell has the first ignored for what it starts with &, and nohup the second
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)
    signal.signal(signal.SIGTERM, _raise)
    signal.signal(signal.SIGALRM, lambda *_: _raise(came, None))
    sys.unraisablehook = _again


def status() -> int:
    """The exit code of what a signal ended, as shells have it."""
    return 128 + (came or signal.SIGINT)


def _again(ignored: UnraisableHookArgs) -> None:
    """An exception raised in a callback that cannot raise is lost, so it is raised again a moment later."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(ignored)


def _leave(number: int, _frame: object) -> NoReturn:
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(128 + number)


def _raise(number: int, _frame: object) -> NoReturn:
    global came
    came = number
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


_ends_at_once = _while_importing()
