"""How a torch patch takes the place of a function, and leaves it again.

A function of torch is replaced by a function mode, which sees every call of it, and never by
assignment: torch keeps tables of its own functions, made when they are first asked for, and a
table made during an export would hold the replacement for the rest of the process. (`torch.device`
as a context then misses `torch.tensor`, and models loaded later start from memory that nobody
filled.) Functions of other packages are replaced by assignment, and so are those of torch.nn.modules,
which no table holds and no function mode sees.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


@dataclass(frozen=True)
class TorchPatch:
    """One construct that exporters get wrong, and what is traced in its place.

    Attributes:
        name: goes to the manifest if the replacement ran. Patches that only make sense together
            share one.
        targets: `module:function` or `module:Class.method`. A module may end in `.*` for all
            modules below. Only modules that are already imported are touched.
        replacement: takes the original function, then its arguments, and returns what it would.
        applies: whether to replace a call with these arguments; by custom, all calls.
    """

    name: str
    targets: tuple[str, ...]
    replacement: Callable[..., Any]
    applies: Callable[..., bool] = _always

    @contextmanager
    def active(self, used: set[str]) -> Iterator[None]:
        """Replace the targets; add the name to `used` when a replacement runs."""
        places = [place for target in self.targets for place in _places(target)]
        originals = [(owner, name, vars(owner)[name]) for owner, name in places]
        assigned = [place for place in originals if not _is_torchs(place[0])]
        of_torch = {
            function: self._wrapped(function, used) for o, _, function in originals if _is_torchs(o)
        }
        try:
            for owner, name, original in assigned:
                setattr(owner, name, self._wrapped(original, used))
            with _Replaced(of_torch) if of_torch else nullcontext():
                yield
        finally:
            for owner, name, original in assigned:
                setattr(owner, name, original)

    def _wrapped(self, original: Callable[..., Any], used: set[str]) -> Callable[..., Any]:
        @functools.wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            if not self.applies(*args, **kwargs):
                return original(*args, **kwargs)
            used.add(self.name)
            return self.replacement(original, *args, **kwargs)

        return replaced


class _Replaced(TorchFunctionMode):
    """While it is active, calls of some of torch's functions go to others."""

    def __init__(self, replacements: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self._replacements = replacements

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._replacements.get(func, func)(*args, **(kwargs or {}))


def _is_torchs(owner: Any) -> bool:
    name = f"{getattr(owner, '__module__', owner.__name__)}."
    return name.startswith("torch.") and not name.startswith("torch.nn.modules.")


def _places(target: str) -> Iterator[tuple[Any, str]]:
    """Objects that hold the target, each with the attribute's name."""
    where, _, path = target.partition(":")
    *owners, name = path.split(".")
    if where.endswith(".*"):
        modules = [m for key, m in sorted(sys.modules.items()) if key.startswith(where[:-1])]
    else:
        modules = [sys.modules[where]] if where in sys.modules else []
    for module in modules:
        owner: Any = module
        for part in owners:
            owner = vars(owner).get(part) if owner is not None else None
        if owner is not None and name in vars(owner):
            yield owner, name


def symbolic(*sizes: Any) -> bool:
    """Whether a size is open while it is traced: a symbol in torch.export, a tensor in TorchScript."""
    return any(isinstance(size, (torch.SymInt, torch.SymFloat, torch.Tensor)) for size in sizes)
