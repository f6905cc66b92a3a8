"""Strict reading of JSON into frozen dataclasses: unknown keys, missing keys and wrong types are
errors that name the field. Everything that comes from a file goes through here."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_MAX_NESTING = 64


class SchemaError(ValueError):
    """The data does not have the declared shape; the message names the field."""


def parse(text: str | bytes) -> Any:
    """The data of a JSON text that every reader takes alike: no NaN, no key twice, bounded nesting.

    Raises `SchemaError`.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        _check_plain(data)
    except (ValueError, RecursionError) as error:
        raise SchemaError(str(error)) from error
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # readers would disagree on which one counts
        raise ValueError("a key is given twice in one object")
    return found


def _check_plain(data: Any) -> None:
    """Refuse JSON that could not be written again, and nesting no model has. Raises `ValueError`."""
    level, depth = [data], 0
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        if depth > _MAX_NESTING:
            raise ValueError(f"it is nested more than {_MAX_NESTING} deep")
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    # 1e999 reads as infinity, and "\\ud800" as half a character
    json.dumps(data, allow_nan=False, ensure_ascii=False).encode("utf-8")


def decode(cls: type[T], data: object, where: str) -> T:
    """An instance of the dataclass `cls` made from JSON `data`; `where` names it in errors.

    Raises `SchemaError`.
    """
    return typing.cast(T, _decode(cls, data, where))


def encode(value: Any) -> Any:
    """`value`, a tree of dataclasses, tuples and mappings, as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


@functools.cache
def _fields(cls: Hashable) -> dict[str, tuple[Any, bool]]:
    """Each field's type and whether it must be present."""
    assert isinstance(cls, type)
    hints = typing.get_type_hints(cls)
    missing = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
        if f.init
    }


def _decode(kind: Any, data: object, where: str) -> Any:
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _decode_object(typing.cast("type[Any]", kind), data, where)
    if origin in (types.UnionType, typing.Union):
        return _decode_union(args, data, where)
    if origin is tuple and args[-1] is Ellipsis:
        items = _expect(list, data, where)
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is tuple:
        items = _expect(list, data, where)
        if len(items) != len(args):
            raise SchemaError(f"{where} must have {len(args)} items, but has {len(items)}")
        return tuple(
            _decode(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(args, items, strict=True))
        )
    if origin is dict:
        mapping = _expect(dict, data, where)
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in mapping.items()}
    if kind is float and type(data) is int:
        try:
            return float(data)
        except OverflowError:
            raise SchemaError(f"{where} must be a number that fits 64 bits") from None
    if kind is int and type(data) is int and not -(2**63) <= data < 2**63:
        raise SchemaError(f"{where} must be a number that fits 64 bits")
    return _expect(kind, data, where)


def _decode_object(cls: type[Any], data: object, where: str) -> Any:
    given = _expect(dict, data, where)
    fields = _fields(typing.cast(Hashable, cls))
    if unknown := sorted(set(given) - set(fields)):
        raise SchemaError(f"{where} has unknown keys {unknown}; it may have {sorted(fields)}")
    if absent := [name for name, (_, required) in fields.items() if required and name not in given]:
        raise SchemaError(f"{where} lacks {absent}")
    make: Callable[..., Any] = cls
    return make(**{name: _decode(fields[name][0], item, f"{where}.{name}") for name, item in given.items()})


def _decode_union(options: tuple[Any, ...], data: object, where: str) -> Any:
    if data is None and type(None) in options:
        return None
    problems = []
    for option in options:
        if option is not type(None):
            try:
                return _decode(option, data, where)
            except SchemaError as error:
                problems.append(str(error))
    raise SchemaError("; or ".join(problems))


def _expect(kind: type[T], data: object, where: str) -> T:
    # bool is an int to Python, not to JSON
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise SchemaError(f"{where} must be {kind.__name__}, but is {data!r:.60}")
    return data
