"""Open sizes, as sympy expressions, are walked once in an export.

A size deep inside a model is a long expression of the open dims: each convolution or padding wraps the
one before it. Torch asks for the symbols of every expression again and again, and sympy whether it is a
number, and both walk the whole of it each time. That shows in deep nets that pad, such as MobileNetV2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sympy.core.basic import Basic
from sympy.core.expr import Expr

_ASKED = ((Basic, "free_symbols"), (Expr, "is_number"))
"""Where sympy walks an expression; classes that know better answer themselves, and stay as they are."""


@contextmanager
def sizes_walked_once() -> Iterator[None]:
    """Answers of sympy to these questions are remembered. Expressions never change, so they stay right."""
    plain = [(owner, name, vars(owner)[name]) for owner, name in _ASKED]
    try:
        for owner, name, original in plain:
            setattr(owner, name, _remembered(original))
        yield
    finally:
        for owner, name, original in plain:
            setattr(owner, name, original)


def _remembered(original: Any) -> property:
    answers: dict[Any, Any] = {}

    def ask(expression: Any) -> Any:
        if (answer := answers.get(expression)) is None:
            answer = answers[expression] = original.fget(expression)
        # a set is the caller's own, to change as it likes
        return answer.copy() if isinstance(answer, set) else answer

    return property(ask, doc=original.__doc__)
