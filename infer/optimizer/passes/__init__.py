"""Passes rewrite a graph for one kind of backend: fewer nodes, or nodes that are faster there.

A pass is a function from a model to a `PassResult`, which changes the model in place. It says what it does,
why that is faster, what it does to the numbers, and where the operator is described; where it finds its
pattern but cannot rewrite it, it says why. Whether it stays is decided by measurement, not here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir


@dataclass
class PassResult:
    """How often a pattern was found and rewritten, and why it was not elsewhere."""

    found: int = 0
    rewritten: int = 0
    declined: Counter[str] = field(default_factory=Counter)

    def decline(self, reason: str) -> None:
        """Note that one occurrence stays as it is."""
        self.declined[reason] += 1

    def __add__(self, other: PassResult) -> PassResult:
        """Of two patterns, in one rewrite."""
        declined = self.declined + other.declined
        return PassResult(self.found + other.found, self.rewritten + other.rewritten, declined)

    def __str__(self) -> str:
        said = f"{self.rewritten} of {self.found}"
        if self.declined:
            said += f" ({'; '.join(f'{count}: {reason}' for reason, count in self.declined.most_common())})"
        return said


Pass = Callable[[ir.Model], PassResult]
