"""LitServe, with its batching."""

from __future__ import annotations

import os
from typing import Any

import litserve

from bench.serving.servers.model import Model


class Embed(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, texts: list[str]) -> Any:
        return self.model(texts)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        return {"vector": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        Embed(max_batch_size=16, batch_timeout=0.005),
        accelerator="cpu",
        workers_per_device=int(os.environ["WORKERS"]),
    )
    server.run(
        host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning"
    )
