"""What extras of infer-onnx bring, as it is installed here: names, versions and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import infer

OURS = "infer-onnx"

_COMPILED = 1.6
"""Bytecode over source: numpy's and infer's, as pip compiles them for Python 3.11, is 1.5 and 1.9."""

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?[^;]*(?:;(.*))?", re.DOTALL)
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


@dataclass(frozen=True)
class Package:
    """A package that is installed; `size_bytes` with the bytecode that pip makes of its sources."""

    name: str
    version: str
    size_bytes: int


@dataclass(frozen=True)
class Needed:
    """What extras bring, infer-onnx first, and what of it is `absent` here."""

    packages: tuple[Package, ...]
    absent: tuple[str, ...]


def needed(extras: Iterable[str], root: str = OURS) -> Needed:
    """`root` with `extras`, and all that these require.

    A requirement for certain machines or versions of Python counts where it is installed: that it is, is
    taken to say that it is for this one.
    """
    found: dict[str, Distribution] = {}
    asked: dict[str, set[str]] = {}
    absent: dict[str, None] = {}
    queue = [(root, frozenset(extras))]
    while queue:
        name, wanted = queue.pop(0)
        key = _normal(name)
        known = asked.setdefault(key, set())
        if key in found and wanted <= known:
            continue
        known |= wanted
        try:
            found[key] = distribution(name)
        except PackageNotFoundError:
            absent[key] = None
            continue
        offered = {_normal(extra) for extra in found[key].metadata.get_all("Provides-Extra") or ()}
        absent.update({f"{key}[{extra}]": None for extra in sorted(wanted - offered)})
        for text in found[key].requires or ():
            requirement, its_extras, applies, certain = _read(text, wanted)
            # of a package that others require for some machines, that it is absent says that this is none
            if applies and (certain or key == _normal(root) or _is_installed(requirement)):
                queue.append((requirement, its_extras))
    return Needed(
        tuple(Package(name, each.version, _size(name, each)) for name, each in found.items()),
        tuple(absent),
    )


def _read(text: str, wanted: frozenset[str]) -> tuple[str, frozenset[str], bool, bool]:
    """Name and extras of a requirement, whether it is for the extras that are `wanted`, and whether it is
    for all machines."""
    matched = _REQUIREMENT.match(text)
    assert matched is not None, text
    name, extras, marker = matched[1], matched[2] or "", matched[3] or ""
    named = {_normal(extra) for extra in _EXTRA.findall(marker)}
    left = re.sub(r"\b(and|or)\b|[()\s]", "", _EXTRA.sub("", marker))
    its = frozenset(_normal(extra) for extra in extras.split(",") if extra.strip())
    return name, its, not named or bool(named & wanted), not left


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _size(name: str, found: Distribution) -> int:
    if name == OURS:  # its list of files is no help where it is installed from a clone
        folder = Path(infer.__file__).parents[1]
        files = [path for part in ("infer", "converters") for path in (folder / part).rglob("*")]
    else:
        files = [Path(str(found.locate_file(file))) for file in found.files or ()]
    sizes = [
        (path.suffix, path.stat().st_size)
        for path in files
        if "__pycache__" not in path.parts and path.is_file()
    ]
    sources = sum(size for suffix, size in sizes if suffix == ".py")
    return sum(size for _, size in sizes) + int(_COMPILED * sources)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
