"""Keeps a module as it came, whatever calling or exporting it does to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def pristine(module: torch.nn.Module) -> Iterator[None]:
    """Put back every attribute of `module` and its parts that the body sets or changes.

    Some models change themselves when they are called: Swin shrinks its windows for good on a small
    image, others keep position tables of the last length. A graph has no such memory, so each call
    must find the model as it was trained. Exporters leave fake tensors in such caches.
    Tensors written in place are not put back; containers are, one level deep.
    """
    states = [
        (part, _state(part)) for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for part, state in states:
            _restore(part, state)


_State = dict[str, tuple[Any, Any]]
"""Attribute → its value, and a copy of the contents if that is a container."""


def _state(part: torch.nn.Module) -> _State:
    return {
        name: (value, value.copy() if isinstance(value, (dict, list, set)) else None)
        for name, value in vars(part).items()
    }


def _restore(part: torch.nn.Module, state: _State) -> None:
    attributes = vars(part)
    for name in [name for name in attributes if name not in state]:
        del attributes[name]
    for name, (value, contents) in state.items():
        attributes[name] = value
        if contents is None:
            continue
        if isinstance(value, list):
            value[:] = contents
        else:
            value.clear()
            value.update(contents)
