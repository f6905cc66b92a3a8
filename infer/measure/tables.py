"""Tables of records in HTML: the numbers behind the plots, with their intervals.

Whatever comes from a record is escaped here, by `escaped`.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infer.measure.labels import at, digits, groups, interval, scenario
from infer.measure.pairs import Pair
from infer.measure.plots.plot import scenarios, swept
from infer.measure.record import Profile, Record, Series
from infer.measure.statistics import Estimate, verdict
from infer.wording import shown, size

_MOST_SHARES = 30


def escaped(text: object) -> str:
    """As HTML that shows the text, and does nothing else; also within quotes."""
    return html.escape(shown(str(text)), quote=True)


@dataclass(frozen=True)
class Number:
    """A number as it is to be written, with what stands small below it."""

    text: str
    below: str = ""


Cell = str | int | float | Estimate | Number | None
"""Text at the left, numbers at the right, and None where there is nothing to say."""


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first cell of each is its name."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def html(self) -> str:
        """The table in a box that scrolls where it is too wide."""
        numeric = [
            any(not isinstance(row[i], str) and row[i] is not None for row in self.rows)
            for i in range(len(self.header))
        ]
        head = "".join(
            f'<th scope="col"{_class(right)}>{escaped(name)}</th>'
            for name, right in zip(self.header, numeric, strict=True)
        )
        body = "".join(
            f'<tr><th scope="row">{escaped(row[0])}</th>'
            + "".join(
                f"<td{_class(right)}>{_cell(c)}</td>" for c, right in zip(row[1:], numeric[1:], strict=True)
            )
            + "</tr>\n"
            for row in self.rows
        )
        # what scrolls must be reachable from a keyboard
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(self.caption)}">'
            f"<table><caption><span>{escaped(self.caption)}</span></caption>\n"
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
        )


def _class(right: bool) -> str:
    return ' class="n"' if right else ""


def _cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, Estimate):
        cell = Number(digits(cell.value), interval(cell))
    if isinstance(cell, Number):
        return escaped(cell.text) + (f" <small>{escaped(cell.below)}</small>" if cell.below else "")
    return escaped(digits(cell) if isinstance(cell, float) else cell)


def _ratio(estimate: Estimate) -> Number:
    return Number(f"×{digits(estimate.value)}", interval(estimate))


def _percent(part: float) -> Number:
    return Number(f"{part:.1%}")


def tables(record: Record) -> list[Table]:
    """All numbers of a record but its conditions."""
    return [
        *(_measured(name, group) for name, group in scenarios(record.series).items()),
        *_tried(record),
        *_limits(record),
        *_starts(record),
        *_waterfalls(record),
        *(table for profile in record.profiles for table in _profile(profile)),
    ]


def changed(pairs: Sequence[Pair], caption: str) -> Table:
    """Times now beside those of another record."""
    rows: list[list[Cell]] = []
    for pair in pairs:
        now, before = pair.now, pair.before
        rows.append(
            [
                now.candidate,
                scenario(now),
                at(now.sizes),
                before.latency_ms.get("p50", before.mean_ms),
                now.latency_ms.get("p50", now.mean_ms),
                before.throughput,
                now.throughput,
                _ratio(pair.ratio),
                verdict(pair.ratio),
            ]
        )
    header = [
        "candidate",
        "scenario",
        "at",
        "p50 then, ms",
        "p50 now, ms",
        "samples/s then",
        "samples/s now",
    ]
    return Table(caption, [*header, "time, now to then", "verdict"], rows)


def _measured(name: str, group: Sequence[Series]) -> Table:
    dims = list(dict.fromkeys(dim for series in group for dim in series.sizes))
    constant = {
        dim: group[0].sizes[dim] for dim in dims if dim not in swept(group) and dim in group[0].sizes
    }
    columns = [dim for dim in dims if dim not in constant]
    percentiles = list(dict.fromkeys(p for series in group for p in series.latency_ms))
    rated = any(series.ratio is not None for series in group)
    remarked = any(_remarks(series) for series in group)
    rows: list[list[Cell]] = []
    for _, each in groups(group):
        for s in each:
            row: list[Cell] = [s.candidate, *(s.sizes.get(dim) for dim in columns)]
            row += [s.latency_ms.get(p) for p in percentiles]
            row += [s.mean_ms, s.throughput, s.samples, s.queries]
            if rated:
                row += [None if s.ratio is None else _ratio(s.ratio), s.verdict or ""]
            rows.append([*row, _remarks(s)] if remarked else row)
    header = ["candidate", *columns, *(f"{p}, ms" for p in percentiles), "mean, ms", "samples/s"]
    header += ["samples a query", "queries"]
    header += ["time to the first's", "verdict"] if rated else []
    header += ["remarks"] if remarked else []
    return Table(", ".join(filter(None, (name, at(constant)))), header, rows)


def _remarks(series: Series) -> str:
    rest = "" if series.stable else "had not come to rest"
    return ", ".join(filter(None, (rest, series.validity)))


def _tried(record: Record) -> Iterator[Table]:
    for name, group in groups([s for s in record.series if s.rates]):
        rows: list[list[Cell]] = [
            [s.candidate, rate.rate, rate.p50_ms, rate.p99_ms, "met" if rate.met else "broken"]
            for s in group
            for rate in s.rates
        ]
        yield Table(f"Rates tried, {name}", ["candidate", "samples/s", "p50, ms", "p99, ms", "bound"], rows)


def _limits(record: Record) -> Iterator[Table]:
    rows: list[list[Cell]] = []
    for s in record.series:
        if s.limit is not None:
            rows.append(
                [
                    *(s.candidate, scenario(s), at(s.sizes), s.limit.gflop, s.limit.megabytes),
                    s.limit.intensity,
                    s.limit.gflops,
                    *(s.limit.floor_ms, s.limit.bound, _percent(s.limit.fraction)),
                    ", ".join(s.limit.uncounted),
                ]
            )
    if rows:
        header = ["candidate", "scenario", "at", "GFLOP", "MB", "FLOP per byte", "GFLOP/s", "floor, ms"]
        yield Table("Limits, of a query", [*header, "bound", "reached", "not counted"], rows)


def _starts(record: Record) -> Iterator[Table]:
    rows: list[list[Cell]] = [
        [
            *(s.candidate, s.imported_ms, s.loaded_ms, s.first_answer_ms, s.steady_ms),
            Number(size(s.peak_memory_bytes)),
        ]
        for s in record.cold_starts
    ]
    if rows:
        header = ["candidate", "imported", "loaded", "first answer", "then, a query", "peak memory"]
        yield Table("Cold start, ms since the process began", header, rows)


def _waterfalls(record: Record) -> Iterator[Table]:
    for given in dict.fromkeys(waterfall.input for waterfall in record.waterfalls):
        found = [w for w in record.waterfalls if w.input == given]
        stages = list(dict.fromkeys(name for w in found for name in w.stages_ms))
        rows: list[list[Cell]] = [
            [w.candidate, *(w.stages_ms.get(name) for name in stages), w.rounds] for w in found
        ]
        yield Table(f"Where an answer's time goes, ms, {given}", ["candidate", *stages, "rounds"], rows)


def _profile(profile: Profile) -> Iterator[Table]:
    where = ", ".join(filter(None, (profile.candidate, at(profile.sizes))))
    for kind, shares in (("operator", profile.operators), ("module", profile.modules)):
        top = sorted(shares, key=lambda share: -share.ms)[:_MOST_SHARES]
        if top:
            rows: list[list[Cell]] = [[s.name or "(none)", s.ms, _percent(s.share), s.nodes] for s in top]
            more = "" if len(top) == len(shares) else f", the {len(top)} of {len(shares)} that take most"
            yield Table(f"Time by {kind}, {where}{more}", [kind, "ms", "share", "nodes"], rows)
