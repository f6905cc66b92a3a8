"""What points, groups of series and estimates are called: the same in a terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infer.measure.record import Series
from infer.measure.statistics import Estimate

UNDECIDED = "too noisy to say; measure for longer with --seconds"


def at(sizes: Mapping[str, int]) -> str:
    """A point: "batch 8, sequence 128"."""
    return ", ".join(f"{dim} {size}" for dim, size in sizes.items())


def among(group: Sequence[Series]) -> str:
    """Points from first to last: "sequence 128, batch 1 to 16"."""
    found = []
    for dim in dict.fromkeys(dim for series in group for dim in series.sizes):
        sizes = sorted({series.sizes[dim] for series in group if dim in series.sizes})
        found.append(f"{dim} {sizes[0]}" if len(sizes) == 1 else f"{dim} {sizes[0]} to {sizes[-1]}")
    return ", ".join(found)


def title(series: Series) -> str:
    """Scenario, bound and point."""
    return ", ".join(filter(None, (scenario(series), at(series.sizes))))


def scenario(series: Series) -> str:
    """The scenario, with its bound if it has one."""
    bound = "" if series.bound_ms is None else f", p99 within {series.bound_ms:g} ms"
    return f"{series.scenario}{bound}"


def groups(series: Sequence[Series]) -> list[tuple[str, list[Series]]]:
    """Series that stand side by side, under their title."""
    found: dict[str, list[Series]] = {}
    for each in series:
        found.setdefault(title(each), []).append(each)
    return list(found.items())


def digits(value: float) -> str:
    """Three digits, zeros at the end among them, and large numbers in full."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}" if value else "0"


def cell(estimate: Estimate | None) -> str:
    """A value and its interval, for a table."""
    return "-" if estimate is None else f"{digits(estimate.value)} ({interval(estimate)})"


def interval(estimate: Estimate) -> str:
    """From its low to its high end."""
    return f"{digits(estimate.low)}–{digits(estimate.high)}"
