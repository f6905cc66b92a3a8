"""Horizontal bars: ratios, cold start, memory, waterfalls, profiles.

Each is below its name, so that long names and narrow pages go together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infer.measure.labels import at, digits, groups, interval
from infer.measure.pairs import Pair
from infer.measure.plots.drawing import (
    BEHIND,
    GROUND,
    INK,
    Axes,
    Style,
    ratio_axis,
    shortened,
    stage,
    style,
    zero_axis,
)
from infer.measure.plots.plot import Key, Order, Plot, ends, scenarios, swept
from infer.measure.record import Profile, Record, Series, Share
from infer.measure.statistics import Estimate, verdict
from infer.wording import shown, size

_MOST_SHARES = 10

_PITCH, _TOP, _AXIS = 40, 6, 44
_LETTERS = 53
"""As many as fit beside each other at the usual width; the name gets what the note leaves."""


@dataclass(frozen=True)
class _Part:
    """A piece of a bar."""

    start: float
    end: float
    look: Style


@dataclass(frozen=True)
class _Row:
    """A bar in parts, with a name at the left, a note at the right, and the interval of its end."""

    name: str
    note: str
    parts: tuple[_Part, ...]
    interval: Estimate | None = None


def changes(pairs: Sequence[Pair], order: Order) -> list[Plot]:
    """Times now over those then, a bar each."""
    ratio = {id(pair.now): pair.ratio for pair in pairs}
    found = []
    for name, group in scenarios([pair.now for pair in pairs]).items():
        chosen, left_out = ends(groups(group))
        rated = [(s, ratio[id(s)], verdict(ratio[id(s)])) for _, each in chosen for s in each]
        note = f"Time per sample now over time then; left of the line is faster.{left_out}"
        found.append(_ratio_plot(f"Now to then, {name}", rated, order, note))
    return found


def ratios(record: Record, order: Order) -> Iterator[Plot]:
    """Times over those of the first candidate."""
    for name, group in scenarios(record.series).items():
        rated = [s for s in group if s.ratio is not None]
        if not rated:
            continue
        chosen, left_out = ends(groups(rated))
        first = next((s.candidate for s in group if s.ratio is None), "the first")
        yield _ratio_plot(
            f"Time to the first's, {name}",
            [(s, s.ratio, s.verdict or "") for _, each in chosen for s in each if s.ratio is not None],
            order,
            f"Time over that of {first}; left of the line is faster.{left_out}",
        )


def _ratio_plot(name: str, rated: Sequence[tuple[Series, Estimate, str]], order: Order, note: str) -> Plot:
    rows = []
    varied = swept([series for series, _, _ in rated])
    for series, ratio, said in rated:
        look = style(order[series.candidate])
        where = at({dim: size for dim, size in series.sizes.items() if dim in varied})
        rows.append(
            _Row(
                f"{series.candidate}, {where}" if where else series.candidate,
                f"×{digits(ratio.value)} ({interval(ratio)}) {said}",
                (_Part(1.0, ratio.value, look),),
                ratio,
            )
        )

    def draw(axes: Axes) -> None:
        _draw(axes, rows)
        reach = [end for _, ratio, _ in rated for end in (ratio.low, ratio.high)]
        ratio_axis(axes, min(reach), max(reach))
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_xlabel("ratio of times, log")

    label = "; ".join(f"{row.name} {row.note}" for row in rows)
    return Plot(name, f"{name}: {label}", draw, note=note, height=_height(len(rows)))


def starts(record: Record, order: Order) -> Iterator[Plot]:
    """From the start of a process to its first answer."""
    if not record.cold_starts:
        return
    names = ("import", "load", "first answer")
    rows = []
    for start in record.cold_starts:
        marks = (0.0, start.imported_ms, start.loaded_ms, start.first_answer_ms)
        rows.append(
            _Row(
                start.candidate,
                f"{digits(start.first_answer_ms)} ms, then {digits(start.steady_ms)} ms",
                tuple(_Part(marks[i], marks[i + 1], stage(i)) for i in range(3)),
            )
        )
    yield _stacked("Cold start", "ms since the process began", rows, names)


def memory(record: Record, order: Order) -> Iterator[Plot]:
    """The most that a process of each candidate took."""
    if not record.cold_starts:
        return
    rows = [
        _Row(
            start.candidate,
            size(start.peak_memory_bytes),
            (_Part(0, start.peak_memory_bytes / 2**20, style(order[start.candidate])),),
        )
        for start in record.cold_starts
    ]
    yield _stacked("Peak memory of a process", "MiB", rows, ())


def waterfalls(record: Record, order: Order) -> Iterator[Plot]:
    """Stages from input to answer, a plot for each input."""
    inputs = dict.fromkeys(waterfall.input for waterfall in record.waterfalls)
    for given in inputs:
        found = [w for w in record.waterfalls if w.input == given]
        names = tuple(dict.fromkeys(name for w in found for name in w.stages_ms))
        rows = []
        for waterfall in found:
            parts, end = [], 0.0
            for name, ms in waterfall.stages_ms.items():
                parts.append(_Part(end, end + ms, stage(names.index(name))))
                end += ms
            rows.append(_Row(waterfall.candidate, f"{digits(end)} ms", tuple(parts)))
        yield _stacked(f"Where an answer's time goes, {given}", "ms", rows, names)


def profiles(record: Record, order: Order) -> Iterator[Plot]:
    """The operators and the modules that take most of a query."""
    for profile in record.profiles:
        for kind, shares in (("operator", profile.operators), ("module", profile.modules)):
            if shares:
                yield _profile(kind, shares, profile, order)


def _profile(kind: str, shares: Sequence[Share], profile: Profile, order: Order) -> Plot:
    top = sorted(shares, key=lambda share: -share.ms)[:_MOST_SHARES]
    look = style(order[profile.candidate])
    rows = [
        _Row(
            share.name or "(none)", f"{digits(share.ms)} ms, {share.share:.1%}", (_Part(0, share.ms, look),)
        )
        for share in top
    ]
    where = ", ".join(filter(None, (profile.candidate, at(profile.sizes))))
    note = f"The {len(top)} of {len(shares)} that take most." if len(shares) > len(top) else ""
    return _stacked(f"Time by {kind}, {where}", "ms of a query", rows, (), note)


def _stacked(name: str, unit: str, rows: Sequence[_Row], stages: Sequence[str], note: str = "") -> Plot:
    """Bars from zero, in parts that `stages` names."""

    def draw(axes: Axes) -> None:
        _draw(axes, rows)
        zero_axis(axes, "x", max(row.parts[-1].end for row in rows if row.parts) or 1.0)
        axes.set_xlabel(unit)

    return Plot(
        name,
        f"{name}, {unit}: " + "; ".join(f"{row.name} {row.note}" for row in rows),
        draw,
        tuple(Key(text, stage(i), False) for i, text in enumerate(stages)),
        note,
        _height(len(rows)),
    )


def _height(count: int) -> float:
    """Of a drawing with so many rows."""
    return _TOP + _PITCH * count + _AXIS


def _draw(axes: Axes, rows: Sequence[_Row]) -> None:
    """Put the rows on axes, the first at the top; their scale is the caller's."""
    for y, row in enumerate(rows):
        for part in row.parts:
            axes.barh(
                y,
                part.end - part.start,
                left=part.start,
                height=0.42,
                facecolor=part.look.colour,
                edgecolor=GROUND,
                hatch=part.look.hatch,
            )
        if row.interval is not None:
            _whisker(axes, y, row.interval)
        across = axes.get_yaxis_transform()
        name = shortened(shown(row.name), _LETTERS - len(row.note))
        for x, text, side in ((0, name, "left"), (1, shown(row.note), "right")):
            axes.text(x, y - 0.3, text, transform=across, va="bottom", ha=side, bbox=BEHIND)
    axes.set_ylim(len(rows) - 0.6, -0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _whisker(axes: Axes, y: float, interval: Estimate) -> None:
    axes.plot([interval.low, interval.high], [y, y], color=INK, linewidth=1.4)
    for end in (interval.low, interval.high):
        axes.plot([end, end], [y - 0.12, y + 0.12], color=INK, linewidth=1.4)
