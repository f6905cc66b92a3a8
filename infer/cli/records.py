"""What people see of measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from infer.cli.output import heading
from infer.drafts import file_draft
from infer.measure.gate import Change
from infer.measure.labels import at, cell, groups
from infer.measure.pairs import pairs
from infer.measure.record import Record, Series
from infer.measure.scenarios import SCENARIOS
from infer.measure.statistics import verdict
from infer.wording import shown, size

_MOST_SHARES = 12


def show_record(record: Record) -> None:
    """Conditions, candidates, and a table for each scenario at each point."""
    conditions = record.conditions
    heading(
        f"{conditions.cpu}, threads {conditions.threads}, noise ±{conditions.noise:.0%},"
        f" asked by {conditions.harness}"
    )
    for peaks in conditions.peaks:
        click.echo(
            f"  the machine, {peaks.threads} threads: {peaks.gflops:.0f} GFLOP/s in float32 products,"
            f" {peaks.gigabytes_per_s:.0f} GB/s read from memory"
        )
    for entry in record.candidates:
        left_out = f"; left out: {entry.excluded}" if entry.excluded else ""
        click.echo(f"  {shown(entry.name)}: {shown(entry.described + left_out)}")
    for each in record.exclusions:
        click.echo(f"  {shown(each.candidate)} was left out at {at(each.sizes)}: {shown(each.reason)}")
    for key, group in groups(record.series):
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
    for profile in record.profiles:
        for what, shares in (("operator", profile.operators), ("module", profile.modules)):
            if shares:
                click.echo()
                heading(f"{profile.candidate}, time by {what}")
                largest = sorted(shares, key=lambda share: -share.ms)[:_MOST_SHARES]
                rows = [[s.name, f"{s.ms:.3g}", f"{s.share:.1%}", str(s.nodes)] for s in largest]
                _table(["", "ms", "of all", "nodes"], rows)
    for fall in record.waterfalls:
        click.echo()
        heading(f"{fall.candidate}, time of one answer, ms")
        _table(list(fall.stages_ms), [[f"{ms:.3g}" for ms in fall.stages_ms.values()]])
    for series in record.series:
        if series.validity not in (None, "VALID"):
            said = f"{series.candidate} in {series.scenario}: {series.validity}"
            click.echo(f"\nLoadGen on {shown(said)}")
    if any(not series.stable for series in record.series):
        click.echo("\nsome candidates had not come to rest after 3 s of warming up; see `stable` in --json")
    if conditions.interrupted:
        click.echo("\ninterrupted: these are the rounds that were finished")


def _show_series(series: Sequence[Series]) -> None:
    judged = SCENARIOS.get(series[0].scenario)
    columns = [name for name in ("p50", "p90", "p99") if any(name in s.latency_ms for s in series)]
    if judged == "throughput" and "p99" in columns:
        columns.remove("p99")
    limited = any(each.limit for each in series)
    rows = []
    for each in series:
        cells = [cell(each.latency_ms.get(name)) for name in columns]
        ratio = "" if each.ratio is None else f"×{cell(each.ratio)} {each.verdict}"
        waiting = [_waiting(each)] if each.rates else []
        cells += [*waiting, cell(each.throughput), str(each.samples)]
        rows.append([each.candidate, *cells, *([_limit(each)] if limited else []), ratio])
    waiting = ["of it queued"] if series[0].rates else []
    header = ["", *(f"{name} ms" for name in columns), *waiting, "samples/s", "a query"]
    _table([*header, *(["of the limit"] if limited else []), "time to the first's"], rows)


def _limit(series: Series) -> str:
    """How much of the machine's limit a query reached, and which of its two limits that is."""
    if series.limit is None:
        return "-"
    uncounted = f", without {', '.join(series.limit.uncounted)}" if series.limit.uncounted else ""
    return f"{series.limit.fraction:.0%} {series.limit.bound}{uncounted}"


def _waiting(series: Series) -> str:
    """How much of a query's time, on average, was spent waiting for others at the rate that was reached."""
    reached = next(rate for rate in series.rates if rate.rate == series.throughput.value)
    return f"{reached.queued_ms / series.mean_ms.value:.0%}"


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
    """Times now over those of another record, point by point."""
    rows = []
    for pair in pairs(now, before):
        found, series = pair.ratio, pair.now
        rows.append(
            [series.candidate, series.scenario, at(series.sizes), f"×{cell(found)}", verdict(found)]
        )
    click.echo()
    heading(f"against {before.conditions.created}, measured apart")
    if not rows:
        click.echo("  they have no candidate, scenario and sizes in common")
        return
    _table(["", "scenario", "at", "time, now to then", ""], rows)
    if now.conditions.cpu != before.conditions.cpu:
        click.echo(f"  another machine: {shown(before.conditions.cpu)}")


PageWriter = Callable[[Sequence[Record], Sequence[str]], None]
"""Writes a page of records and their names."""


def page_writer(path: Path) -> PageWriter:
    """What writes records as a page to `path`, whole or not at all.

    To be made before anything is measured, because it raises `MissingPackageError` without matplotlib.
    """
    from infer.measure.page import page

    def write(records: Sequence[Record], names: Sequence[str]) -> None:
        with file_draft(path) as draft:
            draft.write_text(page(records, names), encoding="utf-8")

    return write


def show_gate(found: Sequence[Change]) -> None:
    """A line for each condition at each point."""
    for change in found:
        where = ", ".join(filter(None, [change.scenario, at(change.sizes)]))
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
