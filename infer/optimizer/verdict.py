"""What became of each thing that was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from infer.measure.statistics import Estimate


@dataclass(frozen=True)
class Verdict:
    """One pass or variant.

    Attributes:
        changed: what it did to the graph, such as "12 of 12", with the reasons where it did not.
        found, rewritten: these numbers.
        figures: how near its answers are, see `infer.optimizer.budget`; empty if it was not judged.
        ratio: its time over that of `against`; None if it was not timed.
        neighbours: how far an answer moves with its neighbours in a batch.
        why: in one sentence.
        broken: whether it was dropped because of the budget.
        graph: its file, if it has one.
    """

    name: str
    kept: bool
    why: str
    changed: str = ""
    found: int = 0
    rewritten: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    ratio: Estimate | None = None
    against: str = ""
    neighbours: float = 0.0
    graph: str | None = None
    size_bytes: int = 0
    broken: bool = False


def shortfalls(
    verdicts: Sequence[Verdict], census: Mapping[str, int], kinds: Mapping[str, str]
) -> list[str]:
    """The fusion contract: what the original does more often than passes rewrote, a sentence each.

    `kinds` has for some passes what they must rewrite all of, as `census` counts it. Without a census, such
    as for a plain graph, nothing can be said.
    """
    found = []
    for verdict in verdicts:
        expected = census.get(kinds.get(verdict.name, ""), 0)
        if verdict.rewritten >= expected:
            continue
        said = f"{verdict.name}: the original does it {expected} times, {verdict.rewritten} were rewritten"
        if unseen := expected - verdict.found:
            said += f"; {unseen} were not recognized in the graph"
        _, _, reasons = verdict.changed.partition(" (")
        if reasons:
            said += f"; {reasons.removesuffix(')')}"
        found.append(said)
    return found
