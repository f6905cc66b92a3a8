"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_S = 20.0
"""Long enough for a busy machine: who waits so long waits in vain."""


def until(
    held: Callable[[], bool], words: str = "it never came", wait_s: float = WAIT_S, step_s: float = 0.005
) -> float:
    """How many seconds it took; looked at every `step_s`. Fails with these words after `wait_s`."""
    start = time.monotonic()
    while not held():
        assert time.monotonic() < start + wait_s, words
        time.sleep(step_s)
    return time.monotonic() - start
