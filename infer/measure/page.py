"""Records as one HTML page that needs nothing else: no script, no font, no request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files

from infer.measure.findings import Finding, compared, findings, reservations, strong
from infer.measure.labels import digits
from infer.measure.pairs import pairs
from infer.measure.plots import Order, Plot, changes, plots
from infer.measure.plots.drawing import svg, swatch
from infer.measure.record import Conditions, Record
from infer.measure.tables import Cell, Table, changed, escaped, tables
from infer.wording import size

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_WORDS = (
    "Intervals hold with 95 % confidence. A ratio is called faster or slower if its whole interval lies on"
    " one side of 1, alike if it is within 2 %, and is otherwise undecided."
)


def page(records: Sequence[Record], names: Sequence[str]) -> str:
    """The document for records, which are called `names`; those after the first are compared with it."""
    order = _order(records)
    sheets = _Sheets(order)
    several = len(records) > 1
    head = f"infer bench: {_listed(list(order)) or 'no candidates'}"
    parts = [f"<header>\n<h1>{escaped(head)}</h1>"]
    parts += [
        f"<p>{escaped(_summary(record, name if several else None))}</p>"
        for record, name in zip(records, names, strict=True)
    ]
    parts.append("</header>\n<main>")
    for record, name in list(zip(records, names, strict=True))[1:]:
        parts += sheets.comparison(record, name, records[0], names[0])
    for record, name in zip(records, names, strict=True):
        if several:
            parts.append(f"<h2>{escaped(name)}</h2>")
        parts += sheets.record(record, "h3" if several else "h2")
    parts.append("<h2>Conditions</h2>")
    parts.append(_conditions(records, names))
    parts.append(f"</main>\n<footer>{escaped(_WORDS)}</footer>")
    body = "\n".join(parts)
    style = files("infer.measure").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(head)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _order(records: Sequence[Record]) -> Order:
    """Every candidate of every record, with its place."""
    found: dict[str, None] = {}
    for r in records:
        found |= dict.fromkeys(entry.name for entry in r.candidates if entry.excluded is None)
        for part in (r.series, r.cold_starts, r.profiles, r.waterfalls):
            found |= dict.fromkeys(each.candidate for each in part)
    return {name: i for i, name in enumerate(found)}


def _listed(names: Sequence[str], most: int = 3) -> str:
    """Names as a sentence has them."""
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most else list(names)
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def _date(conditions: Conditions) -> str:
    return conditions.created.replace("T", " ").replace("+00:00", " UTC")


def _summary(record: Record, name: str | None) -> str:
    c = record.conditions
    said = f"{c.cpu}, threads {c.threads}, {c.harness} harness, noise ±{c.noise:.1%}, {_date(c)}"
    return said if name is None else f"{name}: {said}"


class _Sheets:
    """Sections of one page; counts the drawings, whose ids must not meet."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._drawn = 0

    def record(self, record: Record, level: str) -> Iterator[str]:
        """What was found, what was left out, plots, tables."""
        yield f"<{level}>Findings</{level}>"
        yield _found(findings(record.series)) if record.series else "<p>Nothing was measured.</p>"
        if doubts := list(reservations(record)):
            yield f"<{level}>Reservations</{level}>"
            yield _list(doubts)
        excluded = [entry for entry in record.candidates if entry.excluded is not None]
        if excluded:
            yield f"<{level}>Excluded</{level}>"
            yield _list(f"{strong(e.name)}: {escaped(e.excluded)}" for e in excluded)
        for heading, found in plots(record, self._order).items():
            yield f"<{level}>{escaped(heading)}</{level}>"
            yield self._plots(found)
        yield f"<{level}>Numbers</{level}>"
        rows: list[list[Cell]] = [
            [entry.name, "excluded" if entry.excluded is not None else "measured", entry.described]
            for entry in record.candidates
        ]
        yield _tables([Table("Candidates", ["candidate", "", "what it is"], rows), *tables(record)])

    def comparison(self, now: Record, name: str, before: Record, other: str) -> Iterator[str]:
        """What changed since another record."""
        yield f"<h2>{escaped(name)} against {escaped(other)}</h2>"
        found = pairs(now, before)
        if not found:
            yield "<p>They have no candidate, scenario and sizes in common.</p>"
            return
        yield _found(compared(found))
        if now.conditions.cpu != before.conditions.cpu:
            yield "<p>They come from different machines: ratios say what moved, not why.</p>"
        yield self._plots(changes(found, self._order))
        yield _tables([changed(found, "Now beside then, measured apart")])

    def _plots(self, found: Sequence[Plot]) -> str:
        return f'<div class="plots">\n{"".join(map(self._figure, found))}</div>'

    def _figure(self, plot: Plot) -> str:
        self._drawn += 1
        prefix = f"p{self._drawn}-"
        keys = "".join(
            f"<li>{swatch(key.look, f'{prefix}k{i}-', line=key.line)}{escaped(key.name)}</li>"
            for i, key in enumerate(plot.keys)
        )
        caption = (f'<ul class="keys">{keys}</ul>' if keys else "") + escaped(plot.note)
        return (
            f'<figure>\n<p class="title">{escaped(plot.title)}</p>\n'
            f"{svg(plot.draw, plot.label, prefix, plot.height)}\n"
            + (f"<figcaption>{caption}</figcaption>\n" if caption else "")
            + "</figure>\n"
        )


def _found(found: Iterable[Finding]) -> str:
    return _list(f"{escaped(each.of)}\n{_list(each.said)}" for each in found)


def _list(sentences: Iterable[str]) -> str:
    return "<ul>\n" + "".join(f"<li>{sentence}</li>\n" for sentence in sentences) + "</ul>"


def _tables(found: Iterable[Table]) -> str:
    return f'<div class="tables">\n{"".join(table.html() for table in found)}</div>'


def _conditions(records: Sequence[Record], names: Sequence[str]) -> str:
    """A column for each record; what differs between them is marked."""
    columns = [dict(_stated(record)) for record in records]
    labels = dict.fromkeys(label for column in columns for label in column)
    several = len(records) > 1
    rows: list[list[Cell]] = []
    for label in labels:
        values = [column.get(label, "–") for column in columns]
        rows.append([label, *values, *(["differs" if len(set(values)) > 1 else ""] if several else [])])
    header = ["", *(names if several else ["value"]), *([""] if several else [])]
    return _tables([Table("Where, when and how", header, rows)])


def _stated(record: Record) -> Iterator[tuple[str, str]]:
    c = record.conditions
    yield "measured", _date(c)
    yield "harness", c.harness
    yield "seconds for each scenario at each point", f"{c.seconds:g}"
    yield "noise of the machine", f"±{c.noise:.1%}"
    yield "threads", str(c.threads)
    yield "CPU", c.cpu
    yield "instruction sets", ", ".join(c.isa)
    yield "cores", str(c.cores)
    yield "memory", size(c.memory_bytes)
    yield "system", c.system
    for peaks in c.peaks:
        cache = f", last cache {size(peaks.cache_bytes)}" if peaks.cache_bytes else ""
        yield (
            f"peak with threads {peaks.threads}",
            f"{digits(peaks.gflops)} GFLOP/s, {digits(peaks.gigabytes_per_s)} GB/s{cache}",
        )
    yield from c.versions.items()
