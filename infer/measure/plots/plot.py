"""A drawing with what stands around it, and which series share one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infer.measure.labels import scenario
from infer.measure.plots.drawing import Draw, Style, style
from infer.measure.record import Series

Order = Mapping[str, int]
"""Candidate → its place, which decides how it looks in every plot."""

_MOST_POINTS = 4
"""Of more points than these, the first and the last get a plot of their own."""


@dataclass(frozen=True)
class Key:
    """A line of a legend."""

    name: str
    look: Style
    line: bool


@dataclass(frozen=True)
class Plot:
    """A drawing with what stands around it; `label` says in words what it shows."""

    title: str
    label: str
    draw: Draw
    keys: tuple[Key, ...] = ()
    note: str = ""
    height: float = 260


def scenarios(series: Sequence[Series]) -> dict[str, list[Series]]:
    """Series by scenario and bound."""
    found: dict[str, list[Series]] = {}
    for each in series:
        found.setdefault(scenario(each), []).append(each)
    return found


def ends(found: Sequence[tuple[str, list[Series]]]) -> tuple[Sequence[tuple[str, list[Series]]], str]:
    """All points, or the first and the last of many, and a sentence that says so."""
    if len(found) <= _MOST_POINTS:
        return found, ""
    return (found[0], found[-1]), f" The first and the last of {len(found)} points."


def swept(group: Sequence[Series]) -> list[str]:
    """Dims that have several sizes."""
    dims = dict.fromkeys(dim for series in group for dim in series.sizes)
    return [dim for dim in dims if len({s.sizes[dim] for s in group if dim in s.sizes}) > 1]


def keys(group: Sequence[Series], order: Order) -> tuple[Key, ...]:
    """The legend of lines."""
    return tuple(Key(name, style(order[name]), True) for name in dict.fromkeys(s.candidate for s in group))
