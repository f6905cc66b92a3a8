"""Nesting of outputs, there and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.errors import ArtifactError
from infer.structure import rebuild, tensor_names


def test_each_kind_is_rebuilt() -> None:
    """The table of the module's docstring, row by row."""
    outputs = {"a": 1, "b": 2}
    assert rebuild("a", outputs) == 1
    assert rebuild(None, outputs) is None
    assert rebuild({"tuple": ["a", "b"]}, outputs) == (1, 2)
    assert rebuild({"list": ["b", None]}, outputs) == [2, None]
    assert rebuild({"dict": {"x": "a", "y": {"list": []}}}, outputs) == {"x": 1, "y": []}
    assert rebuild({"value": "a"}, outputs) == "a"
    assert rebuild({"value": False}, outputs) is False
    assert rebuild({"tuple": []}, outputs) == ()


def encode(value: Any, found: dict[str, int]) -> Any:
    """The structure of `value`, whose ints stand for tensors: the inverse of `rebuild`."""
    if value is None:
        return None
    if isinstance(value, int):
        name = f"t{len(found)}"
        found[name] = value
        return name
    if isinstance(value, dict):
        return {"dict": {key: encode(item, found) for key, item in value.items()}}
    if isinstance(value, str):
        return {"value": value}
    return {type(value).__name__: [encode(item, found) for item in value]}


nestings = st.recursive(
    st.integers() | st.none() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
)


@given(nestings)
def test_any_nesting_is_rebuilt(value: Any) -> None:
    """What an independent encoder takes apart, `rebuild` puts together; names are found in order."""
    found: dict[str, int] = {}
    structure = encode(value, found)
    assert rebuild(structure, found) == value
    assert list(tensor_names(structure)) == list(found)


@pytest.mark.parametrize(
    "structure",
    [5, True, [], ["a"], {}, {"set": []}, {"list": "a"}, {"dict": ["a"]}, {"value": None}, {"value": []},
     {"list": [], "tuple": []}, {"tuple": [{"list": [1]}]}],
)  # fmt: skip
def test_a_malformed_structure_is_refused(structure: Any) -> None:
    """Anything but the documented forms is an `ArtifactError`."""
    with pytest.raises(ArtifactError, match="malformed"):
        list(tensor_names(structure))
