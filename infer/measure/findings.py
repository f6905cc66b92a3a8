"""What a record allows to say, in sentences of HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infer.measure.labels import UNDECIDED, among, digits, interval, scenario
from infer.measure.pairs import Pair
from infer.measure.plots.plot import scenarios
from infer.measure.record import Record, Series
from infer.measure.scenarios import SCENARIOS
from infer.measure.statistics import Estimate, verdict
from infer.measure.tables import escaped

_NOISY = 0.1

_VERDICTS = {"faster": "faster than", "slower": "slower than", "alike": "as fast as"}

Judged = tuple[Series, Estimate, str]
"""A series with a ratio of times and the verdict on it."""


@dataclass(frozen=True)
class Finding:
    """Sentences in HTML about one thing, which `of` names as text."""

    of: str
    said: list[str]


def findings(series: Sequence[Series]) -> Iterator[Finding]:
    """A sentence for each candidate in each scenario: what it is judged by, and beside the first."""
    for name, group in scenarios(series).items():
        first = next((s.candidate for s in group if s.ratio is None), None)
        said = []
        for candidate in dict.fromkeys(s.candidate for s in group):
            own = [s for s in group if s.candidate == candidate]
            judged = [(s, s.ratio, s.verdict or verdict(s.ratio)) for s in own if s.ratio is not None]
            beside = f"; {_judged(judged, strong(first))}" if judged and first else ""
            said.append(f"{strong(candidate)} {_level(own)}{beside}.")
        yield Finding(_where(name, group), said)
    said = []
    for candidate in dict.fromkeys(s.candidate for s in series):
        limits = [s.limit for s in series if s.candidate == candidate and s.limit is not None]
        if limits:
            low, high = min(x.fraction for x in limits), max(x.fraction for x in limits)
            reached = f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"
            bounds = " or ".join(dict.fromkeys(limit.bound for limit in limits))
            said.append(f"{strong(candidate)} reached {reached}, bound by {escaped(bounds)}.")
    if said:
        yield Finding("of the machine's limit", said)


def compared(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """A sentence for each candidate in each scenario: now beside then."""
    ratios = {id(pair.now): pair.ratio for pair in pairs}
    for name, group in scenarios([pair.now for pair in pairs]).items():
        said = []
        for candidate in dict.fromkeys(s.candidate for s in group):
            own = [s for s in group if s.candidate == candidate]
            judged = [(s, ratios[id(s)], verdict(ratios[id(s)])) for s in own]
            said.append(f"{strong(candidate)}: {_judged(judged, 'then')}.")
        yield Finding(_where(name, group), said)


def reservations(record: Record) -> Iterator[str]:
    """What speaks against trusting the numbers."""
    if record.conditions.interrupted:
        yield "The measurement was interrupted: these are the rounds that were finished."
    if record.conditions.noise > _NOISY:
        yield f"The machine was noisy: the same work took ±{record.conditions.noise:.0%}."
    restless = dict.fromkeys(s.candidate for s in record.series if not s.stable)
    if restless:
        names = ", ".join(map(strong, restless))
        yield f"Warming up did not come to rest everywhere: {names}; the tables say where."
    for s in record.series:
        if s.validity is not None and s.validity != "VALID":
            yield f"{strong(s.candidate)}, {escaped(scenario(s))}: {escaped(s.validity)}."


def strong(name: str) -> str:
    """A name, set off."""
    return f"<strong>{escaped(name)}</strong>"


def _where(name: str, group: Sequence[Series]) -> str:
    return ", ".join(filter(None, (name, among(group))))


def _level(group: Sequence[Series]) -> str:
    """The metric that the scenario is judged by, at its point or between its ends."""
    metric = "throughput" if group[0].scenario == "server" else SCENARIOS.get(group[0].scenario, "p50")
    if metric != "throughput" and any(metric not in s.latency_ms for s in group):
        metric = "mean"
    found = [s.throughput if metric == "throughput" else s.latency_ms.get(metric, s.mean_ms) for s in group]
    unit = "samples/s" if metric == "throughput" else "ms"
    said = "answers" if metric == "throughput" else f"has a {metric} of"
    if len(found) == 1:
        return f"{said} {digits(found[0].value)} {unit} ({interval(found[0])})"
    values = [each.value for each in found]
    return f"{said} {digits(min(values))} to {digits(max(values))} {unit}"


def _judged(judged: Sequence[Judged], other: str) -> str:
    """Verdicts on ratios: in full for one, counted for several."""
    if len(judged) == 1:
        ((_, ratio, said),) = judged
        return f"{_verdict(said, other)}, ×{digits(ratio.value)} of the time ({interval(ratio)})"
    counts = Counter(said for _, _, said in judged)
    points = ", ".join(
        f"{_verdict(said, other)} at {f'{count} of' if count < len(judged) else 'all'} {len(judged)} points"
        for said, count in counts.most_common()
    )
    ends = dict.fromkeys(f"×{digits(end([ratio.value for _, ratio, _ in judged]))}" for end in (min, max))
    return f"{points}, {' to '.join(ends)} of the time"


def _verdict(said: str, other: str) -> str:
    words = _VERDICTS.get(said)
    return escaped(UNDECIDED) if words is None else f'<span class="{said}">{words}</span> {other}'
