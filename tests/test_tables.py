"""Embedding tables in eight bits: rows that stay near, and tables that stay as they are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.optimizer.quantization.tables import candidates, quantize_tables, share
from infer.signature import Array
from tests.test_passes import answers, loaded, operators
from tests.tiny import parse

ROWS, WIDTH = 96, 64


def looked_up(
    body: str = "y = Gather(t, i)", ids: str = "B, 3", answer: str = f"B, 3, {WIDTH}"
) -> ir.Model:
    """Rows of a table `t` by `i`, and `w`, of which nothing is a table."""
    text = f"g (int64[{ids}] i) => (float[{answer}] y) {{ {body} }}".replace("[]", "")
    proto = parse(text, opset=13, ir_version=8)
    for name, array in {"t": table(), "w": np.ones((WIDTH, WIDTH), np.float32)}.items():
        if re.search(rf"\b{name}\b", body):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return loaded(proto)


def table() -> Array:
    """Rows of sizes from 1/1000 to 1000, and one of zeros."""
    rng = np.random.default_rng(0)
    found = rng.standard_normal((ROWS, WIDTH)) * np.logspace(-3, 3, ROWS)[:, None]
    found[5] = 0
    return found.astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(shape=st.sampled_from([(), (4,), (2, 3), (0, 3)]), seed=st.integers(0, 2**31))
def test_rows_are_within_half_a_step(
    shape: tuple[int, ...], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of their own scale; for ids of any shape, and those that count from the end."""
    dims = ", ".join(map(str, shape))
    model = looked_up(ids=dims, answer=", ".join(filter(None, [dims, str(WIDTH)])))
    result = quantize_tables(model)
    assert (result.found, result.rewritten) == (1, 1)
    ids = np.random.default_rng(seed).integers(-ROWS, ROWS, shape)
    found = answers(model, tmp_path_factory.mktemp("rows") / "m.onnx", {"i": ids})["y"]
    expected = table()[ids]
    assert found.shape == expected.shape
    half = np.abs(expected).max(axis=-1, keepdims=True) / 254
    assert (np.abs(found - expected) <= 1.001 * half).all()


def test_a_table_takes_a_quarter(tmp_path: Path) -> None:
    """In the file, whatever reads it how often: lookups share it."""
    before = looked_up("a = Gather(t, i) b = Gather(t, i) c = Neg(b) y = Add(a, c)")
    after = looked_up("a = Gather(t, i) j = Neg(i) b = Gather(t, j) y = Add(a, b)")
    assert len(candidates(after)) == 1
    result = quantize_tables(after)
    assert (result.found, result.rewritten) == (1, 1)
    assert operators(after).count("Gather") == 4
    ids = np.zeros((1, 3), np.int64)
    answers(before, tmp_path / "a.onnx", {"i": ids})
    answers(after, tmp_path / "b.onnx", {"i": ids})
    saved = (tmp_path / "a.onnx").stat().st_size - (tmp_path / "b.onnx").stat().st_size
    assert saved == pytest.approx(ROWS * WIDTH * 3 - ROWS * 4, abs=1000)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = Gather(t, i) u = Transpose(t) y = MatMul(r, u)", "the table is a matrix as well"),
        ("y = Gather<axis = 1>(t, i)", None),
        ("c = Neg(t) y = Gather(c, i)", None),
    ],
)
def test_what_is_not_only_looked_up_stays(body: str, reason: str | None) -> None:
    """Tied with the last product, it would be kept twice; columns have other scales; what is computed is no
    table."""
    model = looked_up(body, answer="B, 3, N")
    before = operators(model)
    result = quantize_tables(model)
    assert result.rewritten == 0
    assert operators(model) == before
    assert [said.partition(",")[0] for said in result.declined] == ([reason] if reason else [])


def test_tables_are_known_by_their_share_and_kept_by_name() -> None:
    """Of all bytes of weights; by the name of the first lookup."""
    model = looked_up("r = Gather(t, i) y = MatMul(r, w)")
    assert share(model) == pytest.approx(ROWS / (ROWS + WIDTH), abs=0.01)
    (node,) = candidates(model)
    result = quantize_tables(model, [node.name or ""])
    assert dict(result.declined) == {"kept in float for accuracy": 1}
    assert share(looked_up("r = Cast<to = 1>(i) y = Identity(r)", answer="B, 3")) == 0
