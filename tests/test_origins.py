"""Nodes know which module and line they come from, and nothing about the machine they were made on."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import converters
from converters.origins import MODULE, SOURCE


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.inner(x), dim=1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origins") / "net.infer"
    converters.convert(Net().eval(), folder, example_inputs=(torch.randn(2, 4),))
    return folder / "graphs/fp32.onnx"


def test_nodes_name_their_module_and_line(graph: Path) -> None:
    """Paths are those of named_modules(), lines those of the model's own file."""
    nodes = onnx.load(graph).graph.node
    found = {n.op_type: [{p.key: p.value for p in m.metadata_props} for m in nodes if m.op_type == n.op_type] for n in nodes}  # fmt: skip  # noqa: E501
    modules = {name for name, _ in Net().named_modules()}
    assert [entry[MODULE] for entry in found["Gemm"]] == ["blocks.0.inner.0", "blocks.1.inner.0"]
    assert [entry[MODULE] for entry in found["Softmax"]] == ["blocks.0", "blocks.1"]
    for entries in found.values():
        for entry in entries:
            assert set(entry) <= {MODULE, SOURCE}
            assert entry[MODULE] in modules
            assert entry[SOURCE].startswith("test_origins.py:")


def test_no_path_of_this_machine_is_in_the_file(graph: Path) -> None:
    """Neither the folder of this test nor that of torch can be read from the graph."""
    data = graph.read_bytes()
    for folder in (Path(__file__).parent, Path(torch.__file__).parent):
        assert str(folder).encode() not in data


def test_a_convolution_keeps_its_module_when_a_norm_is_folded_into_it(tmp_path: Path) -> None:
    """The exporter notes the norm's module on the node that both become."""
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(3, 4, 3))
    net.add_module("norm", nn.BatchNorm2d(4))
    converters.convert(net.eval(), tmp_path / "net.infer", example_inputs=(torch.randn(2, 3, 8, 8),))
    (node,) = onnx.load(tmp_path / "net.infer/graphs/fp32.onnx").graph.node
    assert {entry.key: entry.value for entry in node.metadata_props}[MODULE] == "conv"
