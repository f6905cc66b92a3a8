"""tensor-of-sizes: `torch.tensor([height, width])` of open sizes."""

from __future__ import annotations

from typing import Any

import torch

from converters.patches.replace import TorchPatch


def _tensor_of_sizes(
    original: Any, data: Any, *, dtype: torch.dtype | None = None, device: Any = None, **kwargs: Any
) -> torch.Tensor:
    if dtype is None:
        # what torch infers: one float among the numbers makes all floats
        floats = any(isinstance(leaf, (float, torch.SymFloat)) for leaf in _leaves(data))
        dtype = torch.get_default_dtype() if floats else torch.int64
    return _build(data, dtype, device)


def _build(data: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
    if isinstance(data, (list, tuple)):
        return torch.stack([_build(item, dtype, device) for item in data])
    if isinstance(data, torch.Tensor):
        return data.to(dtype=dtype, device=device)
    return torch.scalar_tensor(data, dtype=dtype, device=device)


def _leaves(data: Any) -> list[Any]:
    if isinstance(data, (list, tuple)):
        return [leaf for item in data for leaf in _leaves(item)]
    return [data]


def _holds_symbols(data: Any = None, *args: Any, **kwargs: Any) -> bool:
    return not args and any(isinstance(leaf, (torch.SymInt, torch.SymFloat)) for leaf in _leaves(data))


TENSOR_OF_SIZES = TorchPatch(
    "tensor-of-sizes", ("torch:tensor", "torch:as_tensor"), _tensor_of_sizes, _holds_symbols
)
"""Detection models keep the sizes of their feature maps in a tensor.

Without it, torch.export makes a constant of the example's sizes, and says nothing: the graph runs
at all sizes and is silently wrong at every other.
"""
