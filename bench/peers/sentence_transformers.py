"""sentence-transformers with each of its backends, on tokens or on sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from bench.peers.model import Feeds, Given, Loaded, versions
from bench.peers.ours import SENTENCES
from infer.signature import Array


def load(given: Given) -> Loaded:
    """The pipeline of the folder. Tokens go through all its modules, sentences through `encode`."""
    torch.set_num_threads(given.threads)
    backend = given.settings["backend"]
    if backend == "torch":
        model = SentenceTransformer(given.path, device="cpu")
        described = f"torch backend, {versions('sentence-transformers', 'torch')}"
    else:
        model, how = _onnx(given)
        packages = versions("sentence-transformers", "optimum-onnx", "onnxruntime")
        described = f"ONNX backend{how}, {packages}"

    def prepare(feeds: Feeds) -> Callable[[], Any]:
        if SENTENCES in feeds:
            sentences = feeds[SENTENCES].tolist()
            return lambda: model.encode(sentences, show_progress_bar=False)
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}

        def call() -> Any:
            with torch.inference_mode():
                return model(dict(tensors))["sentence_embedding"]  # which adds to what it gets

        return call

    def answers(found: Any) -> dict[str, Array]:
        return {"sentence_embedding": found.numpy() if isinstance(found, torch.Tensor) else found}

    return Loaded(f"{described}, threads {given.threads}", prepare, answers)


def _onnx(given: Given) -> tuple[Any, str]:
    """Through Optimum's export, optimized or quantized by the library's own functions."""
    import onnxruntime
    from sentence_transformers import backend

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    kwargs = {"provider": "CPUExecutionProvider", "session_options": options}
    level, preset = given.settings.get("optimization"), given.settings.get("quantization")

    def make(folder: Path) -> None:
        plain = SentenceTransformer(given.path, backend="onnx", device="cpu", model_kwargs={"export": True})
        plain.save_pretrained(str(folder))
        if level:
            backend.export_optimized_onnx_model(plain, level, str(folder))
        if preset:
            backend.export_dynamic_quantized_onnx_model(plain, preset, str(folder))

    folder = given.once(make)
    files = sorted((folder / "onnx").glob("*.onnx"), key=lambda file: file.name == "model.onnx")
    model = SentenceTransformer(
        str(folder),
        backend="onnx",
        device="cpu",
        model_kwargs={**kwargs, "file_name": f"onnx/{files[0].name}"},
    )
    return model, f", {level}" if level else f", dynamic int8, {preset}" if preset else ""
