"""open-linspace: `torch.linspace` with as many steps as a size that is known only at run time."""

from __future__ import annotations

from typing import Any

import torch

from converters.patches.replace import TorchPatch


def _open_linspace(
    original: Any,
    start: Any,
    end: Any,
    steps: Any,
    *,
    dtype: torch.dtype | None = None,
    device: Any = None,
    **kwargs: Any,
) -> torch.Tensor:
    # as torch computes it: from both ends towards the middle, so that the last value is `end` itself
    dtype = dtype or torch.get_default_dtype()
    first, last, intervals = (
        torch.scalar_tensor(value, dtype=dtype, device=device)
        for value in (start, end, torch.sym_max(steps - 1, 1))
    )
    step = (last - first) / intervals
    index = torch.arange(steps, device=device)
    up = first + step * index.to(dtype)
    down = last - step * (steps - 1 - index).to(dtype)
    # a single value is `start`
    return torch.where(index < torch.sym_max(steps // 2, 1), up, down)


def _steps_are_open(start: Any, end: Any, steps: Any = None, **kwargs: Any) -> bool:
    return isinstance(steps, torch.SymInt)


OPEN_LINSPACE = TorchPatch("open-linspace", ("torch:linspace",), _open_linspace, _steps_are_open)
"""Grids of reference points are made with linspace.

Without it, the dynamo exporter keeps the example's number of steps, and the graph fails, or is
silently wrong where the frozen grid broadcasts, at every other size.
"""
