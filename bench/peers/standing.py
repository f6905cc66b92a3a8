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
_INT8 = tuple(peer.name for peer in PEERS if "int8" in peer.name)
_BFLOAT16 = ("openvino-bf16",)
_CLOSE = 0.999
"""The cosine of answers that a budget asks for where a family has no labels."""


@dataclass(frozen=True)
class _Column:
    """One of infer's candidates over the fastest of `others` whose cosine is at least `least`."""

    title: str
    ours: str
    others: tuple[str, ...]
    least: float = -1.0


_COLUMNS = (
    _Column("equal answers, over ONNX Runtime on the plain export", _EQUAL, (_PLAIN,)),
    _Column("equal answers, over the best in float32", _EQUAL, _FLOAT32),
    _Column("within the budget, over the best in float32", _BUDGET, _FLOAT32),
    _Column("within the budget, over OpenVINO in bfloat16", _BUDGET, _BFLOAT16),
    _Column(f"within the budget, over the best in int8 of cosine {_CLOSE}", _BUDGET, _INT8, _CLOSE),
    _Column("within the budget, over the best in int8 of any cosine", _BUDGET, _INT8),
)


@dataclass(frozen=True)
class _Cosine:
    """Of a candidate's answers to infer's."""

    mean: float = 1.0
    least: float = 1.0

    def __str__(self) -> str:
        return "" if self == _Cosine() else f"cos {self.mean:.4f}, min {self.least:.4f}"


@dataclass(frozen=True)
class Over:
    """Infer's candidate over another one: how many times as long the other takes."""

    other: str
    ratio: Estimate
    cosine: _Cosine


def standing(records: Mapping[str, Record]) -> Iterator[str]:
    """Markdown: a table for each scenario, a row for each family, and geometric means; then the families of
    which nothing optimized was measured."""
    scenarios = dict.fromkeys(series.scenario for record in records.values() for series in record.series)
    without = set(records)
    for scenario in scenarios:
        found = {
            name: [_over(record, scenario, column) for column in _COLUMNS]
            for name, record in records.items()
        }
        rows = {name: row for name, row in found.items() if any(row)}
        without -= set(rows)
        if not rows:
            continue
        yield f"How many times as fast, {scenario}"
        yield ""
        yield f"| family | {' | '.join(column.title for column in _COLUMNS)} | infer within the budget |"
        yield f"|---|{'---|' * (len(_COLUMNS) + 1)}"
        for name, row in rows.items():
            yield f"| {name} | {' | '.join(map(_told, row))} | {_cosine(records[name], _BUDGET)} |"
        means = [
            _mean([each.ratio.value for each in column if each])
            for column in zip(*rows.values(), strict=True)
        ]
        yield f"| geometric mean | {' | '.join(means)} | |"
        yield ""
    if without:
        yield f"Without {_EQUAL} or {_BUDGET} beside a peer: {', '.join(sorted(without))}"


def _over(record: Record, scenario: str, column: _Column) -> Over | None:
    """None where one of them was not measured."""
    series = {each.candidate: each for each in record.series if each.scenario == scenario}
    found = [
        series[name]
        for name in column.others
        if name in series and _cosine(record, name).mean >= column.least
    ]
    if column.ours not in series or not found:
        return None
    best = min(found, key=_time)
    ratio = paired_ratio(best.per_sample_ms, series[column.ours].per_sample_ms)
    return Over(best.candidate, ratio, _cosine(record, best.candidate))


def _time(series: Series) -> float:
    """Over the artifact's as it was converted, which is first in every record and has no ratio."""
    assert series.ratio is not None
    return series.ratio.value


def _cosine(record: Record, name: str) -> _Cosine:
    """As its entry tells it; answers of which it tells nothing are equal."""
    (described,) = [entry.described for entry in record.candidates if entry.name == name] or [""]
    found = re.search(r"cosine to infer (\S+) mean, (\S+) min", described)
    return _Cosine(float(found[1]), float(found[2])) if found else _Cosine()


def _told(over: Over | None) -> str:
    if over is None:
        return ""
    also = "" if over.other == _PLAIN else f" {over.other}"
    return f"×{cell(over.ratio)}{also}{f' ({over.cosine})' if str(over.cosine) else ''}"


def _mean(ratios: Sequence[float]) -> str:
    return f"×{np.exp(np.mean(np.log(ratios))):.3f} of {len(ratios)}" if ratios else ""
