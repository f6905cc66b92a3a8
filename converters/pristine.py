"""Keeps a module as it came, whatever calling or exporting it does to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def pristine(module: torch.nn.Module) -> Iterator[list[str]]:
    """Put back every attribute of `module` and its parts that the body sets or changes.

    Some models change themselves when they are called: Swin shrinks its windows for good on a small
    image, others keep position tables of the last length. A graph has no such memory, so each call
    must find the model as it was trained. Exporters leave fake tensors in such caches. Containers are
    put back one level deep, and buffers that were written in place get their values back; the names of
    these are in the list that is yielded, once the body has ended.
    """
    states = [
        (part, _state(part)) for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)
    ]
    buffers = [(name, buffer, buffer.clone(), _version(buffer)) for name, buffer in module.named_buffers()]
    written: list[str] = []
    try:
        yield written
    finally:
        for part, state in states:
            _restore(part, state)
        for name, buffer, before, version in buffers:
            if _version(buffer) != version:
                if not torch.equal(buffer, before):
                    written.append(name)
                with torch.no_grad():
                    buffer.copy_(before)


def _version(tensor: torch.Tensor) -> int | None:
    """Counts writes; None for inference tensors, which have no such counter and cannot be written."""
    return None if tensor.is_inference() else tensor._version


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
