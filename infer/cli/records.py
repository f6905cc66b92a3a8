"""What people see of measurements."""

from __future__ import annotations

from collections.abc import Sequence

import click

from infer.cli.output import heading
from infer.measure.gate import Change
from infer.measure.record import Record, Series
from infer.measure.scenarios import SCENARIOS
from infer.measure.statistics import Estimate, unpaired_ratio, verdict
from infer.wording import shown, size

_UNDECIDED = "too noisy to say; measure for longer with --seconds"


def show_record(record: Record) -> None:
    """Conditions, candidates, and a table for each scenario at each point."""
    conditions = record.conditions
    heading(f"{conditions.cpu}, threads {conditions.threads}, noise ±{conditions.noise:.0%}")
    for entry in record.candidates:
        click.echo(f"  {shown(entry.name)}: {shown(entry.excluded or entry.described)}")
    for key, group in _groups(record.series):
        click.echo()
        heading(key)
        _show_series(group)
    if record.cold_starts:
        click.echo()
        heading("cold start, ms since the process began")
        _table(
            ["", "imported", "loaded", "first answer", "then", "peak memory"],
            [
                [
                    s.candidate,
                    *(f"{x:.0f}" for x in (s.imported_ms, s.loaded_ms, s.first_answer_ms)),
                    f"{s.steady_ms:.3g}",
                    size(s.peak_memory_bytes),
                ]
                for s in record.cold_starts
            ],
        )
    if any(not series.stable for series in record.series):
        click.echo("\nsome candidates had not come to rest after 3 s of warming up; see `stable` in --json")
    if conditions.interrupted:
        click.echo("\ninterrupted: these are the rounds that were finished")


def _groups(series: Sequence[Series]) -> list[tuple[str, list[Series]]]:
    found: dict[str, list[Series]] = {}
    for each in series:
        where = ", ".join(f"{dim} {n}" for dim, n in each.sizes.items())
        bound = f", p99 within {each.bound_ms:g} ms" if each.bound_ms is not None else ""
        found.setdefault(f"{each.scenario}{bound}{f': {where}' if where else ''}", []).append(each)
    return list(found.items())


def _show_series(series: Sequence[Series]) -> None:
    judged = SCENARIOS[series[0].scenario]
    columns = [name for name in ("p50", "p90", "p99") if any(name in s.latency_ms for s in series)]
    if judged == "throughput" and "p99" in columns:
        columns.remove("p99")
    rows = []
    for each in series:
        cells = [_cell(each.latency_ms.get(name)) for name in columns]
        ratio = "" if each.ratio is None else f"×{_cell(each.ratio)} {each.verdict}"
        rows.append([each.candidate, *cells, _cell(each.throughput), str(each.samples), ratio])
    _table(["", *(f"{name} ms" for name in columns), "samples/s", "a query", "time to the first's"], rows)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{_digits(estimate.value)} ({_digits(estimate.low)}–{_digits(estimate.high)})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = [list(header), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    for row in table:
        click.echo(("  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True))).rstrip())


def show_records(records: Sequence[Record], names: Sequence[str]) -> None:
    """Each record, and how those after the first differ from it."""
    for i, (record, name) in enumerate(zip(records, names, strict=True)):
        heading(f"{name}, {record.conditions.created}")
        show_record(record)
        click.echo()
        if i:
            show_change(record, records[0])


def show_change(now: Record, before: Record) -> None:
    """Medians now over those of another record, point by point."""
    old = {(s.candidate, s.scenario, tuple(sorted(s.sizes.items()))): s for s in before.series}
    rows = []
    for series in now.series:
        other = old.get((series.candidate, series.scenario, tuple(sorted(series.sizes.items()))))
        if other is not None:
            ratio = unpaired_ratio(series.medians_ms, other.medians_ms)
            where = ", ".join(f"{dim} {n}" for dim, n in series.sizes.items())
            rows.append([series.candidate, series.scenario, where, f"×{_cell(ratio)}", verdict(ratio)])
    click.echo()
    heading(f"against {before.conditions.created}, measured apart")
    if not rows:
        click.echo("  they have no candidate, scenario and sizes in common")
        return
    _table(["", "scenario", "at", "median, now to then", ""], rows)
    if now.conditions.cpu != before.conditions.cpu:
        click.echo(f"  another machine: {shown(before.conditions.cpu)}")


def show_gate(found: Sequence[Change]) -> None:
    """A line for each condition at each point."""
    for change in found:
        where = ", ".join([change.scenario, *(f"{dim} {n}" for dim, n in change.sizes.items())])
        said = (
            "fails"
            if change.failed
            else "cannot be told from it: measure for longer"
            if change.undecided
            else "holds"
        )
        low, high = 100 * (change.ratio.low - 1), 100 * (change.ratio.high - 1)
        value = 100 * (change.ratio.value - 1)
        click.echo(
            f"{change.condition}: {shown(change.candidate)}, {where}: {value:+.1f}%"
            f" ({low:+.1f} to {high:+.1f}), {said}"
        )
