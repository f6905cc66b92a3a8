"""Expressions of open sizes are walked once in an export, and answer the same."""

from __future__ import annotations

import sympy
from hypothesis import given
from hypothesis import strategies as st
from sympy.core.basic import Basic
from sympy.core.expr import Expr

from converters.sizes import sizes_walked_once

DIMS = [sympy.Symbol(name, integer=True, positive=True) for name in ("height", "width")]
LEAVES = st.sampled_from(DIMS) | st.integers(-3, 7).map(sympy.Integer)


def wrapped(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    """What layers make of sizes."""
    return st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, st.integers(2, 5)).map(lambda pair: sympy.floor(pair[0] / pair[1])),
        st.tuples(inner, inner).map(lambda pair: sympy.Max(*pair)),
    )


@given(st.lists(st.recursive(LEAVES, wrapped, max_leaves=12), min_size=1, max_size=4))
def test_sizes_answer_the_same(expressions: list[Expr]) -> None:
    """Symbols, and whether it is a number, of random expressions: asked once, and again."""
    expected = [(e.free_symbols, e.is_number) for e in expressions]
    with sizes_walked_once():
        for _ in range(2):
            assert [(e.free_symbols, e.is_number) for e in expressions] == expected


def test_a_set_of_symbols_is_the_callers_own() -> None:
    """Changing the answer does not change the next one."""
    with sizes_walked_once():
        (DIMS[0] + 1).free_symbols.clear()
        assert (DIMS[0] + 1).free_symbols == {DIMS[0]}


def test_an_expression_is_walked_once() -> None:
    """Twenty sizes, each made of the one before, ask for fewer answers than twice their parts; sympy itself
    starts anew at each of them. Afterwards sympy is as it was."""
    plain = vars(Basic)["free_symbols"], vars(Expr)["is_number"]
    size, sizes = DIMS[0], []
    for _ in range(20):
        size = sympy.floor((size + DIMS[1]) / 2)
        sizes.append(size)
    parts = {part for s in sizes for part in sympy.preorder_traversal(s)}
    walked = 0

    def counted(expression: Basic) -> set[Basic]:
        nonlocal walked
        walked += 1
        found: set[Basic] = plain[0].fget(expression)
        return found

    def asked() -> int:
        nonlocal walked
        walked = 0
        for s in sizes:
            assert s.free_symbols == set(DIMS)
        return walked

    Basic.free_symbols = property(counted)  # type: ignore[assignment, method-assign]
    try:
        alone = asked()
        with sizes_walked_once():
            once = asked()
    finally:
        Basic.free_symbols = plain[0]  # type: ignore[method-assign]
    assert once < 2 * len(parts) < alone
    with sizes_walked_once():
        pass
    assert (vars(Basic)["free_symbols"], vars(Expr)["is_number"]) == plain
