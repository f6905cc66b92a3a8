"""adaptive-pool: average pooling to a fixed size from a size known only at run time."""

from __future__ import annotations

from typing import Any

import torch

from converters.patches.replace import TorchPatch, symbolic


def _adaptive_pool(original: Any, input: torch.Tensor, output_size: Any) -> torch.Tensor:
    wanted = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    high, wide = (
        _averages(size, size if out is None else out, input)
        for size, out in zip(input.shape[-2:], wanted, strict=True)
    )
    return high @ input @ wide.transpose(0, 1)


def _averages(size: Any, out: Any, like: torch.Tensor) -> torch.Tensor:
    """shape = (out, size): row i averages elements floor(i·size/out) to ceil((i+1)·size/out)."""
    row = torch.arange(out, device=like.device)[:, None]
    element = torch.arange(size, device=like.device)[None, :]
    start, end = row * size // out, ((row + 1) * size + out - 1) // out
    inside = (element >= start) & (element < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)


def _sizes_are_open(input: torch.Tensor, output_size: Any) -> bool:
    # one pixel is a mean, which exporters get right
    return output_size not in (1, (1, 1), [1, 1]) and symbolic(*input.shape[-2:])


ADAPTIVE_POOL = TorchPatch(
    "adaptive-pool", ("torch.nn.functional:adaptive_avg_pool2d",), _adaptive_pool, _sizes_are_open
)
"""ONNX has no adaptive pooling, so exporters turn it into pooling with the example's kernel.

Without it, the graph is silently wrong at sizes that are no multiple of the output's (dynamo), or
there is none (TorchScript).
"""
