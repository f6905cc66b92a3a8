"""ONNX Runtime on the plain export, with the settings its own pages give for latency on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime

from bench.peers.model import Feeds, Given, Loaded, versions


def load(given: Given) -> Loaded:
    """All graph optimizations, which is the default, and as many threads as the others get."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = given.threads
    session = onnxruntime.InferenceSession(given.path, options, providers=["CPUExecutionProvider"])
    taken = [value.name for value in session.get_inputs()]
    names = [value.name for value in session.get_outputs()]

    def prepare(feeds: Feeds) -> Callable[[], Any]:
        wanted = {name: feeds[name] for name in taken}
        return lambda: session.run(None, wanted)

    return Loaded(
        f"{versions('onnxruntime')} on the plain export, threads {given.threads}",
        prepare,
        lambda found: dict(zip(names, found, strict=True)),
    )
