"""Existing ONNX files become artifacts that claim only what they were seen to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converters
import infer
from infer.errors import ConversionError, FeedError
from tests.tiny import write


def test_open_dims_are_tried(tmp_path: Path) -> None:
    """A graph that says its batch is open, but reshapes to two rows, is limited to two rows."""
    graph = write(
        tmp_path,
        "g (float[batch, 4] x) => (float[batch, 4] y)"
        " { shape = Constant<value = int64[2] {2, 4}>() z = Reshape(x, shape) y = Relu(z) }",
    )
    artifact = converters.convert(graph, tmp_path / "a.infer")
    assert str(artifact.manifest.limits["batch"]) == "2 to 2"
    assert any("answers only at 2" in note for note in artifact.manifest.provenance.notes)
    with infer.load(artifact.path) as session, pytest.raises(FeedError, match="batch = 5"):
        session.run({"x": np.ones((5, 4), np.float32)})


def test_dims_that_must_be_equal_stay_open(tmp_path: Path) -> None:
    """Two dims of different names that the graph adds to each other are not held to be fixed."""
    graph = write(
        tmp_path,
        "g (float[b, n] x, float[c, n] w) => (float[b, n] y)"
        " { t = Transpose<perm = [1, 0]>(w) m = MatMul(x, t) s = MatMul(m, w) y = Add(s, w) }",
    )
    artifact = converters.convert(graph, tmp_path / "a.infer")
    assert artifact.manifest.limits == {}
    x, w = np.ones((5, 3), np.float32), np.full((5, 3), 2, np.float32)
    with infer.load(artifact.path) as session:
        np.testing.assert_allclose(session.run({"x": x, "w": w})["y"], x @ w.T @ w + w)


def test_size_one_is_tried(tmp_path: Path) -> None:
    """A graph that needs two columns is limited to two or more."""
    graph = write(
        tmp_path,
        "g (float[b, n] x) => (float[b, m] y)"
        " { one = Constant<value = int64[1] {1}>() picked = Gather<axis = 1>(x, one) y = Relu(picked) }",
    )
    artifact = converters.convert(graph, tmp_path / "a.infer")
    assert {dim: str(limit) for dim, limit in artifact.manifest.limits.items()} == {"n": "5 or more"}


def test_random_graphs_are_refused(tmp_path: Path) -> None:
    """Both sessions would draw the same numbers once, and never again."""
    graph = write(
        tmp_path, "g (float[b, 4] x) => (float[b, 4] y) { n = RandomNormalLike(x) y = Add(x, n) }"
    )
    with pytest.raises(ConversionError, match="draws random numbers \\(RandomNormalLike\\)"):
        converters.convert(graph, tmp_path / "a.infer")
    assert not (tmp_path / "a.infer").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "w.safetensors"}, "brings its own weights"),
        ({"dynamic": {"x": {1: "k"}}}, "dims are what they are"),
        ({"example_inputs": {"zzz": np.ones((2, 4), np.float32)}}, "there is no input 'zzz'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    """An option that is ignored would look as if it had worked."""
    graph = write(tmp_path, "g (float[b, 4] x) => (float[b, 4] y) { y = Relu(x) }")
    with pytest.raises(ConversionError, match=said):
        converters.convert(graph, tmp_path / "a.infer", **options)


def test_an_input_that_is_an_output_is_never_an_earlier_one(tmp_path: Path) -> None:
    """Answers of repeated runs are those of their own feeds, not of the first caller's."""
    graph = write(tmp_path, "g (float[b] x) => (float[b] x, float[b] z) { z = Relu(x) }")
    with infer.load(graph) as session:
        for value in range(5):
            x = np.full(3, value, np.float32)
            np.testing.assert_array_equal(session.run({"x": x})["x"], x)
