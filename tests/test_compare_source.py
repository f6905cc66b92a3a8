"""A graph beside its PyTorch original: the first module whose output differs, found by planted faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import converters
from converters.original import original
from infer.artifact import Artifact
from infer.cli.compare import failing_feeds
from infer.npz import load_npz
from infer.optimizer.modules import NO_VALUE, compare_modules, leaving
from infer.optimizer.passes.attention import attention
from infer.parity import TOLERANCES
from tests.command import infer_command
from tests.test_passes import answers


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = torch.softmax(q @ k.transpose(2, 3) / 2, -1) @ v
        found: torch.Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return found


class Block(nn.Module):
    """Returns a tuple of one, as blocks of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.norms[0](x + self.attention(x))
        return (self.norms[1](x + self.mlp(x)),)


class Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:, :4], x[:, 4:]


class Net(nn.Module):
    """A picture's pixels through two blocks, after all that does not show in a graph as it was written: a
    folded norm, a write in place, a module that is called twice, and one that returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.twice = nn.Conv2d(8, 8, 1)
        self.halves = Halves()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        left, right = self.halves(self.twice(torch.relu(self.twice(self.stem(x)))))
        x = torch.cat([right, left], 1).flatten(2).transpose(1, 2)
        for block in self.blocks:
            (x,) = block(x)
        return {"logits": self.head(x.mean(1))}


def net() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The net, with a norm that has seen something, and its example inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net()
        norm = module.stem[1]
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        return module.eval(), {"x": torch.randn(2, 3, 5, 5)}


def narrower() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Another net with the inputs and outputs of the first."""

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.only(x.mean((2, 3)))}

    return Other().eval(), {"x": torch.randn(2, 3, 5, 5)}


SOURCE = "tests.test_compare_source:net"
MODULES = 28
"""Convolution folded into its norm: 1, stem.2 and stem: 2, two blocks of 12, head: 1; dropout gives what it
is given, and counts as none."""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The net's artifact."""
    path = tmp_path_factory.mktemp("compared") / "net.infer"
    module, example = net()
    converters.convert(module, path, example_inputs=example)
    return path


def graph_of(artifact: Path) -> ir.Model:
    return ir.load(artifact / "graphs/fp32.onnx")


def made_in(model: ir.Model, module: str, *op_types: str) -> ir.Node:
    return next(
        n for n in model.graph if n.metadata_props.get("infer.module") == module and n.op_type in op_types
    )


def scaled_weight(module: str, *op_types: str) -> Callable[[ir.Model], None]:
    """Half as large again in a single row."""

    def plant(model: ir.Model) -> None:
        value = made_in(model, module, *op_types).inputs[1]
        assert value is not None
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[0] *= 1.5
        value.const_value = ir.tensor(array, name=value.name)

    return plant


def operator(module: str, wrong: str, *op_types: str) -> Callable[[ir.Model], None]:
    def plant(model: ir.Model) -> None:
        node = made_in(model, module, *op_types)
        node.op_type = wrong
        node.attributes.clear()

    return plant


PLANTED: list[tuple[str, Callable[[ir.Model], None]]] = [
    ("stem.1", scaled_weight("stem.0", "Conv")),
    ("stem.2", operator("stem.2", "Abs", "Relu")),
    ("blocks.0.attention.value", scaled_weight("blocks.0.attention.value", "MatMul", "Gemm")),
    ("blocks.1.attention.key", scaled_weight("blocks.1.attention.key", "MatMul", "Gemm")),
    # what a module computes itself shows in the next one that it calls
    ("blocks.1.attention.output", operator("blocks.1.attention", "Sigmoid", "Softmax")),
    ("blocks.0.mlp.1", operator("blocks.0.mlp.1", "Relu", "Gelu")),
    ("blocks.1.norms.0", operator("blocks.1", "Sub", "Add")),
    ("head", scaled_weight("head", "Gemm")),
]
MADE_BY = {"stem.1": "stem.0"}
"""The norm is folded into the convolution, which makes its output."""


def test_equal_ones_do_not_part_and_modules_are_counted(converted: Path) -> None:
    """All that have a value are compared; why the others are not is said."""
    done = infer_command("compare", SOURCE, converted)
    assert done.code == 0, done.err
    assert done.out == (
        f"{MODULES} modules and all outputs compared with PyTorch\n"
        "3 modules not compared: 1 have no value of their own in the graph; 1 are called several times;"
        " 1 do not return exactly one tensor\nnone differs\n"
    )


