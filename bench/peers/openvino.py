"""OpenVINO on the plain export: as float32, or quantized after training by NNCF."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from bench.peers.model import Feeds, Given, Loaded, versions

_SIZES = 8
"""So many compiled models are kept, beside those that queries hold; each has weights of its own."""


def load(given: Given) -> Loaded:
    """The latency hint, one request, memory shared with numpy, and shapes fixed to those of the feeds where
    the model allows it, as its pages on latency and on dynamic shapes advise.

    Fixed shapes were 5 to 16 % faster here. Processors with bfloat16 or float16 units would compute in
    these by default, which is no float32: that has a peer of its own.
    """
    core = ov.Core()
    described = versions("openvino")
    if given.settings["precision"] == "int8":
        model, said = _quantized(given, core)
        described = f"int8 by {versions('nncf')} ({said}), {described}"
    else:
        model = core.read_model(given.path)
    hint = given.settings.get("hint", "f32")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": given.threads,
        "INFERENCE_PRECISION_HINT": hint,
    }
    taken = {value.get_any_name() for value in model.inputs}
    names = [value.get_any_name() for value in model.outputs]

    @lru_cache(_SIZES)
    def compiled(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Any:
        fixed = model.clone()
        fixed.reshape({name: list(shape) for name, shape in shapes})
        return core.compile_model(fixed, "CPU", settings)

    open_shapes: Any = None
    try:
        compiled(_shapes(given.example(), taken))
    except RuntimeError:  # a graph that computes with the sizes of its example
        open_shapes = core.compile_model(model, "CPU", settings)

    def prepare(feeds: Feeds) -> Callable[[], Any]:
        wanted = {name: array for name, array in feeds.items() if name in taken}
        request = (open_shapes or compiled(_shapes(feeds, taken))).create_infer_request()
        return lambda: request.infer(wanted, share_inputs=True, share_outputs=True)

    sizes = "shapes as exported" if open_shapes else "compiled for each size"
    return Loaded(
        f"{described}, {hint}, latency hint, {sizes}, threads {given.threads}",
        prepare,
        lambda found: {name: np.array(found[i]) for i, name in enumerate(names)},
    )


def _shapes(feeds: Feeds, taken: Collection[str]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, array.shape) for name, array in feeds.items() if name in taken)


def _quantized(given: Given, core: Any) -> tuple[Any, str]:
    """The model with int8 products, and how it was made."""
    said = "said.txt"

    def make(folder: Path) -> None:
        import nncf

        model = core.read_model(given.path)
        feeds = given.calibration()
        attends = _attends(model)
        quantized = nncf.quantize(
            model,
            nncf.Dataset(feeds, lambda each: dict(each)),
            subset_size=len(feeds),
            target_device=nncf.TargetDevice.CPU,
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
        )
        ov.save_model(quantized, folder / "model.xml")
        told = f"calibrated with {len(feeds)} inputs{', model type transformer' if attends else ''}"
        (folder / said).write_text(told, encoding="utf-8")

    folder = given.once(make)
    return core.read_model(folder / "model.xml"), (folder / said).read_text(encoding="utf-8")


def _attends(model: Any) -> bool:
    """Whether it is what NNCF calls a transformer: it has attention."""
    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        if kind == "ScaledDotProductAttention":
            return True
        # weights of attention are (batch, head, query, key)
        if kind == "Softmax" and op.get_output_partial_shape(0).rank == ov.Dimension(4):
            return True
    return False
