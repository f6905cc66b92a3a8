"""What became of each thing that was tried."""

from __future__ import annotations

from dataclasses import dataclass, field

from infer.measure.statistics import Estimate

INT8_PRODUCTS = "int8 ("
"""How the precision of what multiplies integers begins; what only stores weights so has others."""


@dataclass(frozen=True)
class Verdict:
    """One pass, recipe, backend or number of threads.

    Attributes:
        why: in one sentence.
        precision, exact: of its graph, and whether that keeps the numbers.
        backend: what runs it.
        compute_dtype: what it computes in where the graph has float32, if that is another.
        found, rewritten: how often its pattern was found in the graph, and rewritten.
        declined: why it was not elsewhere → how often.
        figures: how near its answers are, see `infer.optimizer.budget`; empty if it was not judged.
        ratio: its time over that of `against`; None if it was not timed.
        neighbours: how far an answer moves with its neighbours in a batch; None if that was not measured.
        graph: its file, if it has one.
        within: whether its answers are within the budget.
        broken: whether it was dropped because of the budget.
    """

    name: str
    kept: bool
    why: str
    precision: str = ""
    exact: bool = True
    backend: str = ""
    compute_dtype: str | None = None
    found: int = 0
    rewritten: int = 0
    declined: dict[str, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    ratio: Estimate | None = None
    against: str = ""
    neighbours: float | None = None
    graph: str | None = None
    size_bytes: int = 0
    within: bool = False
    broken: bool = False

    @property
    def has_int8_products(self) -> bool:
        """Whether it multiplies integers, more than to store weights or tables so."""
        return self.precision.startswith(INT8_PRODUCTS)

    @property
    def changed(self) -> str:
        """What it did to the graph, such as "12 of 12", with the reasons where it did not; "" if nothing of
        the kind is there."""
        if not self.found:
            return ""
        said = f"{self.rewritten} of {self.found}"
        return f"{said} ({self.reasons})" if self.declined else said

    @property
    def reasons(self) -> str:
        """Why it did not change all that it found, the most frequent first."""
        ordered = sorted(self.declined.items(), key=lambda item: -item[1])
        return "; ".join(f"{count}: {reason}" for reason, count in ordered)
