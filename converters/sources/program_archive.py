"""Looks into a .pt2 archive before `torch.export.load` does, because that runs what it finds there:

compiled libraries are loaded, shape expressions go to `sympy.sympify`, which is `eval`, and the
names of tensors are pasted into Python source. What is let through has none of these, so that a
program is data: a graph of torch operators.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.utils._sympy.functions as torch_functions
from torch.export.pt2_archive._package import PT2ArchiveReader

from infer.errors import ConversionError

# text that is kept, compared or printed, and never becomes code
_FREE_TEXT = frozenset({"metadata", "as_string", "guards_code", "torch_version"})
# nothing that a call, an assignment, a subscript or a second line could be written with
_NAME = re.compile(r"[\w.:;,/ +-]*")
_SYMPY_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs", "floor",
    "ceiling", "And", "Or", "Not", "Piecewise", "ExprCondPair", "Eq", "Ne", "Ge", "Gt", "Le", "Lt",
    "Equality", "Unequality", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan",
}  # fmt: skip
_MAX_EXPRESSION = 10_000  # characters


def check_archive(path: Path) -> None:
    """Refuse a .pt2 file whose loading could run code. Raises `ConversionError`."""
    for name, data in _members(path):
        if "aotinductor" in name.lower():
            raise refused(path, f"compiled code ('{name}')")
        if data is None:
            continue
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConversionError(
                f"'{path}' is damaged: '{name}' in it is no JSON ({error}); save the program again"
            ) from error
        for found in _suspects(document, ""):
            raise refused(path, f"a text where a name or a size should be ({found!r:.80})")


def refused(path: Path, what: str) -> ConversionError:
    """The error for a .pt2 file that holds `what`."""
    return ConversionError(
        f"'{path}' holds {what}; loading it could run code, which infer does only for Python that you"
        f" name. Convert the program's own source instead: infer convert file.py:NAME"
    )


def _members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Names and the contents of JSON files, as each of the two readers that torch may use sees them."""
    try:
        reader = PT2ArchiveReader(str(path))
    except RuntimeError:
        pass  # the older format is an ordinary zip file
    else:
        for name in reader.get_file_names():
            yield name, reader.read_bytes(name) if name.endswith(".json") else None
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            yield member.filename, archive.read(member) if member.filename.endswith(".json") else None


def _suspects(value: Any, key: str) -> Iterator[str]:
    """Texts in a program's JSON that may reach an evaluator and are more than a name or a size."""
    if isinstance(value, dict):
        for inner, item in value.items():
            if not _NAME.fullmatch(inner) or inner == "__enum__":  # an enum is imported by its name
                yield inner
            if inner not in _FREE_TEXT:
                yield from _suspects(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _suspects(item, key)
    elif isinstance(value, str):
        if key == "expr_str":
            if not _is_expression(value):
                yield value
        elif key in ("in_spec", "out_spec", "context") and value[:1] in ("[", "{", '"'):
            try:
                yield from _suspects(json.loads(value), key)
            except (ValueError, RecursionError):
                yield value
        elif not _NAME.fullmatch(value):
            yield value


def _is_expression(text: str) -> bool:
    """Whether `text` only combines numbers and symbols by arithmetic and known functions."""
    if len(text) > _MAX_EXPRESSION:
        return False
    try:
        return _is_arithmetic(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_arithmetic(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=bool() | int() | float()) | ast.Name():
            return True
        case ast.UnaryOp(operand=operand):
            return _is_arithmetic(operand)
        case ast.BinOp(left=left, right=right):
            return _is_arithmetic(left) and _is_arithmetic(right)
        case ast.BoolOp(values=values) | ast.Tuple(elts=values):
            return all(map(_is_arithmetic, values))
        case ast.Compare(left=left, comparators=others):
            return all(map(_is_arithmetic, [left, *others]))
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(text))]):
            return text.isidentifier() and all(isinstance(k.value, ast.Constant) for k in node.keywords)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(text))]):
            return bool(re.fullmatch(r"[-+.\deE]+", text)) and all(
                isinstance(k.value, ast.Constant) for k in node.keywords
            )
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            known = name in _SYMPY_FUNCTIONS or (name[:1].isupper() and hasattr(torch_functions, name))
            return known and all(map(_is_arithmetic, [*args, *(k.value for k in keywords)]))
    return False
