"""BentoML, with its adaptive batching."""

from __future__ import annotations

import os

import bentoml
import numpy as np

from bench.serving.servers.model import Model


@bentoml.service(workers=int(os.environ["WORKERS"]), traffic={"timeout": 30})
class Embed:
    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=10_000)
    def embed(self, texts: list[str]) -> np.ndarray:  # type: ignore[type-arg]
        return self.model(texts)
