"""An artifact in Celery's workers, which are forked unless another pool is chosen.

    MODEL=net.infer BROKER=redis://localhost celery --app celery_app worker --concurrency 2

A task takes inputs by name, as nested lists, and gives outputs.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

import infer

app = Celery("celery_app", broker=os.environ.get("BROKER", "memory://"), backend="cache+memory://")
model: infer.Session


@worker_process_init.connect
def open_model(**_: object) -> None:
    """In each process that works off tasks, after the fork. The pool `threads` has none: there, open the
    session on `worker_init`."""
    global model
    model = infer.load(os.environ["MODEL"], num_threads=1, spinning=False)


@worker_process_shutdown.connect
def close_model(**_: object) -> None:
    model.close()


@app.task
def answer(feeds: dict[str, Any]) -> dict[str, Any]:
    return {name: array.tolist() for name, array in model(feeds).items()}
