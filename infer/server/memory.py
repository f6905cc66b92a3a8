"""How much memory this process has for itself, and how much its models may take together."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from infer.errors import InputError, OverloadedError

_STATUS = Path("/proc/self/status")
_log = logging.getLogger("infer.server")


def own_bytes() -> int:
    """Bytes in memory that are no file's, as mapped weights are; 0 where the system does not say.

    Source: proc(5), `RssAnon` (Linux 4.5).
    """
    try:
        lines = _STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


class Loadable(Protocol):
    """What a budget must know of a model: its weights, what it takes with all else, and how to close it."""

    name: str
    version: str

    @property
    def weights_bytes(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...

    @property
    def state(self) -> str: ...

    @property
    def last_use(self) -> float: ...

    def unload(self, *, idle_only: bool) -> bool: ...


class MemoryBudget:
    """What the models that are loaded may take together.

    What loading took tells which ones to close, but is too rough to refuse a model for: it is refused for
    weights alone.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        """`limit_bytes` is None if they may take what they take."""
        self._limit_bytes = limit_bytes

    def check(self, name: str, weights_bytes: int) -> None:
        """Raises `InputError` if there could never be room for the weights of the model `name`."""
        if self._limit_bytes is not None and weights_bytes > self._limit_bytes:
            raise InputError(
                f"the weights of '{name}' have {weights_bytes} bytes, more than the memory budget of"
                f" {self._limit_bytes}"
            )

    def make_room(
        self, model: Loadable, models: Iterable[Loadable], weights_bytes: int, expected_bytes: int
    ) -> None:
        """Close others of `models` until `expected_bytes` more are within the budget, as far as can be.

        Raises `OverloadedError` if there is no room for `weights_bytes` beside the weights of what is left.
        """
        models = list(models)
        self._close_idle(model, models, expected_bytes)
        taken = sum(each.weights_bytes for each in models if each.state == "READY")
        if self._limit_bytes is not None and taken + weights_bytes > self._limit_bytes:
            raise OverloadedError(
                f"there is no room for the model '{model.name}' beside those in use; try again later"
            )

    def settle(self, model: Loadable, models: Iterable[Loadable]) -> None:
        """Close others of `models` if `model`, now loaded, took more than was expected of it."""
        if (over := self._close_idle(model, list(models), 0)) > 0:
            _log.warning(
                "the models that are loaded take %d bytes more than the memory budget, '%s' %d of all",
                over,
                model.name,
                model.memory_bytes,
            )

    def _close_idle(self, model: Loadable, models: list[Loadable], more_bytes: int) -> int:
        """Close idle ones, those that were not asked for the longest first, until what is loaded and so
        much more is within the budget; how many bytes it is over it then."""
        limit_bytes = self._limit_bytes
        if limit_bytes is None:
            return 0

        def over() -> int:
            taken = sum(each.memory_bytes for each in models if each.state == "READY")
            return max(0, taken + more_bytes - limit_bytes)

        loaded = sorted((each for each in models if each.state == "READY"), key=lambda each: each.last_use)
        for other in loaded:
            if over() and other is not model and other.unload(idle_only=True):
                _log.info("model %s version %s makes room for %s", other.name, other.version, model.name)
        return over()
