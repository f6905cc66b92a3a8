"""Named repairs of small constructs that exporters get wrong. One file each, two explicit tables.

A *torch patch* replaces one function while an exporter traces the model; a *graph patch* edits what
came out. Either says what is wrong without it and changes only what it recognises. The original
is asked for its answers with no patch active, so parity at all points judges every patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import onnx_ir as ir

from converters.patches.adaptive_pool import ADAPTIVE_POOL
from converters.patches.attention_mask_rows import attention_mask_rows
from converters.patches.dense_experts import DENSE_EXPERTS
from converters.patches.mobilevit_patches import MOBILEVIT_PATCHES, MOBILEVITV2_PATCHES
from converters.patches.replace import TorchPatch
from converters.patches.rotary_cache_rows import rotary_cache_rows
from converters.patches.same_padding import SAME_PADDING
from converters.patches.swin_padding import SWIN_MERGING, SWIN_PATCHES, SWIN_WINDOWS
from converters.patches.symbolic_int import SYMBOLIC_INT

GraphPatch = Callable[[ir.Model], bool]
"""Changes the model in place; whether it did."""

TORCH_PATCHES: tuple[TorchPatch, ...] = (
    SYMBOLIC_INT,
    ADAPTIVE_POOL,
    SAME_PADDING,
    DENSE_EXPERTS,
    SWIN_PATCHES,
    SWIN_MERGING,
    SWIN_WINDOWS,
    *MOBILEVIT_PATCHES,
    *MOBILEVITV2_PATCHES,
)
"""Active while an exporter runs. They replace different functions, so their order is free."""

GRAPH_PATCHES: dict[str, GraphPatch] = {
    "rotary-cache-rows": rotary_cache_rows,
    "attention-mask-rows": attention_mask_rows,
}
"""Applied to every exported graph, in this order."""


@contextmanager
def torch_patches() -> Iterator[set[str]]:
    """Activate all torch patches; the names of those that were used gather in what is yielded."""
    used: set[str] = set()
    with ExitStack() as stack:
        for patch in TORCH_PATCHES:
            stack.enter_context(patch.active(used))
        yield used


def apply_graph_patches(model: ir.Model) -> tuple[str, ...]:
    """Apply all graph patches in place; the names of those that changed something."""
    return tuple(name for name, patch in GRAPH_PATCHES.items() if patch(model))
