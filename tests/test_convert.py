"""Conversion: what comes in, what the artifact claims, and that its claims hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import converters
import infer
from infer.errors import ConversionError, ParityError
from infer.feeds import example_feeds
from infer.golden import prove
from infer.parity import Tolerance
from tests import models
from tests.command import infer_command

X = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))


def expected(module: nn.Module, *args: Any) -> Any:
    with torch.no_grad():
        return module.eval()(*args)


def test_names_come_from_the_model(net: Path) -> None:
    """Inputs are named after forward's parameters, outputs after the returned keys."""
    with infer.load(net) as session:
        assert [str(spec) for spec in session.signature.inputs] == ["x: float32[batch, 10]"]
        assert [str(spec) for spec in session.signature.outputs] == ["logits: float32[batch, 2]"]


def test_other_batch_sizes_answer_as_torch(tmp_path: Path) -> None:
    """A batch size that conversion never tried gives the original's answer."""
    torch.manual_seed(3)
    module = models.TwoLayers().eval()
    converters.convert(module, tmp_path / "net.infer", example_inputs={"x": X})
    rows = torch.randn(17, 10)
    with infer.load(tmp_path / "net.infer") as session:
        ours = session.run({"x": rows.numpy()})["logits"]
    np.testing.assert_allclose(ours, expected(module, rows)["logits"], atol=1e-6)


