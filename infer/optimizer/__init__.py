"""The optimizer: never wrong, never slower, and proved on this machine.

An artifact is rewritten pass by pass, and quantized where its budget allows that. Each attempt must pass
two gates: its answers (`gates.Judge`), and its time beside the best so far (`gates.time_ratio`). What
passes becomes a variant of the output, with its evidence, and the plan for machines like this one.

Reading order: `search`, `outcome`, `trial`, `gates`, `timing`, `by_rows`, `targets`, `passes/`,
`quantization/`, `material`.
"""

from __future__ import annotations

from infer.optimizer.budget import Budget, parse_budget
from infer.optimizer.outcome import (
    INTERRUPTED,
    OBJECTIVES,
    OUT_OF_TIME,
    Optimized,
    OptimizeOptions,
    OtherRows,
)
from infer.optimizer.search import optimize
from infer.optimizer.verdict import Verdict

__all__ = [
    "INTERRUPTED",
    "OBJECTIVES",
    "OUT_OF_TIME",
    "Budget",
    "OptimizeOptions",
    "Optimized",
    "OtherRows",
    "Verdict",
    "optimize",
    "parse_budget",
]
