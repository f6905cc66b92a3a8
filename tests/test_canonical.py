"""The form in which passes get a graph: what it answers, and the names it has, stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from infer.optimizer.canonical import canonical
from tests.test_passes import answers, loaded, operators
from tests.tiny import parse

BRANCH = """g (float[N] x, bool c) => (float[N] y) {
    h = Abs(x)
    y = If (c) <
        then_branch = one () => (float[N] a) { a = Identity(h) },
        else_branch = other () => (float[N] b) { i = Identity(h) n = Neg(i) b = Identity(n) }
    >
}"""


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("g (float[N] x) => (float[N] y) { a = Identity(x) b = Abs(a) y = Identity(b) }", ["Abs"]),
        ("g (float[N] x) => (float[N] y) { y = Identity(x) }", ["Identity"]),
        # one output has the name of what the other gives
        ("g (float[N] x) => (float[N] y, float[N] z) { y = Abs(x) z = Identity(y) }", ["Abs", "Identity"]),
        ("g (float[N] x) => (float[N] y, float[N] z) { a = Abs(x) y = Identity(a) z = Identity(a) }", None),
        # a branch that gives what is the graph's, and one that does not
        (BRANCH, ["Abs", "If"]),
    ],
)
def test_identities_go_where_nothing_needs_them(text: str, kept: list[str] | None, tmp_path: Path) -> None:
    """Outputs keep their names and values, those of branches, too."""
    proto = parse(text)
    onnx.save(proto, tmp_path / "a.onnx")
    model = canonical(tmp_path / "a.onnx")
    if kept is not None:
        assert operators(model) == kept
    x = np.array([-1, 2, -3], np.float32)
    told = [{"c": np.array(c)} for c in (True, False)] if "bool" in text else [{}]
    for given in told:
        feeds = {"x": x, **given}
        found = answers(model, tmp_path / "b.onnx", feeds)
        expected = answers(loaded(proto), tmp_path / "c.onnx", feeds)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
