"""Optimum on a transformers folder: its own export, then O3 or a preset of dynamic quantization."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from optimum import onnxruntime as optimum
from optimum.onnxruntime.configuration import AutoOptimizationConfig, AutoQuantizationConfig

from bench.peers.model import Feeds, Given, Loaded, versions

_HEADS = (
    "SequenceClassification",
    "TokenClassification",
    "AudioClassification",
    "ImageClassification",
    "QuestionAnswering",
    "MaskedLM",
)
"""Architectures end in these, and so do Optimum's classes."""


def load(given: Given) -> Loaded:
    """Raises `ValueError` for a folder whose architecture Optimum has no class for."""
    (architecture,) = json.loads((Path(given.path) / "config.json").read_text(encoding="utf-8"))[
        "architectures"
    ]
    head = next((head for head in _HEADS if architecture.endswith(f"For{head}")), None)
    if head is None:
        raise ValueError(f"Optimum's classes end in {', '.join(_HEADS)}, and this is {architecture}")
    cls: Any = getattr(optimum, f"ORTModelFor{head}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    torch.set_num_threads(given.threads)

    def make(folder: Path) -> None:
        exported = cls.from_pretrained(given.path, export=True)
        if level := given.settings.get("optimization"):
            optimizer = optimum.ORTOptimizer.from_pretrained(exported)
            config = getattr(AutoOptimizationConfig, level)()
            optimizer.optimize(save_dir=folder, optimization_config=config)
        else:
            # as the guide has it, which is per_channel=False, too
            config = getattr(AutoQuantizationConfig, given.settings["quantization"])(
                is_static=False, per_channel=False
            )
            exported.save_pretrained(folder / "exported")
            quantizer = optimum.ORTQuantizer.from_pretrained(folder / "exported")
            quantizer.quantize(save_dir=folder, quantization_config=config)

    folder = given.once(make)
    (file,) = folder.glob("*.onnx")
    model = cls.from_pretrained(folder, file_name=file.name, session_options=options)

    def prepare(feeds: Feeds) -> Callable[[], Any]:
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
        return lambda: model(**tensors)

    how = given.settings.get("optimization") or f"dynamic int8, {given.settings['quantization']}"
    return Loaded(
        f"{how}, {versions('optimum', 'optimum-onnx', 'onnxruntime')}, threads {given.threads}",
        prepare,
        lambda found: {name: value.numpy() for name, value in found.items()},
    )
