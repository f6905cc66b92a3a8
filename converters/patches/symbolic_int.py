"""symbolic-int: sizes that pass through `torch_int` stay open."""

from __future__ import annotations

from typing import Any

import torch

from converters.patches.replace import TorchPatch


def _symbolic_int(original: Any, x: Any) -> Any:
    return x if isinstance(x, torch.SymInt) else torch.sym_int(x)


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, (torch.SymInt, torch.SymFloat))


SYMBOLIC_INT = TorchPatch("symbolic-int", ("transformers.models.*:torch_int",), _symbolic_int, _is_symbolic)
"""`transformers.utils.torch_int` keeps sizes open under TorchScript, but calls int() under torch.export.

Without it, position embeddings (DINOv2) and relative biases (BEiT) are interpolated to the size
of the example, and the graph fails at every other.
"""
