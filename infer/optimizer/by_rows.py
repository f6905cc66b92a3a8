"""Whether feeds of another size are answered sooner by something else than the best.

A search is for the rows that its feeds have. What wins with one row may lose with eight, and the other way
round: int8 repays its conversions with more rows, a library its calls, a second thread its wake-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from infer.feeds import batch_dim
from infer.measure.statistics import verdict
from infer.optimizer.gates import Contender
from infer.optimizer.outcome import OtherRows, Outcome, Settings, at_once, runtime_of
from infer.optimizer.timing import Choice, Timing
from infer.optimizer.trial import Trial
from infer.optimizer.verdict import Verdict

_MANY = 8
"""So many rows are looked at where the search is for one; where it is for more, one row is."""

WORTH = 0.9
"""What takes more than this part of the time is not worth a second graph in memory."""

_SLOWER, _PRICE = 0.02, 5
"""Feeds of both sizes in turn may take so much longer, or a fifth of what is gained with one size. Threads
that go on looking for work when a run is over keep cores from the other library: ONNX Runtime's for as long
as they spin, OpenVINO's for 15 ms."""


def other_rows(trial: Trial) -> int | None:
    """The rows to look at beside those that the search is for; None if there are no others, or none that
    matter: where files are to be small."""
    signature = trial.reference.signature
    dim, own = batch_dim(signature), trial.timing.rows
    other = 1 if own > 1 else _MANY
    if trial.options.objective == "size" or dim is None or not signature.allows(dim, other):
        return None
    return other


def rows_said(rows: int) -> str:
    """So many rows, in words; the name of the verdict about them, too."""
    return f"{rows} row{'s' * (rows > 1)}"


def faster_at(
    trial: Trial, start: Verdict, outcome: Outcome, rows: int, check_time: Callable[[], None]
) -> OtherRows | str:
    """What is surely faster than the best at so many rows, and from how many on, or below how many; or why
    there is nothing. `check_time` is called before each step, and may raise. Raises `InferError` if the
    reference or the best cannot be run so."""
    best = Choice(outcome.best or start, outcome.settings)
    timing, streams = trial.timing, best.settings.streams or 1

    def usual(found: Verdict) -> Settings:
        settings = replace(timing.usual, huge_pages=best.settings.huge_pages)
        return at_once(settings, streams, found.backend) if streams > 1 else settings

    leader = best
    for found in _candidates(trial, start, outcome):
        check_time()
        leader = _faster(timing, Choice(found, usual(found)), leader, rows)
    one = leader
    if trial.options.num_threads is None and trial.reference.plan.device == "cpu":
        one = replace(leader, settings=replace(usual(leader.found), num_threads=1))
        leader = _faster(timing, one, leader, rows)
    plan = _beside(trial, outcome, best, leader, rows, check_time)
    if plan and isinstance(plan, str) and one != leader:
        # a run on one thread keeps no core from the other library
        again = _beside(trial, outcome, best, one, rows, check_time)
        plan = plan if isinstance(again, str) else again
    return plan or f"nothing is surely faster than {best.found.name}, by enough"


def _beside(
    trial: Trial,
    outcome: Outcome,
    best: Choice,
    leader: Choice,
    rows: int,
    check_time: Callable[[], None],
) -> OtherRows | str:
    """The leader at so many rows as a plan beside the best's, or why not; "" if it is not faster by
    enough."""
    if leader == best:
        return ""
    check_time()
    timing = trial.timing
    ratio = timing.ratio(_contender(timing, leader), _contender(timing, best), rows)
    if verdict(ratio) != "faster" or ratio.value > WORTH:
        return ""
    found, larger = leader.found, rows > timing.rows
    few, many = (best, leader) if larger else (leader, best)
    rows_from = _first(timing, few, many, *sorted((rows, timing.rows)))
    check_time()
    mixed = timing.mixed_ratio(timing.by_rows(few, many, rows_from), _contender(timing, best), rows)
    lost, gained = mixed.value - 1, 1 - ratio.value
    if lost > _SLOWER and lost * _PRICE > gained:
        return f"{found.name} ×{ratio.value:.2f}, but with feeds of both sizes in turn ×{mixed.value:.2f}"
    return OtherRows(
        variant=next((name for name, each in outcome.variants.items() if each == found), found.name),
        found=found,
        change=found.changed or "as it is",
        settings=leader.settings,
        runtime=runtime_of(found.backend),
        rows=rows,
        ratio=ratio,
        rows_from=rows_from,
        larger=larger,
    )


def _candidates(trial: Trial, start: Verdict, outcome: Outcome) -> list[Verdict]:
    """All that answers within the budget and has a graph: what was kept, what approximates, and other
    backends as they are; of the passes, which build on each other, the last one kept."""
    found = [start, *outcome.variants.values()]
    for each in trial.workshop.verdicts:
        whole = not each.exact or each.name == each.backend
        if whole and each.within and each.graph is not None and each not in found:
            found.append(each)
    return found


def _faster(timing: Timing, choice: Choice, leader: Choice, rows: int) -> Choice:
    """The one of two that seems to be, at a glance."""
    if choice == leader:
        return leader
    ratio = timing.glance(_contender(timing, choice), _contender(timing, leader), rows)
    return choice if ratio.value < 1 else leader


def _first(timing: Timing, few: Choice, many: Choice, least: int, most: int) -> int:
    """From how many rows on `many` is the faster one: it is at `most`, and is not at `least`."""
    between = [2**power for power in range(1, most.bit_length()) if least < 2**power < most]
    while between:
        middle = len(between) // 2
        rows = between[middle]
        if timing.glance(_contender(timing, many), _contender(timing, few), rows).value < 1:
            most, between = rows, between[:middle]
        else:
            between = between[middle + 1 :]
    return most


def _contender(timing: Timing, choice: Choice) -> Contender:
    contender = timing.contender(choice.found, choice.settings)
    return replace(contender, name=f"{contender.name}, threads-{choice.settings.num_threads}")