def test_nested_outputs_come_back_nested(tmp_path: Path) -> None:
    """Dicts, tuples, lists, constants and None are rebuilt; an output named like an input is renamed."""
    torch.manual_seed(0)
    module = models.Nested().eval()
    x, parts = torch.randn(3, 4), [torch.randn(3, 4), torch.randn(3, 4)]
    converters.convert(module, tmp_path / "n.infer", example_inputs={"x": x, "parts": parts})
    with infer.load(tmp_path / "n.infer") as session:
        assert [spec.name for spec in session.signature.inputs] == ["x", "parts.0", "parts.1"]
        feeds = {"x": x.numpy(), "parts.0": parts[0].numpy(), "parts.1": parts[1].numpy()}
        result = session(feeds)
    truth = expected(module, x, parts)
    assert list(result) == ["x", "pair", "items", "scale", "nothing"]
    np.testing.assert_array_equal(result["x"], x)
    for ours, theirs in zip(result["pair"], truth["pair"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(result["items"][0], truth["items"][0], atol=1e-6)
    np.testing.assert_allclose(result["items"][1][1], truth["items"][1][1], atol=1e-6)
    assert (result["scale"], result["nothing"]) == (2, None)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    """A matrix used as embedding and as head is one tensor in the file."""
    artifact = converters.convert(
        models.Tied().eval(), tmp_path / "t.infer", example_inputs={"ids": torch.arange(6).reshape(2, 3)}
    )
    one_matrix = 5000 * 64 * 4
    assert one_matrix <= artifact.manifest.variants[0].size_bytes < 1.1 * one_matrix


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_convert(tmp_path: Path, dtype: torch.dtype) -> None:
    """Half precision weights are widened, which is exact, and the caller's module keeps its own."""
    module = models.TwoLayers().to(dtype).eval()
    artifact = converters.convert(module, tmp_path / "h.infer", example_inputs={"x": X.to(dtype)})
    assert artifact.manifest.inputs[0].dtype == "float32"
    assert any("widened to float32" in note for note in artifact.manifest.provenance.notes)
    assert module.fc1.weight.dtype == dtype


def test_training_mode_is_left_and_restored(tmp_path: Path) -> None:
    """A model in training mode is converted in eval mode, said so, and is in training mode afterwards."""
    module = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    assert module.training
    artifact = converters.convert(module, tmp_path / "b.infer", example_inputs=(X,))
    assert (
        "the model was in training mode; it was converted in eval mode"
        in artifact.manifest.provenance.notes
    )
    assert all(part.training for part in module)
    with infer.load(artifact.path) as session:
        ours = session.run({"input": X.numpy()})["output"]
    np.testing.assert_allclose(ours, expected(module, X), atol=1e-6)


def test_a_frozen_batch_is_reported_not_claimed(tmp_path: Path) -> None:
    """If no exporter can vary the batch, the artifact says batch 1 and why."""
    torch.manual_seed(0)
    module = models.FrozenBatch().eval()
    artifact = converters.convert(module, tmp_path / "f.infer", example_inputs=(torch.randn(4, 6),))
    assert artifact.manifest.inputs[0].dims == (1, 6)
    assert any("dim 'batch' is fixed" in note for note in artifact.manifest.provenance.notes)
    tried = {(a.exporter, a.opset): a.reason or "" for a in artifact.manifest.provenance.attempts[:3]}
    assert tried["dynamo", 23].startswith("at batch=1 the graph fails")
    assert tried["dynamo", 20] == "its trace is that of opset 23, which is wrong itself"
    with infer.load(artifact.path) as session, pytest.raises(infer.FeedError, match="must be 1, not 4"):
        session.run({"x": np.zeros((4, 6), np.float32)})


def test_a_demanded_dim_that_is_frozen_is_an_error(tmp_path: Path) -> None:
    """--dynamic is a demand: where no exporter can keep it, nothing is written."""
    with pytest.raises(ConversionError, match="batch"):
        converters.convert(
            models.FrozenBatch().eval(),
            tmp_path / "f.infer",
            example_inputs=(torch.randn(4, 6),),
            dynamic={"x": {0: "batch"}},
        )
    assert not list(tmp_path.iterdir())


def test_a_dim_the_original_cannot_vary_is_an_error(tmp_path: Path) -> None:
    """Asking for a length that the model itself does not take names the dim and its size."""
    with pytest.raises(ConversionError, match=r"'length' .* other sizes than 8"):
        converters.convert(
            models.OnlySquare(),
            tmp_path / "s.infer",
            example_inputs=(torch.randn(2, 8, 4),),
            dynamic={"x": {1: "length"}},
        )


def test_extra_dynamic_dims_hold_at_unseen_sizes(tmp_path: Path) -> None:
    """A convolution with dynamic height and width answers at sizes that conversion never tried."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU()).eval()
    artifact = converters.convert(
        module,
        tmp_path / "c.infer",
        example_inputs=(torch.randn(1, 3, 16, 20),),
        dynamic={"input": {2: "height", 3: "width"}},
    )
    assert artifact.manifest.inputs[0].dims == ("batch", 3, "height", "width")
    picture = torch.randn(2, 3, 37, 51)
    with infer.load(artifact.path) as session:
        ours = session.run({"input": picture.numpy()})["output"]
    np.testing.assert_allclose(ours, expected(module, picture), atol=1e-5)


def test_a_batch_that_was_named_elsewhere_is_that_of_other_inputs(tmp_path: Path) -> None:
    """Where --dynamic says that an input has its batch second, the first axis of the others is the same."""

    class TimeFirst(nn.Module):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return x.cumsum(0) * scale[:, None]

    artifact = converters.convert(
        TimeFirst(),
        tmp_path / "t.infer",
        example_inputs={"x": torch.randn(5, 3, 6), "scale": torch.rand(3)},
        dynamic={"x": {0: "time", 1: "batch"}},
    )
    assert [spec.dims for spec in artifact.manifest.inputs] == [("time", "batch", 6), ("batch",)]


def test_data_dependent_output_sizes_are_right_every_time(tmp_path: Path) -> None:
    """An output whose length depends on values is not answered from a buffer of the last length."""
    artifact = converters.convert(
        models.DataDependentSize(), tmp_path / "d.infer", example_inputs=(torch.randn(3, 5),)
    )
    rng = np.random.default_rng(0)
    with infer.load(artifact.path) as session:
        for _ in range(5):
            x = rng.standard_normal((3, 5)).astype(np.float32)
            np.testing.assert_array_equal(session.run({"x": x})["positive"], x[x > 0])


def test_randomness_is_refused(tmp_path: Path) -> None:
    """A model that answers differently each time cannot be proved."""
    with pytest.raises(ConversionError, match="differently each time"):
        converters.convert(models.Dropout(), tmp_path / "d.infer", example_inputs=(X,))


def test_a_parity_failure_writes_nothing_unless_allowed(tmp_path: Path) -> None:
    """Held to an impossible tolerance, conversion fails and names output and point; --allow-mismatch
    writes a marked artifact."""
    impossible = {"float32": Tolerance(atol=-1.0, rtol=0.0, scaled=0.0)}
    arguments: dict[str, Any] = {"example_inputs": {"x": X}, "tolerances": impossible}
    with pytest.raises(
        ParityError, match=r"at example, output 'logits'.*max abs .*relative .*cosine.*infer compare"
    ):
        converters.convert(models.TwoLayers().eval(), tmp_path / "p.infer", **arguments)
    assert not list(tmp_path.iterdir())
    artifact = converters.convert(
        models.TwoLayers().eval(), tmp_path / "p.infer", allow_mismatch=True, **arguments
    )
    parity = artifact.manifest.parity
    assert parity is not None
    assert parity.mismatch_allowed
    assert not parity.passed


def test_python_file_with_a_factory(tmp_path: Path, source_file: Callable[[str], Path]) -> None:
    """file.py:name may be a function that returns a model and its example inputs."""
    path = source_file("def build():\n    return nn.Linear(3, 2), {'input': torch.randn(2, 3)}\n")
    artifact = converters.convert(f"{path}:build", tmp_path / "l.infer")
    assert str(artifact.manifest.inputs[0]) == "input: float32[batch, 3]"


@pytest.mark.parametrize("example", ["{'input': x}", "(x,)", "x"])
def test_a_factory_may_give_numpy_examples(
    tmp_path: Path, source_file: Callable[[str], Path], example: str
) -> None:
    """Example inputs of a factory may be numpy arrays, by name, in order, or one alone."""
    path = source_file(
        "import numpy as np\n"
        "x = np.ones((2, 3), np.float32)\n"
        f"def build():\n    return nn.Linear(3, 2), {example}\n"
    )
    artifact = converters.convert(f"{path}:build", tmp_path / "l.infer")
    assert str(artifact.manifest.inputs[0]) == "input: float32[batch, 3]"


def test_arrays_that_torch_has_no_tensors_of_are_named(tmp_path: Path) -> None:
    """Big-endian examples are read as the numbers they are; texts are refused."""
    big = X.numpy().astype(">f4")
    artifact = converters.convert(models.TwoLayers(), tmp_path / "b.infer", example_inputs={"x": big})
    _, feeds, _ = next(artifact.golden())
    np.testing.assert_array_equal(feeds["x"], X[:1])
    with pytest.raises(ConversionError, match="torch has no tensors of"):
        converters.convert(models.TwoLayers(), tmp_path / "t.infer", example_inputs={"x": np.array(["a"])})


def test_it_is_measured_at_the_sizes_of_its_example(tmp_path: Path) -> None:
    """A session warms up with the smallest golden point, which says nothing of what it will be asked."""
    x = torch.randn(5, 10)
    artifact = converters.convert(models.TwoLayers(), tmp_path / "n.infer", example_inputs={"x": x})
    (smallest, feeds, _), *_ = artifact.golden()
    assert (smallest, feeds["x"].shape) == ("batch=1", (1, 10))
    np.testing.assert_array_equal(example_feeds(artifact)["x"], x.numpy())


class Vocabulary(nn.Module):
    """A logit for each of many words at each of a text's."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids) @ self.table.weight.T


def test_an_example_with_large_outputs_is_kept_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody would know what the model is asked: the smallest golden point has one word. They are kept
    where they are little beside the weights."""
    ids = torch.randint(0, 40_000, (2, 60))
    example: dict[str, Any] = {"example_inputs": {"ids": ids}, "dynamic": {"ids": {1: "length"}}}
    artifact = converters.convert(Vocabulary(40_000).eval(), tmp_path / "v.infer", **example)
    *small, last = artifact.manifest.golden
    assert (last.name, last.outputs) == ("example", None)
    assert "example" not in [point.name for point in small]
    np.testing.assert_array_equal(example_feeds(artifact)["ids"], ids.numpy())
    assert [name for name, _, _ in artifact.golden()] == [point.name for point in small]
    with infer.load(tmp_path / "v.infer") as session:
        assert [len(each) for each in prove(session).values()] == [1] * len(small)
    assert infer_command("verify", tmp_path / "v.infer").code == 0
    monkeypatch.setattr("converters.writing._GOLDEN_PART", 100.0)
    artifact = converters.convert(Vocabulary(40_000).eval(), tmp_path / "w.infer", **example)
    assert [point.name for point in artifact.manifest.golden if point.outputs][1] == "example"


def test_lazy_layers_with_weights_convert(tmp_path: Path, source_file: Callable[[str], Path]) -> None:
    """Lazy layers take their shapes from the weights' file, and are ordinary ones from then on."""
    path = source_file("def build():\n    return nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())\n")
    trained = nn.Sequential(nn.Linear(10, 2), nn.BatchNorm1d(2)).eval()
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    converters.convert(
        f"{path}:build", tmp_path / "l.infer", weights=tmp_path / "w.pt", example_inputs={"input": X}
    )
    with infer.load(tmp_path / "l.infer") as session:
        np.testing.assert_allclose(
            session.run({"input": X.numpy()})["output"], expected(trained, X), atol=1e-6
        )


def test_exporters_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Torch's native code prints the graph that an exporter failed on; the reason in one line is enough."""

    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x)

    with pytest.raises(ConversionError, match="torchscript at opset 18: the export failed"):
        converters.convert(Unknown(), tmp_path / "u.infer", example_inputs=(torch.eye(3)[None] * 2,))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file(tmp_path: Path, source_file: Callable[[str], Path], suffix: str) -> None:
    """A class and its weights, as safetensors or as a data-parallel checkpoint in a training dict."""
    path = source_file(
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3, 2)\n"
        "    def forward(self, x):\n"
        "        return self.fc(x)\n"
    )
    torch.manual_seed(7)
    trained = nn.Linear(3, 2)
    state = {f"fc.{name}": tensor for name, tensor in trained.state_dict().items()}
    weights = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, weights)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}, weights)
    x = torch.randn(5, 3)
    converters.convert(f"{path}:Net", tmp_path / "net.infer", weights=weights, example_inputs={"x": x})
    with infer.load(tmp_path / "net.infer") as session:
        np.testing.assert_allclose(session.run({"x": x.numpy()})["output"], expected(trained, x), atol=1e-6)


