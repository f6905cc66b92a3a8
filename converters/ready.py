"""Brings a source's module into the state it is converted in: eval mode, float32, no gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from converters.source import Source
from infer.errors import ConversionError


@contextmanager
def ready(source: Source) -> Iterator[Source]:
    """`source` ready to be asked, with a note for whatever had to change.

    The caller's own module is in its former mode again afterwards, and its weights are
    never touched.

    Gradients are off because attention takes another kernel, with another memory layout, where a
    mask needs one, as a trained relative position bias does. torch.export records the layout of one
    and the ONNX exporter decomposes with that of the other: "Cannot view a tensor with shape …".
    """
    module, notes = source.module, list(source.notes)
    halves = {
        str(t.dtype).removeprefix("torch.")
        for t in (*module.parameters(), *module.buffers())
        if t.dtype in (torch.float16, torch.bfloat16)
    }
    if halves:
        module = _copy(module).float()
        source = replace(source, args=_floats(source.args), kwargs=_floats(source.kwargs))
        notes.append(
            f"weights stored as {' and '.join(sorted(halves))} were widened to float32, which is exact"
        )
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    training = [part for part in module.modules() if part.training]
    if training:
        notes.append("the model was in training mode; it was converted in eval mode")
        module.eval()
    # torch's fast path of Transformer layers answers zeros at padded positions; nothing else does, the
    # layers themselves in training among them
    fast_path = torch.backends.mha.get_fastpath_enabled()
    if fast_path and any(isinstance(part, torch.nn.TransformerEncoder) for part in module.modules()):
        notes.append("torch's fast path for Transformer layers was off: padded positions have no zeros")
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield replace(source, module=module, notes=tuple(notes))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter in trained:
            parameter.requires_grad_(True)
        for part in training:
            part.training = True


def _copy(module: Any) -> Any:
    try:
        return copy.deepcopy(module)
    except Exception as error:  # old-style weight_norm keeps tensors that cannot be copied
        raise ConversionError(
            f"the model has half-precision weights, and a copy to widen cannot be made of it"
            f" ({' '.join(str(error).split())[:200]}); call model.float() before converting, or take"
            f" weight norm off with torch.nn.utils.remove_weight_norm"
        ) from error


def _floats(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_floats(item) for item in value)
    return value
