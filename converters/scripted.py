"""The flat form of a TorchScript program.

The TorchScript exporter cannot trace through a program that was loaded from a file, but it can
export it whole, with its control flow. So the flat form is written in TorchScript itself:

    def forward(self, input_0, input_1):
        out = self.module(input_0, [input_1])
        return (out["logits"], out["states"][0],)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from converters.flat import FlatModule
from infer.structure import Structure


class _Holder(torch.nn.Module):
    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.module = module


def scripted_form(flat: FlatModule) -> torch.jit.ScriptModule:
    """`flat`, which must have been called once, as a program that takes and gives flat tensors."""
    names = [f"input_{i}" for i in range(len(flat.input_names))]
    given = iter(names)
    arguments = ", ".join(_expression(value, given) for value in flat.named.values())
    outputs = dict(_accesses(flat.structure, "out"))
    returned = "".join(f"{outputs[name]}, " for name in flat.output_names)
    holder: Any = torch.jit.script(_Holder(flat.module))
    holder.define(
        f"def forward(self, {', '.join(names)}):\n"
        f"    out = self.module({arguments})\n"
        f"    return ({returned})\n"
    )
    return holder.eval()


def _expression(value: Any, given: Iterator[str]) -> str:
    """TorchScript for an example input, with names in place of its tensors."""
    if isinstance(value, torch.Tensor):
        return next(given)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_expression(item, given)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_expression(item, given) for item in value) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(f"{_expression(item, given)}, " for item in value) + ")"
    return repr(value)


def _accesses(structure: Structure, path: str) -> Iterator[tuple[str, str]]:
    """Each tensor's name, and the expression that takes it out of the program's result."""
    if isinstance(structure, str):
        yield structure, path
    elif structure is not None:
        ((kind, content),) = structure.items()
        if kind == "dict":
            for key, item in content.items():
                yield from _accesses(item, f"{path}[{key!r}]")
        elif kind in ("tuple", "list"):
            for i, item in enumerate(content):
                yield from _accesses(item, f"{path}[{i}]")
