"""causal-mask-check: torch's own Transformer layers with a mask."""

from __future__ import annotations

from typing import Any

from converters.patches.replace import TorchPatch


def _not_said(original: Any, mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return False


def _is_asked(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is None and mask is not None


CAUSAL_MASK_CHECK = TorchPatch(
    "causal-mask-check",
    ("torch.nn.modules.transformer:_detect_is_causal_mask",),
    _not_said,
    _is_asked,
)
"""`nn.Transformer` and its encoder and decoder look at the values of a mask, to choose a faster kernel
if it is causal. The mask itself is applied either way.

Without it, torch.export fails on the look ("Could not guard on data-dependent expression"), and only
TorchScript is left, which keeps the lengths of the example.
"""
