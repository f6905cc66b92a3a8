"""FastAPI: a plain function, which runs in its thread pool."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from bench.serving.servers.model import Model

app = FastAPI()
model = Model()


class Asked(BaseModel):
    text: str


@app.post("/embed")
def embed(asked: Asked) -> dict[str, list[float]]:
    return {"vector": model([asked.text])[0].tolist()}
