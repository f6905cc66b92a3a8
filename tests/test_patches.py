"""Each patch repairs what it says: without it the conversion loses the dim, with it the dim is kept."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from converters.attempts import Outcome, try_exporter
from converters.convert import usual_axes
from converters.exporters import EXPORTERS
from converters.flat import FlatModule
from converters.options import ConvertOptions
from converters.patches import GRAPH_PATCHES, TORCH_PATCHES, torch_patches
from converters.patches.replace import TorchPatch
from converters.points import make_points
from converters.ready import ready
from converters.sources import SourceRequest, open_source
from tests.architectures import ARCHITECTURES

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}

DYNAMO, TORCHSCRIPT = EXPORTERS[0], EXPORTERS[-1]

CASES = {
    "symbolic-int": ("beit", DYNAMO),
    "same-padding": ("mobilenet-v2", DYNAMO),
    "adaptive-pool": ("pvt-v2", DYNAMO),
    "dense-experts": ("mixtral", DYNAMO),
    "swin-patch-padding": ("swinv2", DYNAMO),
    "swin-merge-padding": ("swinv2", DYNAMO),
    "swin-window-padding": ("swinv2", DYNAMO),
    "mobilevit-patches": ("mobilevit", TORCHSCRIPT),
    "mobilevitv2-patches": ("mobilevitv2", DYNAMO),
    "rotary-cache-rows": ("llama", DYNAMO),
}
"""Patch → an architecture that needs it, and the exporter that can convert it then."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_without_the_patch_the_export_is_wrong(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all patches the graph passes at every point, and says it used this one; without it, not."""
    architecture, exporter = BY_NAME[CASES[name][0]], CASES[name][1]
    folder = architecture.save(tmp_path / "model")
    with ready(open_source(SourceRequest(folder, "model"))) as source:
        flat = FlatModule(source)
        points = make_points(flat, {}, usual_axes(source, flat))

        def attempt() -> Outcome:
            graph = tmp_path / "graphs/model.onnx"
            return try_exporter(exporter, flat, points, graph, ConvertOptions(), lambda _: None)

        whole = attempt()
        assert whole.reason is None
        assert name in whole.patches
        kept = tuple(patch for patch in TORCH_PATCHES if patch.name != name)
        monkeypatch.setattr("converters.patches.TORCH_PATCHES", kept)
        monkeypatch.delitem(GRAPH_PATCHES, name, raising=False)
        assert attempt().reason is not None


def test_every_patch_has_a_case() -> None:
    """A patch that nothing needs would be dead; attention-mask-rows is proved on a graph below."""
    names = {patch.name for patch in TORCH_PATCHES} | set(GRAPH_PATCHES)
    assert names == set(CASES) | {"attention-mask-rows"}


def test_a_torch_patch_leaves_no_trace() -> None:
    """Functions are themselves again afterwards, also after an error; unused patches are not recorded."""
    before = torch.nn.functional.adaptive_avg_pool2d
    with torch_patches() as used:
        assert torch.nn.functional.adaptive_avg_pool2d is not before
        torch.nn.functional.adaptive_avg_pool2d(torch.ones(1, 1, 4, 4), 2)
    assert torch.nn.functional.adaptive_avg_pool2d is before
    assert used == set()
    with pytest.raises(ZeroDivisionError), torch_patches():
        _ = 1 / 0
    assert torch.nn.functional.adaptive_avg_pool2d is before


def test_patches_do_not_touch_what_is_not_imported() -> None:
    """A patch of a module that is not loaded does nothing, and does not load it."""
    patch = TorchPatch("absent", ("a_module_that_does_not_exist:function",), lambda original: None)
    before = set(sys.modules)
    with patch.active(set()):
        assert set(sys.modules) == before


def test_adaptive_pool_equals_torch() -> None:
    """The replacement is torch's pooling, at sizes that are no multiple of the output's, too."""
    from converters.patches.adaptive_pool import ADAPTIVE_POOL

    for size, out in (((7, 5), 3), ((8, 6), (4, 2)), ((5, 9), (2, 7))):
        x = torch.randn(2, 3, *size)
        ours = ADAPTIVE_POOL.replacement(None, x, out)
        torch.testing.assert_close(ours, torch.nn.functional.adaptive_avg_pool2d(x, out))


def attention_graph() -> ir.Model:
    """Attention with a mask that has one row for all queries."""
    text = """<ir_version: 11, opset_import: ["": 23]>
    g (float[b, 2, s, 4] q, float[b, 2, s, 4] k, float[b, 2, s, 4] v, float[b, 1, 1, s] mask)
      => (float[b, 2, s, 4] y) { y = Attention(q, k, v, mask) }"""
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def test_attention_mask_rows() -> None:
    """ONNX Runtime answers as the operator's definition once the mask has a row for each query."""
    model = attention_graph()
    assert GRAPH_PATCHES["attention-mask-rows"](model)
    assert not GRAPH_PATCHES["rotary-cache-rows"](model)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, 2, 5, 4)).astype(np.float32) for _ in range(3))
    mask = np.where(rng.random((3, 1, 1, 5)) < 0.3, -1e4, 0).astype(np.float32)
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ours = session.run(None, {"q": q, "k": k, "v": v, "mask": mask})[0]
    truth = torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v, mask)))
    np.testing.assert_allclose(ours, truth, atol=1e-5)


def test_attention_that_has_its_rows_is_left_alone() -> None:
    """A mask with a row for each query stays as it is."""
    model = attention_graph()
    model.graph.inputs[3].shape = ir.Shape(["b", 1, "s", "s"])
    assert not GRAPH_PATCHES["attention-mask-rows"](model)
