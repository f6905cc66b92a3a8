"""Named repairs of small constructs that exporters get wrong. One file each, three explicit tables.

A *torch patch* replaces one function while an exporter traces the model, a *translation* writes an
operator that the dynamo exporter does not know, and a *graph patch* edits what came out. Each
says what is wrong without it and changes only what it recognises. The original is asked for its
answers with no patch active, so parity at all points judges every patch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from converters.patches.adaptive_pool import ADAPTIVE_POOL
from converters.patches.attention_mask_rows import attention_mask_rows
from converters.patches.causal_mask_check import CAUSAL_MASK_CHECK
from converters.patches.float_minus_int import FLOAT_MINUS_INT
from converters.patches.grouped_mm import grouped_mm
from converters.patches.mobilevit_patches import MOBILEVIT_PATCHES, MOBILEVITV2_PATCHES
from converters.patches.open_linspace import OPEN_LINSPACE
from converters.patches.packed_states import PACKED_STATES
from converters.patches.replace import TorchPatch
from converters.patches.rotary_cache_rows import rotary_cache_rows
from converters.patches.same_padding import SAME_PADDING
from converters.patches.swin_padding import SWIN_MERGING, SWIN_PATCHES, SWIN_WINDOWS
from converters.patches.swin_shift import SWIN_SHIFT
from converters.patches.symbolic_int import SYMBOLIC_INT
from converters.patches.tensor_of_sizes import TENSOR_OF_SIZES

GraphPatch = Callable[[ir.Model], bool]
"""Changes the model in place; whether it did."""

TORCH_PATCHES: tuple[TorchPatch, ...] = (
    SYMBOLIC_INT,
    TENSOR_OF_SIZES,
    OPEN_LINSPACE,
    FLOAT_MINUS_INT,
    ADAPTIVE_POOL,
    CAUSAL_MASK_CHECK,
    PACKED_STATES,
    SAME_PADDING,
    SWIN_PATCHES,
    SWIN_WINDOWS,
    SWIN_MERGING,
    *SWIN_SHIFT,
    *MOBILEVIT_PATCHES,
    *MOBILEVITV2_PATCHES,
)
"""Active while an exporter runs. They replace different functions, so their order is free."""

TRANSLATIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "grouped-mm": ("transformers::grouped_mm_fallback", grouped_mm),
}
"""Patch → torch operator, and the function that writes it as ONNX operators."""

GRAPH_PATCHES: dict[str, GraphPatch] = {
    "rotary-cache-rows": rotary_cache_rows,
    "attention-mask-rows": attention_mask_rows,
}
"""Applied to every exported graph, in this order."""


@dataclass(frozen=True)
class Active:
    """Patches in force. `used` gathers the names of those that did something; `translations` are for
    the dynamo exporter, by operator."""

    used: set[str] = field(default_factory=set)
    translations: Mapping[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)


@contextmanager
def torch_patches() -> Iterator[Active]:
    """Activate all torch patches and translations."""
    used: set[str] = set()
    with ExitStack() as stack:
        for patch in TORCH_PATCHES:
            stack.enter_context(patch.active(used))
        yield Active(used, _translations(used))


def _translations(used: set[str]) -> dict[Callable[..., Any], Callable[..., Any]]:
    # operators whose library was not imported do not exist, and need none
    table: dict[Callable[..., Any], Callable[..., Any]] = {}
    for name, (operator, translate) in TRANSLATIONS.items():
        library, _, function = operator.partition("::")
        if hasattr(getattr(torch.ops, library), function):
            table[getattr(getattr(torch.ops, library), function).default] = _noted(name, translate, used)
    return table


def _noted(name: str, translate: Callable[..., Any], used: set[str]) -> Callable[..., Any]:
    @functools.wraps(translate)
    def noted(*args: Any, **kwargs: Any) -> Any:
        used.add(name)
        return translate(*args, **kwargs)

    return noted


def apply_graph_patches(model: ir.Model) -> tuple[str, ...]:
    """Apply all graph patches in place; the names of those that changed something."""
    return tuple(name for name, patch in GRAPH_PATCHES.items() if patch(model))
