"""An artifact behind Flask and gunicorn, whose workers are forked.

    MODEL=net.infer gunicorn --config gunicorn_conf.py flask_app:app

POST /answer takes a JSON object of inputs by name, as nested lists, and gives one of outputs.
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request

import infer

app = Flask(__name__)
model: infer.Session


def open_model(num_threads: int | None = None) -> None:
    """In each worker, after the fork, with its share of the cores: see gunicorn_conf.py."""
    global model
    model = infer.load(os.environ["MODEL"], num_threads=num_threads, spinning=False)


@app.post("/answer")
def answer() -> dict[str, Any]:
    outputs = model.batcher(request.get_json())  # requests in other threads of this worker join it
    return {name: array.tolist() for name, array in outputs.items()}


@app.errorhandler(infer.FeedError)
@app.errorhandler(infer.InputError)
def wrong(error: Exception) -> tuple[dict[str, str], int]:
    return {"error": str(error)}, 400


@app.errorhandler(infer.OverloadedError)
@app.errorhandler(infer.SessionClosedError)
def unable(error: Exception) -> tuple[dict[str, str], int, dict[str, str]]:
    return {"error": str(error)}, 503, {"Retry-After": "1"}
