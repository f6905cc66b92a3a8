"""How what `infer optimize` makes stands beside the best of its peers, from records that `compare` wrote.

Ratios are paired round by round, as both were measured in turns: the other's time over infer's, so that
infer is faster above 1. A best one is the fastest of its kind in the same record and scenario.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.peers import PEERS
from infer.measure.labels import cell
from infer.measure.record import Record, Series
from infer.measure.statistics import Estimate, paired_ratio

_EQUAL, _BUDGET = "infer-optimized", "infer-budget"
_PLAIN = "onnxruntime"
_FLOAT32 = tuple(peer.name for peer in PEERS if peer.exact)
_INT8 = tuple(peer.name for peer in PEERS if not peer.exact and "optimization" not in peer.settings)

_COLUMNS = (
    ("equal answers, over ONNX Runtime on the plain export", _EQUAL, (_PLAIN,)),
    ("equal answers, over the best in float32", _EQUAL, _FLOAT32),
    ("within the budget, over the best in float32", _BUDGET, _FLOAT32),
    ("within the budget, over the best in int8", _BUDGET, _INT8),
)


@dataclass(frozen=True)
class Over:
    """Infer's candidate over another one: how many times as long the other takes."""

    other: str
    ratio: Estimate
    cosine: str  # of the other's answers; empty for equal ones


def standing(records: Mapping[str, Record]) -> Iterator[str]:
    """Markdown: a table for each scenario, a row for each family, and geometric means."""
    scenarios = dict.fromkeys(series.scenario for record in records.values() for series in record.series)
    for scenario in scenarios:
        rows = {
            name: [_over(record, scenario, *of[1:]) for of in _COLUMNS] for name, record in records.items()
        }
        yield f"How many times as fast, {scenario}"
        yield ""
        yield f"| family | {' | '.join(title for title, *_ in _COLUMNS)} | infer within the budget |"
        yield f"|---|{'---|' * (len(_COLUMNS) + 1)}"
        for name, row in rows.items():
            yield f"| {name} | {' | '.join(map(_told, row))} | {_cosine(records[name], _BUDGET)} |"
        means = [
            _mean([each.ratio.value for each in column if each])
            for column in zip(*rows.values(), strict=True)
        ]
        yield f"| geometric mean | {' | '.join(means)} | |"
        yield ""


def _over(record: Record, scenario: str, ours: str, others: Sequence[str]) -> Over | None:
    """None where one of them was not measured."""
    series = {each.candidate: each for each in record.series if each.scenario == scenario}
    found = [series[name] for name in others if name in series]
    if ours not in series or not found:
        return None
    best = min(found, key=_time)
    ratio = paired_ratio(_per_sample(best), _per_sample(series[ours]))
    return Over(best.candidate, ratio, _cosine(record, best.candidate))


def _time(series: Series) -> float:
    """Over the artifact's as it was converted, which is first in every record and has no ratio."""
    assert series.ratio is not None
    return series.ratio.value


def _per_sample(series: Series) -> list[float]:
    return [median / series.samples for median in series.medians_ms]


def _cosine(record: Record, name: str) -> str:
    """As its entry tells it; empty if its answers are equal."""
    (described,) = [entry.described for entry in record.candidates if entry.name == name] or [""]
    found = re.search(r"cosine to infer (\S+) mean, (\S+) min", described)
    return f"cos {found[1]}, min {found[2]}" if found else ""


def _told(over: Over | None) -> str:
    if over is None:
        return ""
    also = "" if over.other == _PLAIN else f" {over.other}"
    return f"×{cell(over.ratio)}{also}{f' ({over.cosine})' if over.cosine else ''}"


def _mean(ratios: Sequence[float]) -> str:
    return f"×{np.exp(np.mean(np.log(ratios))):.3f} of {len(ratios)}" if ratios else ""
