"""What messages quote of a value."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from infer.wording import excerpt

# a quote beyond the excerpt would change those of its text
TEXTS = st.text(st.characters(exclude_characters="'"), max_size=9)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=4),
)


class Unread:
    """A value that nobody may write."""

    def __repr__(self) -> str:
        raise AssertionError("written, though it is beyond what is shown")


@given(VALUES, st.integers(1, 40))
def test_an_excerpt_is_how_the_value_begins(value: Any, most: int) -> None:
    assert excerpt(value, most) == repr(value)[:most]


def test_what_is_not_shown_is_not_written() -> None:
    """Messages of megabytes of JSON are made as soon as those of a line."""
    assert excerpt([1, [2, {"a": "b" * 9}], Unread()], 20) == "[1, [2, {'a': 'bbbbb"