def test_exported_program(tmp_path: Path) -> None:
    """A .pt2 file converts with its own example inputs and dynamic batch."""
    torch.manual_seed(0)
    module = models.TwoLayers().eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (X,), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, tmp_path / "net.pt2")
    artifact = converters.convert(tmp_path / "net.pt2", tmp_path / "net.infer")
    assert str(artifact.manifest.inputs[0]) == "x: float32[batch, 10]"
    with infer.load(artifact.path) as session:
        ours = session.run({"x": X.numpy()})["logits"]
    np.testing.assert_allclose(ours, expected(module, X)["logits"], atol=1e-6)


def test_torchscript_file(tmp_path: Path) -> None:
    """A TorchScript file converts; its dict of outputs keeps its keys."""
    torch.manual_seed(0)
    module = models.TwoLayers().eval()
    torch.jit.trace(module, (X,), strict=False).save(str(tmp_path / "net.pt"))
    artifact = converters.convert(tmp_path / "net.pt", tmp_path / "net.infer", example_inputs={"x": X})
    assert [spec.name for spec in artifact.manifest.outputs] == ["logits"]
    with infer.load(artifact.path) as session:
        ours = session.run({"x": X.numpy()})["logits"]
    np.testing.assert_allclose(ours, expected(module, X)["logits"], atol=1e-6)


