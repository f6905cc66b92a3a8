"""swin-shift: whether Swin shifts its windows is decided when the graph runs."""

from __future__ import annotations

from typing import Any

import torch

from converters.patches.replace import TorchPatch, symbolic

_LAYER = "transformers.models.swin.modeling_swin:SwinLayer."


def _set_shift(original: Any, self: Any, input_resolution: tuple[Any, Any]) -> None:
    # The windows keep their size: a smaller image would need a smaller bias than was trained, and
    # fails in the original. One as large as a window is not shifted: the factor is then 0, else 1.
    height, width = input_resolution
    room = torch.sym_min(height, width) - self.window_size
    if self.shift_size:
        self.shift_size = self.shift_size * torch.sym_max(0, torch.sym_min(1, room))


def _sizes_are_open(self: Any, input_resolution: tuple[Any, Any]) -> bool:
    return any(isinstance(size, torch.SymInt) for size in input_resolution)


def _cyclic_shift(
    original: Any, self: Any, hidden_states: torch.Tensor, reverse: bool = False
) -> torch.Tensor:
    for axis in (1, 2):
        size = hidden_states.shape[axis]
        # modulo of a symbol has no ONNX translation, and the sum is less than twice the size
        index = torch.arange(size) + (size - self.shift_size if reverse else self.shift_size)
        hidden_states = hidden_states.index_select(axis, torch.where(index >= size, index - size, index))
    return hidden_states


def _attention_mask(
    original: Any, self: Any, height: Any, width: Any, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    # as in the original; with a shift of 0 the regions end where windows do, so the mask is all 0
    from transformers.models.swin.modeling_swin import window_partition

    regions = [
        (torch.arange(size) >= size - self.window_size).long()
        + (torch.arange(size) >= size - self.shift_size).long()
        for size in (height, width)
    ]
    region = (regions[0][None, :, None, None] * 3 + regions[1][None, None, :, None]).to(dtype)
    windows = window_partition(region, self.window_size).view(-1, self.window_size * self.window_size)
    apart = windows.unsqueeze(1) != windows.unsqueeze(2)
    return apart.to(dtype) * -100.0


def _shift_is_open(self: Any, *args: Any, **kwargs: Any) -> bool:
    return symbolic(self.shift_size)


SWIN_SHIFT = (
    TorchPatch("swin-shift", (_LAYER + "set_shift_and_window_size",), _set_shift, _sizes_are_open),
    TorchPatch("swin-shift", (_LAYER + "cyclic_shift",), _cyclic_shift, _shift_is_open),
    TorchPatch("swin-shift", (_LAYER + "get_attn_mask",), _attention_mask, _shift_is_open),
)
"""Swin shifts the windows of every second layer, unless the whole stage is one window.

The last stage of the usual Swin is exactly one window at the trained size. Without these,
its graph never shifts that stage and is silently wrong at every larger size.
"""
