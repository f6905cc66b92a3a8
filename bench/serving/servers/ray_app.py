"""Ray Serve, with its batching."""

from __future__ import annotations

import os
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from bench.serving.servers.model import Model


@serve.deployment(
    num_replicas=int(os.environ["WORKERS"]), max_ongoing_requests=64, ray_actor_options={"num_cpus": 1}
)
class Embed:
    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)
    async def embed(self, texts: list[str]) -> list[Any]:
        return list(self.model(texts))

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        vector = await self.embed((await request.json())["text"])
        return {"vector": vector.tolist()}


if __name__ == "__main__":
    names = ("GRAPH", "TOKENIZER", "THREADS", "WORKERS", "PYTHONPATH")
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        logging_level="error",
        runtime_env={"env_vars": {name: os.environ[name] for name in names}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Embed.bind(), route_prefix="/embed")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