@pytest.mark.parametrize(("module", "plant"), PLANTED, ids=[module for module, _ in PLANTED])
def test_a_planted_fault_is_found_in_its_module(
    module: str, plant: Callable[[ir.Model], None], converted: Path, tmp_path: Path
) -> None:
    """Whichever weight or operator is wrong; with the line, and a part that shows it when run alone."""
    model = graph_of(converted)
    plant(model)
    ir.save(model, tmp_path / "wrong.onnx")
    feeds = converted / "golden/0-feeds.npz"
    done = infer_command(
        "compare", SOURCE, tmp_path / "wrong.onnx", "--feeds", feeds, "--repro", tmp_path / "r", "--json"
    )
    assert done.code == 1
    assert f"they part at module '{module}'" in done.err
    found = json.loads(done.out)
    assert found["first"]["module"] == module
    assert found["first"]["part"]["module"] == MADE_BY.get(module, module)
    assert found["first"]["part"]["source"].startswith("test_compare_source.py:")
    assert found["compared"] == MODULES
    cut = ir.load(tmp_path / "r/repro.onnx")
    assert len(list(cut.graph)) < len(list(model.graph)) / 2
    arrays = load_npz(tmp_path / "r/repro.npz")
    value = found["first"]["part"]["value"]
    inputs = {given.name or "": arrays[given.name or ""] for given in cut.graph.inputs}
    wrong = answers(cut, tmp_path / "a.onnx", inputs)[value]
    assert np.abs(wrong - arrays[f"expected_{value}"]).max() > 1e-3


def test_rewritten_graphs_are_compared_by_the_names_of_values(converted: Path, tmp_path: Path) -> None:
    """Of a fused attention, what is left agrees; three projections that became one are no difference."""
    model = graph_of(converted)
    assert attention(model).rewritten == 2
    ir.save(model, tmp_path / "fused.onnx")
    reference = converted / "graphs/fp32.onnx"
    with original(SOURCE, "net") as asked:
        outputs, modules = asked.run(asked.feeds), asked.modules(asked.feeds)
    found = compare_modules(
        modules, outputs, reference, tmp_path / "fused.onnx", asked.feeds, TOLERANCES, tmp_path / "r"
    )
    assert (found.first, found.compared, found.repro) == (None, MODULES - 6, ())
    assert found.unmatched[NO_VALUE] == 1 + 6


def test_values_that_leave_a_module_leave_those_around_it(converted: Path) -> None:
    """A block's output leaves the norm that makes it and the block; a query leaves only its projection."""
    found = leaving(graph_of(converted))
    assert found["blocks.0"] == found["blocks.0.norms.1"]
    (query,) = found["blocks.0.attention.query"]
    assert query not in found["blocks.0.attention"]
    assert found["blocks.1.attention"] == found["blocks.1.attention.output"]


def test_hooks_are_gone_afterwards_and_writes_in_place_are_not_seen() -> None:
    """A norm's output is what it gave, not what the ReLU after it made of it."""
    module, example = net()
    with original(module, "net", {"x": example["x"].numpy()}) as asked:
        found = {output.path: output for output in asked.modules(asked.feeds)}
    normed, relu = found["stem.1"], found["stem.2"]
    assert normed.output is not None
    assert relu.output is not None
    assert normed.output.min() < 0
    np.testing.assert_array_equal(relu.output, np.maximum(normed.output, 0))
    assert normed.folds_into == ("stem.0",)
    assert all(not part._forward_hooks for part in module.modules())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["tests.test_compare_source:narrower"], 1, "the graph is of another model: it names the modules"),
        (["tests.models:TwoLayers"], 1, "TwoLayers fails in PyTorch on x: float32[2, 3, 5, 5]"),
        (["tests.test_compare_source:absent"], 1, "'tests.test_compare_source' has no 'absent'"),
        (["nowhere"], 1, "there is no 'nowhere'; a source is"),
        ([SOURCE, "--first-variant", "fp32"], 2, "--first-variant is for an artifact"),
    ],
)  # fmt: skip
def test_a_source_that_does_not_fit_is_refused(
    arguments: list[str], code: int, said: str, converted: Path
) -> None:
    """With what does not fit, and the cure."""
    source, *options = arguments
    done = infer_command("compare", source, converted, *options)
    assert done.code == code
    assert said in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_where_parity_failed_is_where_it_is_compared(converted: Path, tmp_path: Path) -> None:
    """Of the golden points, the one at which the conversion was let through although it failed; the example
    where there is none."""
    copy = Path(shutil.copytree(converted, tmp_path / "net.infer"))
    artifact = Artifact.open(copy)
    (_, first, _), (example, third, _), (name, second, _) = artifact.golden()
    assert example == "example"
    parity = artifact.manifest.parity
    assert parity is not None
    assert failing_feeds(artifact)["x"].shape == third["x"].shape
    assert len({first["x"].shape, second["x"].shape, third["x"].shape}) == 3
    measured = tuple(replace(m, within=m.point != name) for m in parity.measured)
    marked = replace(artifact.manifest, parity=replace(parity, measured=measured, mismatch_allowed=True))
    (copy / "manifest.json").write_text(marked.to_json(), encoding="utf-8")
    assert failing_feeds(Artifact.open(copy))["x"].shape == second["x"].shape


def test_weights_are_for_sources(converted: Path) -> None:
    """And a graph has its own."""
    done = infer_command("compare", converted, converted, "--weights", "w.safetensors")
    assert done.code == 2
    assert "--weights is for a source" in done.err
