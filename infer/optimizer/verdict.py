"""What became of each thing that was tried."""

from __future__ import annotations

from dataclasses import dataclass, field

from infer.measure.statistics import Estimate


@dataclass(frozen=True)
class Verdict:
    """One pass or variant.

    Attributes:
        changed: what it did to the graph, such as "12 of 12".
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
    figures: dict[str, float] = field(default_factory=dict)
    ratio: Estimate | None = None
    against: str = ""
    neighbours: float = 0.0
    graph: str | None = None
    size_bytes: int = 0
    broken: bool = False
