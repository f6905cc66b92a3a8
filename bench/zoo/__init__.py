"""The zoo: one small file for each model family, with real weights or trained on real data.

A family's file has

    WEIGHTS     "real", "trained here" or "random"
    build()     the model and its example inputs, as `infer convert bench/zoo/NAME.py:build` takes them;
                or folder(), where a transformers or sentence-transformers folder is
    task()      what the model is for; not needed with folder()
    files()     files the task names, if it names any: `files/NAME` → path
    samples()   a few real inputs
    calibration()
                other inputs, to calibrate quantization with; not where dataset() has enough
    dataset()   held-out inputs with their answers; not where there are none
    pipeline()  the model as its own library runs it, a function of one sample; where there is one

    python -m bench.zoo list | build NAME -o FOLDER | table [NAME…] [--json]
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import converters
from infer.artifact import Artifact

FAMILIES: dict[str, str] = {
    "feed-forward": "a 10-5-2 net on breast cancer measurements",
    "german-credit": "embeddings and numbers on credit applications",
    "diabetes": "a small net that predicts the progress of a disease",
    "ncf": "neural collaborative filtering on MovieLens-100k; scores all films",
    "dlrm": "DLRM-style recommender on MovieLens-100k; scores pairs",
    "efficientnet-lite0": "ImageNet classifier",
    "fashion-detector": "one-stage detector of clothes in scenes pasted from Fashion-MNIST",
    "resnet18": "ResNet-18, small, on Fashion-MNIST",
    "resnet50": "ImageNet classifier, architecture only",
    "densenet121": "ImageNet classifier, architecture only",
    "inception-v3": "ImageNet classifier with an auxiliary head, architecture only",
    "vgg16": "ImageNet classifier, architecture only",
    "unet-nuclei": "U-Net, cell nuclei in 16-bit microscopy",
    "unet-nuclei-3d": "3-D U-Net, synthetic nuclei in a 16-bit volume",
    "inception-resnet": "face embedding, Inception-ResNet-v1",
    "fashion-embedding": "embedding of Fashion-MNIST, asked about unseen kinds",
    "minilm": "sentence encoder all-MiniLM-L6-v2",
    "sentiment": "MiniLM fine-tuned on film and product reviews",
    "voices": "a small spectrogram transformer that tells two voices apart",
    "resemblyzer": "speaker encoder, three LSTM layers",
    "silero-vad": "voice activity, a recurrent network",
}
"""Name → what it is. The file is called the same, with `_` for `-`."""

FULL_SIZE: dict[str, str] = {
    "bert-base": "BERT-base on 128 tokens, architecture only",
    "vit-base": "ViT-B/16, architecture only",
    "detr-resnet50": "DETR on 480 × 640 pixels, architecture only",
    "gpt2": "GPT-2 on 64 tokens, a plain forward pass, architecture only",
    "whisper-base-encoder": "the encoder of Whisper base, architecture only",
}
"""Name → what it is; in `bench/full_size.py`. They have no task, and are measured for speed."""


def family(name: str) -> Any:
    """The module of a family, or the entry of one of full size."""
    if name in FULL_SIZE:
        return importlib.import_module("bench.full_size").BUILDS[name]
    return importlib.import_module(f"bench.zoo.{name.replace('-', '_')}")


def source(name: str) -> Any:
    """What `infer convert` and `infer eval --against` call the family's model."""
    module = family(name)
    if hasattr(module, "source"):
        return module.source
    return str(module.folder()) if hasattr(module, "folder") else f"{module.__name__}:build"


def convert(name: str, output: Path, **options: Any) -> Artifact:
    """Train or load the family's model, and convert it to `output`."""
    module = family(name)
    return converters.convert(
        source(name),
        output,
        task=module.task() if hasattr(module, "task") else None,
        files=module.files() if hasattr(module, "files") else None,
        **options,
    )