def test_a_program_may_call_itself_what_it_likes(tmp_path: Path) -> None:
    """The module is no input, also where its forward does not call it self."""

    class Other(nn.Module):
        def forward(this, x: torch.Tensor) -> torch.Tensor:  # noqa: N805
            return x * 2

    torch.jit.script(Other()).save(str(tmp_path / "net.pt"))
    artifact = converters.convert(tmp_path / "net.pt", tmp_path / "net.infer", example_inputs=(X,))
    assert [spec.name for spec in artifact.manifest.inputs] == ["x"]


def test_names_for_inputs_that_have_none(tmp_path: Path) -> None:
    """Where forward takes *args, examples by name are its arguments in that order, with these names."""

    class Star(nn.Module):
        def forward(self, x: torch.Tensor, *more: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return x * scale - more[0] + 2 * more[1]

    examples = {"a": X + 1, "b": X - 1, "x": X, "scale": 3.0}
    artifact = converters.convert(Star(), tmp_path / "s.infer", example_inputs=examples)
    assert [spec.name for spec in artifact.manifest.inputs] == ["x", "a", "b"]
    with infer.load(artifact.path) as session:
        ours = session.run({"x": X.numpy(), "a": X.numpy() + 1, "b": X.numpy() - 1})["output"]
    np.testing.assert_allclose(ours, X * 3 - (X + 1) + 2 * (X - 1), atol=1e-5)


def test_onnx_file_is_adopted(tmp_path: Path, net: Path) -> None:
    """An .onnx file becomes an artifact whose oracle is its unoptimized self."""
    artifact = converters.convert(net / "graphs/fp32.onnx", tmp_path / "adopted.infer")
    parity = artifact.manifest.parity
    assert parity is not None
    assert parity.passed
    assert "without graph optimizations" in parity.oracle
    with infer.load(artifact.path) as session, infer.load(net) as original:
        feeds = {"x": X.numpy()}
        np.testing.assert_array_equal(session.run(feeds)["logits"], original.run(feeds)["logits"])


def test_every_graph_is_valid_onnx(net: Path) -> None:
    """The written graph passes the full check of the onnx package."""
    onnx.checker.check_model(str(net / "graphs/fp32.onnx"), full_check=True)


def test_unused_inputs_stay(tmp_path: Path) -> None:
    """An input that the model takes but ignores is still an input of the artifact."""

    class Ignores(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return x * 2

    artifact = converters.convert(
        Ignores(), tmp_path / "i.infer", example_inputs={"x": X, "mask": torch.ones(4, 10)}
    )
    with infer.load(artifact.path) as session:
        answer = session.run({"x": X.numpy(), "mask": np.ones((4, 10), np.float32)})
    np.testing.assert_array_equal(answer["output"], X * 2)


@pytest.mark.slow
@pytest.mark.long
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    """Weights over protobuf's limit of 2 GB go to external data, and the artifact runs."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # 3 × 179 M float32: 2.15 GB; of random vectors, since so many random numbers take long
            self.layers = nn.ModuleList(
                nn.utils.skip_init(nn.Linear, 13_380, 13_380, bias=False) for _ in range(3)
            )
            for layer in self.layers:
                torch.mul(torch.randn(13_380, 1), torch.randn(1, 13_380) / 13_380, out=layer.weight.data)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.relu(layer(x))
            return x

    torch.manual_seed(0)
    artifact = converters.convert(
        Large().eval(), tmp_path / "large.infer", example_inputs={"x": torch.randn(2, 13_380)}
    )
    assert artifact.manifest.variants[0].size_bytes > 2**31
    assert "graphs/fp32.onnx.data" in artifact.manifest.files
    with infer.load(artifact.path) as session:
        name, feeds, outputs = next(artifact.golden())
        np.testing.assert_allclose(session.run(feeds)["output"], outputs["output"], atol=1e-5), name
