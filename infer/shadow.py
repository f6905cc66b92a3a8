"""A share of live answers, checked against the reference's off the hot path.

What was proved when a variant was made holds for the data it was judged on; live data may drift away from
that. A run hands copies of its feeds and outputs to a thread of low priority, which runs them on the
reference again. Where too many answers are off, the session falls back to the reference for good.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from infer.backends import Executable
from infer.errors import InputError
from infer.guard import Feeds
from infer.manifest import Variant
from infer.options import ShadowOptions
from infer.parity import Tolerance, alike, compare
from infer.signature import Array

_log = logging.getLogger("infer")

_WAITING = 4
"""Answers that may wait for their check: each holds copies of its feeds and outputs."""

_FARTHER = 2.0
"""Live answers may be so much farther off than the farthest one when the variant was made."""

_CLOSEST = 1e-6
"""A cosine is not told from 1 any closer."""

_FARTHEST = 2.0
"""As far off as an answer can be: the opposite, or what cannot be compared."""

_MOST_WINDOW = 10_000

_END = None


@dataclass
class ShadowStats:
    """What was found since the session was opened.

    Attributes:
        checked: answers that were run again, of which `off` were too far from the reference's.
        skipped: answers that were chosen, but not checked, because others still were.
        failed: checks that came to no result.
        worst: the largest distance found of a row: 1 - cosine, or the share of labels that differ.
        fell_back: why the reference answers now, "" if it does not.
    """

    checked: int = 0
    off: int = 0
    skipped: int = 0
    failed: int = 0
    worst: float = 0.0
    fell_back: str = ""


class Shadow:
    """Checks answers of one session. Threads may share it; the session closes it."""

    def __init__(
        self,
        answering: Callable[[Feeds], Variant | None],
        tolerances: Mapping[str, Tolerance],
        open_reference: Callable[[], Executable],
        fall_back: Callable[[], None],
        options: ShadowOptions,
    ) -> None:
        """`answering` says which variant answers feeds, None for the reference itself; `open_reference`
        loads that; `fall_back` makes it answer.

        Raises `InputError` for options that are none, and what opening raises.
        """
        _check(options)
        self._answering, self._tolerances, self._options = answering, tolerances, options
        self._fall_back = fall_back
        self._reference = open_reference()
        self._stats = ShadowStats()
        self._latest: deque[bool] = deque(maxlen=options.window)
        self._lock = threading.Lock()
        self._queue: queue.Queue[tuple[Variant, Feeds, dict[str, Array]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._check_all, name="infer-shadow", daemon=True)
        self._thread.start()

    def offer(self, feeds: Feeds, outputs: Mapping[str, Array]) -> None:
        """Check this answer, if it is one of the share and few others wait. Takes no time to speak of."""
        if random.random() >= self._options.share or self._stats.fell_back:
            return
        variant = self._answering(feeds)
        if variant is None:
            return
        if self._queue.qsize() >= _WAITING:
            with self._lock:
                self._stats.skipped += 1
            return
        kept = Feeds({name: array.copy() for name, array in feeds.items()})
        kept.shapes = feeds.shapes
        self._queue.put((variant, kept, {name: array.copy() for name, array in outputs.items()}))

    def stats(self) -> ShadowStats:
        """What was found so far."""
        with self._lock:
            return replace(self._stats)

    def close(self) -> None:
        """End the thread, without checking what waits. Safe to call again."""
        with self._queue.mutex:
            self._queue.queue.clear()
        self._queue.put(_END)
        self._thread.join()

    def _check_all(self) -> None:
        if hasattr(os, "setpriority"):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while (taken := self._queue.get()) is not _END:
            if self._stats.fell_back:
                continue
            variant, feeds, outputs = taken
            try:
                expected = self._reference.run(feeds, tuple(outputs))
                distance, off = self._distance(variant, expected, outputs)
            except Exception as error:  # too little memory, for instance
                _log.warning("an answer of %s could not be checked: %r", variant.name, error)
                with self._lock:
                    self._stats.failed += 1
                continue
            self._note(variant, distance, off)
        self._reference.close()

    def _note(self, variant: Variant, distance: float, off: bool) -> None:
        stats, limit, window = self._stats, self._options.limit, self._options.window
        with self._lock:
            stats.checked, stats.off = stats.checked + 1, stats.off + off
            stats.worst = max(stats.worst, distance)
        self._latest.append(off)
        found = sum(self._latest)
        if len(self._latest) < window or found <= limit * window:
            return
        why = (
            f"{found} of the last {window} answers of {variant.name} that were checked were too far"
            f" from the reference's, more than {limit:.0%}"
        )
        try:
            self._fall_back()
        except Exception as error:
            self._latest.clear()  # and is tried again, if the next ones are no better
            _log.error("%s, but the reference cannot answer: %r", why, error)
            return
        with self._lock:
            stats.fell_back = why
        _log.warning("the reference answers from now on: %s", why)

    def _distance(
        self, variant: Variant, expected: Mapping[str, Array], found: Mapping[str, Array]
    ) -> tuple[float, bool]:
        """How far the farthest output is off, and whether that is too much; where the variant was made to
        be equal, whether it is not."""
        evidence = variant.evidence
        distance = max((_apart(array, found[name]) for name, array in expected.items()), default=0.0)
        if evidence is None or evidence.figures.get("equal") == 1.0:
            return distance, not all(d.within for d in compare(expected, found, self._tolerances))
        most = _FARTHER * max(1.0 - evidence.figures["min-cosine"], _CLOSEST)
        return distance, distance > most or distance >= _FARTHEST


def _apart(expected: Array, found: Array) -> float:
    """1 - `infer.parity.alike` of the row that is the farthest off."""
    if expected.shape != found.shape:
        return _FARTHEST
    if not expected.size:
        return 0.0
    a, b = (array.reshape(len(array) if array.ndim else 1, -1) for array in (expected, found))
    if a.shape[1] == 1:  # the cosine of two numbers says nothing but their sign
        a, b = a.reshape(1, -1), b.reshape(1, -1)
    return max(1.0 - alike(*pair) for pair in zip(a, b, strict=True))


def _check(options: ShadowOptions) -> None:
    """What types alone say, for callers who have none."""
    share, limit, window = options.share, options.limit, options.window
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise InputError(f"share of a shadow check must be above 0 and at most 1, but is {share!r:.60}")
    if not isinstance(limit, (int, float)) or not 0 <= limit < 1:
        raise InputError(f"limit of a shadow check must be from 0 to below 1, but is {limit!r:.60}")
    if type(window) is not int or not 1 <= window <= _MOST_WINDOW:
        raise InputError(
            f"window of a shadow check must be an int from 1 to {_MOST_WINDOW}, but is {window!r:.60}"
        )
