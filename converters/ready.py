"""Brings a source's module into the state it is converted in: eval mode, float32, no gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from converters.scaffolding import copied, fold, has_compiled_parts, has_computed_weights
from converters.source import Source
from infer.errors import ConversionError


@contextmanager
def ready(source: Source) -> Iterator[Source]:
    """`source` ready to be asked, with a note for whatever had to change.

    The caller's own module is in its former mode again afterwards, and its weights are
    never touched. Raises `ConversionError` for a module whose weights do not exist yet.

    Gradients are off because attention takes another kernel, with another memory layout, where a
    mask needs one, as a trained relative position bias does. torch.export records the layout of one
    and the ONNX exporter decomposes with that of the other: "Cannot view a tensor with shape …".
    """
    module, notes = source.module, list(source.notes)
    weights = [*module.named_parameters(), *module.named_buffers()]
    if shapeless := [name for name, p in weights if is_lazy(p)]:
        raise ConversionError(
            f"{source.described} has weights without a shape yet ({', '.join(shapeless[:4])}), because its"
            f" lazy layers were never called; load trained weights into it (--weights) first"
        )
    halves = {
        str(t.dtype).removeprefix("torch.")
        for t in (*module.parameters(), *module.buffers())
        if t.dtype in (torch.float16, torch.bfloat16)
    }
    computed = has_computed_weights(module)
    # a lazy layer becomes an ordinary one when it is first called, which changes its class
    lazy = any(isinstance(part, LazyModuleMixin) for part in module.modules())
    if halves or computed or lazy:
        module = copied(module)
    if halves:
        module = module.float()
        source = replace(source, args=_floats(source.args), kwargs=_floats(source.kwargs))
        notes.append(
            f"weights stored as {' and '.join(sorted(halves))} were widened to float32, which is exact"
        )
    training = [part for part in module.modules() if part.training]
    if training:
        notes.append("the model was in training mode; it was converted in eval mode")
        module.eval()
    if computed:
        notes.append(fold(module))
    if lazy:
        with torch.no_grad(), suppress(Exception):  # if it fails, it will be asked again, and that be said
            module(*source.args, **source.kwargs)
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    # compiling a part takes minutes, and hides it from exporters
    stance: Any = nullcontext()
    if has_compiled_parts(module):
        stance = torch.compiler.set_stance("force_eager")
        notes.append("parts wrapped by torch.compile were converted as they are written")
    # torch's fast path of Transformer layers answers zeros at padded positions; nothing else does, the
    # layers themselves in training among them
    fast_path = torch.backends.mha.get_fastpath_enabled()
    if fast_path and any(isinstance(part, torch.nn.TransformerEncoder) for part in module.modules()):
        notes.append("torch's fast path for Transformer layers was off: padded positions have no zeros")
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with stance:
            yield replace(source, module=module, notes=tuple(notes))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter in trained:
            parameter.requires_grad_(True)
        for part in training:
            part.training = True


def _floats(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_floats(item) for item in value)
    return value
