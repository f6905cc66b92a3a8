"""A profile says where the time went, in operators that ran and in modules that the original has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import converters
from infer.feeds import Feeds
from infer.machine import this_machine
from infer.measure.origins import INSERTED, ITSELF, UNKNOWN
from infer.measure.profile import OTHERS, profile
from infer.measure.record import Profile, Share
from infer.options import PlanOptions
from infer.planner import make_plan
from infer.session import open_artifact
from tests.text_models import bert_folder
from tests.tiny import parse


def profiled(path: Path, feeds: Feeds, runs: int = 5) -> Profile:
    artifact = open_artifact(path)
    plan = make_plan(artifact.manifest, this_machine(), PlanOptions(device="cpu", num_threads=1))
    return profile(artifact, plan, feeds, "it", runs)


def check_shares(shares: Iterable[Share], nodes: int | None = None) -> None:
    found = list(shares)
    assert sum(share.share for share in found) == pytest.approx(1)
    total = sum(share.ms for share in found)
    for share in found:
        assert share.ms == pytest.approx(share.share * total)
    assert found == sorted(found, key=lambda share: -share.ms)
    if nodes is not None:
        assert sum(share.nodes for share in found) == nodes


def check_modules(found: Profile, original: nn.Module) -> None:
    """At least 95 % of the time has a module, and each name is that of one, or of several alike."""
    check_shares(found.modules, sum(share.nodes for share in found.operators))
    names = {name for name, _ in original.named_modules()}
    for share in found.modules:
        if share.name not in (INSERTED, ITSELF, UNKNOWN):
            pattern = re.escape(share.name).replace(r"\*", r"\d+")
            assert any(re.fullmatch(pattern, name) for name in names), share.name
    assert sum(share.share for share in found.modules if share.name == UNKNOWN) <= 0.05


def test_the_time_of_a_text_model_goes_to_its_modules(tmp_path: Path) -> None:
    """Fused nodes, too: bias and GELU."""
    import transformers

    folder = bert_folder(tmp_path / "bert", "SequenceClassification")
    converters.convert(folder, tmp_path / "bert.infer")
    ids = np.ones((2, 48), np.int64)
    feeds = {"input_ids": ids, "attention_mask": ids, "token_type_ids": np.zeros_like(ids)}
    found = profiled(tmp_path / "bert.infer", feeds)
    assert found.candidate == "it"
    assert found.sizes == {"batch": 2, "sequence": 48}
    check_shares(found.operators)
    check_modules(found, transformers.BertForSequenceClassification.from_pretrained(folder))
    by_name = {share.name: share for share in found.modules}
    assert len(by_name) <= 25
    # two layers, of which ONNX Runtime keeps the product and fuses the rest into other nodes
    assert by_name["bert.encoder.layer.*.intermediate.dense"].nodes == 2
    assert by_name["bert.encoder.layer.*.output.LayerNorm"].nodes == 2
    fused = {share.name: share.nodes for share in found.operators}
    assert fused["LayerNormalization"] == 5  # not fused with the sums before them: that is slower
    assert fused["BiasGelu"] == 2
    assert INSERTED not in by_name


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2)
        self.norm = nn.BatchNorm2d(32)
        self.body = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU()
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.body(x).mean((2, 3)))


def test_blocked_convolutions_go_to_their_modules(tmp_path: Path) -> None:
    """ONNX Runtime renames them and their values; its own changes of layout are said to be its own."""
    net = Net().eval()
    converters.convert(net, tmp_path / "net.infer", example_inputs={"x": torch.randn(2, 3, 64, 64)})
    found = profiled(tmp_path / "net.infer", {"x": np.ones((1, 3, 64, 64), np.float32)})
    check_shares(found.operators)
    check_modules(found, net)
    by_name = {share.name: share.nodes for share in found.modules}
    assert by_name["stem"] == by_name["body.0"] == by_name["body.2"] == by_name["head"] == 1
    inserted = sum(s.nodes for s in found.operators if s.name in ("ReorderInput", "ReorderOutput"))
    assert by_name.get(INSERTED, 0) == inserted


def test_a_plain_graph_has_operators_only(tmp_path: Path) -> None:
    """Nobody noted its modules."""
    model = parse("g (float[n, 4] x) => (float[n, 4] y) { h = Sin(x) y = Softmax(h) }")
    onnx.save(model, tmp_path / "model.onnx")
    found = profiled(tmp_path / "model.onnx", {"x": np.ones((3, 4), np.float32)})
    assert found.modules == ()
    check_shares(found.operators, 2)
    assert {share.name for share in found.operators} == {"Sin", "Softmax"}


def chain(folder: Path, modules: list[str]) -> Path:
    """A graph with a Sin for each of `modules`, one after another."""
    names = ["x", *(f"v{i}" for i in range(len(modules) - 1)), "y"]
    nodes = " ".join(f"{names[i + 1]} = Sin({names[i]})" for i in range(len(modules)))
    model = parse(f"g (float[n, 64] x) => (float[n, 64] y) {{ {nodes} }}")
    for i, (node, module) in enumerate(zip(model.graph.node, modules, strict=True)):
        node.name = f"node{i}"
        node.metadata_props.add(key="infer.module", value=module)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([f"layer.{i}.dense" for i in range(20)], {f"layer.{i}.dense": 1 for i in range(20)}),
        (
            [f"layer.{i}.{part}" for i in range(12) for part in ("a", "b", "c", "d", "e", "f")],
            {f"layer.*.{part}": 12 for part in ("a", "b", "c", "d", "e", "f")},
        ),
        (
            [f"block{i}.part{j}.conv" for i in range(8) for j in range(6)],
            {f"block{i}": 6 for i in range(8)},
        ),
    ],
    ids=["few modules stay", "many layers become one", "names that do not repeat are cut"],
)
def test_there_are_never_too_many_modules_to_read(
    tmp_path: Path, modules: list[str], expected: dict[str, int]
) -> None:
    """At most 25."""
    found = profiled(chain(tmp_path, modules), {"x": np.ones((1, 64), np.float32)})
    assert {share.name: share.nodes for share in found.modules} == expected


def test_a_long_sequence_of_different_modules_is_shown_by_the_longest(tmp_path: Path) -> None:
    """Where cutting would leave next to nothing, the others become one row."""
    path = chain(tmp_path, [f"features.{i}" for i in range(40)])
    found = profiled(path, {"x": np.ones((1, 64), np.float32)})
    by_name = {share.name: share.nodes for share in found.modules}
    assert len(by_name) == 25
    assert by_name[OTHERS] == 40 - 24
    check_shares(found.modules, 40)


def test_the_heavy_module_gets_the_time(tmp_path: Path) -> None:
    """A product of 2·10⁹ operations beside a sine of 10⁶ elements or less."""
    model = parse(
        "g (float[n, 1024] x) => (float[n, 1024] y) { h = MatMul(x, w) y = Sin(h) }",
    )
    weights = np.ones((1024, 1024), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    for node, module in zip(model.graph.node, ("heavy", "light"), strict=True):
        node.name = f"of_{module}"
        node.metadata_props.add(key="infer.module", value=module)
    onnx.save(model, tmp_path / "model.onnx")
    found = profiled(tmp_path / "model.onnx", {"x": np.ones((1024, 1024), np.float32)})
    assert found.modules[0].name == "heavy"
    assert found.modules[0].share > 0.5


def test_a_loop_does_not_count_what_is_in_it_again(tmp_path: Path) -> None:
    """Its body's product takes the time, and the loop itself next to none."""
    model = parse(
        "g (float[512, 512] x, int64 n, bool go) => (float[a, b] y) {"
        " y = Loop <body = body (int64 i, bool c, float[512, 512] h) => (bool c2, float[512, 512] h2) {"
        " c2 = Identity(c) h2 = MatMul(h, x) }> (n, go, x) }"
    )
    onnx.save(model, tmp_path / "model.onnx")
    feeds = {"x": np.full((512, 512), 1e-3, np.float32), "n": np.array(10), "go": np.array(True)}
    found = profiled(tmp_path / "model.onnx", feeds)
    by_name = {share.name: share for share in found.operators}
    assert by_name["MatMul"].share > 0.8
    assert by_name["Loop"].share < 0.2
    check_shares(found.operators)
