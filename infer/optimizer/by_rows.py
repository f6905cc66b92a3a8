"""Whether feeds of another size are answered sooner by something else than the best.

A search is for the rows that its feeds have. What wins with one row may lose with eight, and the other way
round: int8 repays its conversions with more rows, a library its calls, a second thread its wake-up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from infer.feeds import batch_dim
from infer.measure.statistics import verdict
from infer.optimizer.gates import Contender
from infer.optimizer.outcome import OtherRows, Outcome, Settings, runtime_of
from infer.optimizer.trial import Trial
from infer.optimizer.verdict import Verdict

_MANY = 8
"""So many rows are looked at where the search is for one; where it is for more, one row is."""

_WORTH = 0.9
"""What takes more than this part of the time is not worth a second graph in memory."""


@dataclass(frozen=True)
class _Choice:
    """A verdict's graph, run with these settings."""

    found: Verdict
    settings: Settings


def other_rows(trial: Trial) -> int | None:
    """The rows to look at beside those that the search is for; None if there are no others."""
    signature = trial.reference.signature
    dim, own = batch_dim(signature), trial.rows
    other = 1 if own > 1 else _MANY
    if dim is None or (dim in signature.limits and other not in signature.limits[dim]):
        return None
    return other


def faster_at(trial: Trial, start: Verdict, outcome: Outcome, rows: int) -> OtherRows | None:
    """What is surely faster than the best at so many rows, and from how many on, or below how many."""
    best = _Choice(outcome.best or start, outcome.settings)
    usual = Settings(trial.reference.plan.num_threads)
    dropped = (v for v in trial.workshop.verdicts if v.within and not v.kept and v.graph is not None)
    leader = best
    for found in (start, *outcome.variants.values(), *dropped):
        leader = _faster(trial, _Choice(found, usual), leader, rows)
    if trial.options.num_threads is None and trial.reference.plan.device == "cpu":
        leader = _faster(trial, replace(leader, settings=Settings(1)), leader, rows)
    if leader == best:
        return None
    ratio = trial.ratio(_contender(trial, leader), _contender(trial, best), rows)
    if verdict(ratio) != "faster" or ratio.value > _WORTH:
        return None
    found, larger = leader.found, rows > trial.rows
    return OtherRows(
        variant=next((name for name, each in outcome.variants.items() if each == found), found.name),
        found=found,
        change=found.changed or "as it is",
        settings=leader.settings,
        runtime=runtime_of(found.backend),
        rows=rows,
        ratio=ratio,
        rows_from=_first(trial, best, leader, trial.rows, rows)
        if larger
        else _first(trial, leader, best, rows, trial.rows),
        larger=larger,
    )


def _faster(trial: Trial, choice: _Choice, leader: _Choice, rows: int) -> _Choice:
    """The one of two that seems to be, at a glance."""
    if choice == leader:
        return leader
    ratio = trial.glance(_contender(trial, choice), _contender(trial, leader), rows)
    return choice if ratio.value < 1 else leader


def _first(trial: Trial, smaller: _Choice, larger: _Choice, few: int, many: int) -> int:
    """From how many rows on `larger` is the faster one: it is at `many`, and is not at `few`."""
    between = [2**power for power in range(1, many.bit_length()) if few < 2**power < many]
    while between:
        middle = len(between) // 2
        rows = between[middle]
        if trial.glance(_contender(trial, larger), _contender(trial, smaller), rows).value < 1:
            many, between = rows, between[:middle]
        else:
            between = between[middle + 1 :]
    return many


def _contender(trial: Trial, choice: _Choice) -> Contender:
    contender = trial.contender(choice.found, choice.settings)
    return replace(contender, name=f"{contender.name}, threads-{choice.settings.num_threads}")
