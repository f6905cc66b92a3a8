"""Side by side, for people to read: a table for each comparison, and one of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.peers import OURS
from bench.peers.side_by_side import Compared
from infer.measure.labels import cell, digits
from infer.measure.record import Series
from infer.measure.scenarios import SCENARIOS


def lines(compared: Compared) -> Iterator[str]:
    """Markdown: what was measured of one comparison, and under what conditions."""
    conditions = compared.record.conditions
    yield f"### {compared.name}"
    yield ""
    yield f"{conditions.cpu}, threads {conditions.threads}, noise ±{conditions.noise:.0%}"
    entries = {entry.name: entry for entry in compared.record.candidates}
    for scenario in dict.fromkeys(series.scenario for series in compared.record.series):
        group = [series for series in compared.record.series if series.scenario == scenario]
        yield ""
        yield f"| {scenario} | p50 ms | p90 ms | p99 ms | samples/s | a query | time to infer's | answers |"
        yield "|---|---|---|---|---|---|---|---|"
        for series in group:
            cells = [cell(series.latency_ms.get(name)) for name in ("p50", "p90", "p99")]
            ratio = "" if series.ratio is None else f"×{cell(series.ratio)} {series.verdict}"
            answers = compared.answers.get(series.candidate, "")
            yield (
                f"| {series.candidate} | {' | '.join(cells)} | {cell(series.throughput)}"
                f" | {series.samples} | {ratio} | {answers} |"
            )
    yield ""
    for entry in entries.values():
        yield f"- {entry.name}: {entry.described}"
        if entry.excluded:
            yield f"  - excluded: {entry.excluded}"


def summary(all_compared: Sequence[Compared]) -> Iterator[str]:
    """Markdown: for each scenario, every comparison's ratios; above 1 the peer takes longer than infer."""
    names = dict.fromkeys(entry.name for compared in all_compared for entry in compared.record.candidates)
    peers = [name for name in names if name != OURS.name]
    for scenario in SCENARIOS:
        rows = [
            (c, {s.candidate: s for s in c.record.series if s.scenario == scenario}) for c in all_compared
        ]
        rows = [(compared, series) for compared, series in rows if series]
        if not rows:
            continue
        yield f"Time to infer's, {scenario}; ± is half the interval, «excl.» was excluded"
        yield ""
        yield f"| family | infer, {SCENARIOS[scenario]} | {' | '.join(peers)} |"
        yield f"|---|---|{'---|' * len(peers)}"
        for compared, series in rows:
            excluded = {entry.name for entry in compared.record.candidates if entry.excluded}
            cells = [_ratio(series.get(peer), peer in excluded, compared) for peer in peers]
            yield f"| {compared.name} | {_judged(series[OURS.name])} | {' | '.join(cells)} |"
        yield ""


def _judged(series: Series) -> str:
    metric = SCENARIOS[series.scenario]
    if metric == "throughput" or series.scenario == "server":
        return f"{digits(series.throughput.value)}/s"
    found = series.latency_ms.get(metric)
    return "-" if found is None else f"{digits(found.value)} ms"


def _ratio(series: Series | None, excluded: bool, compared: Compared) -> str:
    if excluded:
        return "excl."
    if series is None or series.ratio is None:
        return ""
    half = (series.ratio.high - series.ratio.low) / 2
    told = compared.answers.get(series.candidate, "equal")
    return f"×{series.ratio.value:.2f} ±{half:.2f}{'' if told == 'equal' else f' ({told})'}"
