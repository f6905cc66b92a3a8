"""Makes any module a function from a flat list of tensors to a flat list of tensors, with names.

Inputs are named after the forward signature, outputs after the keys of what the model returns.
Exporters see only the flat form; the nesting of the outputs is kept as data, see
`infer.structure`.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from converters.source import Source
from infer.errors import ConversionError
from infer.structure import Structure


class FlatModule(torch.nn.Module):
    """`source.module` with flat inputs and outputs.

    Attributes:
        named: the example inputs by parameter, nested as they came.
        input_names: one for each tensor in the example inputs, in order.
        example: these tensors.
        constants: example inputs that hold no tensor, which become part of the graph.
        output_names, structure: known after the first call.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        # exporters end by putting every part into the mode that this wrapper was in
        self.training = False
        self.module = source.module
        named, self._call = _bind(source)
        self.named = named
        self.input_names: list[str] = []
        self.example: list[torch.Tensor] = []
        for name, value in named.items():
            for path, leaf in tensors_in(value, name):
                self.input_names.append(path)
                self.example.append(leaf)
        if not self.example:
            raise ConversionError(
                f"the example inputs of {source.described} hold no tensor, so there is nothing to feed;"
                f" give one with --input NAME=2x3x224x224:float32 or example_inputs={{...}}"
            )
        self.constants = {
            name: value
            for name, value in named.items()
            if value is not None and not tensors_in(value, name)
        }
        self.output_names: list[str] = []
        self.structure: Structure = None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(tensors)
        arguments = {name: _refill(value, given) for name, value in self.named.items()}
        result = self._call(self.module, arguments)
        leaves: list[tuple[str, torch.Tensor]] = []
        structure = _flatten(result, "", leaves, set(self.input_names))
        # constants may differ from call to call only if they depend on the inputs, which the
        # points check, because the structure of each call must be the same
        self.output_names, self.structure = [name for name, _ in leaves], structure
        return tuple(tensor for _, tensor in leaves)


Call = Callable[[Any, dict[str, Any]], Any]
"""Calls a module with arguments by name, in the order of the example inputs."""


def _bind(source: Source) -> tuple[dict[str, Any], Call]:
    """Example inputs by parameter name, and a way to call the module with such a dict."""
    module, args, kwargs = source.module, source.args, source.kwargs
    names = parameter_names(module)
    if names is None or len(args) > len(names):
        # forward(*args): positions are all there is
        named = {f"input_{i}": value for i, value in enumerate(args)}
        if not args and not _takes_any(module):
            named = _by_position(module, kwargs)
            kwargs = {name: value for name, value in kwargs.items() if name not in named}
    else:
        named = dict(zip(names, args, strict=False))
        if unknown := [name for name in kwargs if name not in names and not _takes_any(module)]:
            raise ConversionError(
                f"{source.described} has no input {', '.join(map(repr, unknown))}; its forward takes:"
                f" {', '.join(names) or 'nothing'}"
            )
    count = len(named)
    named.update(kwargs)

    def call(module: Any, given: dict[str, Any]) -> Any:
        values, rest = list(given.values())[:count], list(given.items())[count:]
        return module(*values, **dict(rest))

    return named, call


def parameter_names(module: Any) -> list[str] | None:
    """Names of forward's parameters in order; None if it only has *args."""
    if isinstance(module, torch.jit.ScriptModule):
        schema = typing.cast(Any, module.forward).schema
        return [argument.name for argument in schema.arguments[1:]]  # the first is the module itself
    kinds = inspect.Parameter
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        return None
    return [p.name for p in parameters if p.kind is not kinds.VAR_KEYWORD]


def _by_position(module: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of `given` a forward with *args takes by position: its own parameters first, then all that have
    names of the caller's."""
    parameters = inspect.signature(module.forward).parameters
    ahead = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and n in given]
    return {name: given[name] for name in (*ahead, *(n for n in given if n not in parameters))}


def _takes_any(module: Any) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return False
    parameters = inspect.signature(module.forward).parameters.values()
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def tensors_in(value: Any, path: str) -> list[tuple[str, torch.Tensor]]:
    """The tensors of nested mappings, lists and tuples, with their paths, which begin with `path`."""
    if isinstance(value, torch.Tensor):
        return [(path, value)]
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in tensors_in(item, f"{path}.{key}")]
    if isinstance(value, (list, tuple)):
        return [leaf for i, item in enumerate(value) for leaf in tensors_in(item, f"{path}.{i}")]
    return []  # a constant: kept as it is


def _refill(value: Any, given: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return next(given)
    if isinstance(value, Mapping):
        return {key: _refill(item, given) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_refill(item, given) for item in value])
    if isinstance(value, (list, tuple)):
        return type(value)(_refill(item, given) for item in value)
    return value


def _flatten(value: Any, path: str, leaves: list[tuple[str, torch.Tensor]], taken: set[str]) -> Structure:
    """The structure of `value`; its tensors go to `leaves` under names not yet in `taken`."""
    if isinstance(value, torch.Tensor):
        name = free_name(path or "output", taken)
        taken.add(name)
        leaves.append((name, value))
        return name
    if value is None:
        return None
    if isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        prefix = f"{path}." if path else ""
        if len({str(key) for key in value}) < len(value):
            raise ConversionError(
                f"the model returns a dict whose keys are the same as text ({', '.join(map(repr, value))}),"
                f" and an artifact keeps keys as text; wrap the model so that it returns other keys"
            )
        return {
            "dict": {
                str(key): _flatten(item, f"{prefix}{key}", leaves, taken) for key, item in value.items()
            }
        }
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        prefix = f"{path}." if path else ""
        fields: Sequence[str] = value._fields
        return {
            "tuple": [
                _flatten(item, f"{prefix}{name}", leaves, taken)
                for name, item in zip(fields, value, strict=True)
            ]
        }
    if isinstance(value, (list, tuple)):
        prefix = f"{path}." if path else "output_"
        items = [_flatten(item, f"{prefix}{i}", leaves, taken) for i, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    raise ConversionError(
        f"the model returns a {type(value).__name__} as '{path or 'output'}', which is not made of"
        f" tensors; wrap the model so that it returns only tensors, tuples and dicts"
        f" (a transformers model: set config.use_cache = False)"
    )


def free_name(name: str, taken: set[str]) -> str:
    """`name`, or the first of name_1, name_2, … that is not taken."""
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
