"""How gunicorn serves `flask_app`: two workers of four threads each, which share the cores."""

from __future__ import annotations

from typing import Any

workers = 2
threads = 4
preload_app = True  # what workers import is loaded once; they are forked from that


def post_fork(server: Any, worker: Any) -> None:
    """In each worker, after the fork: a session's threads would not have come along."""
    import flask_app

    import infer

    flask_app.open_model(num_threads=max(1, infer.this_machine().cores // workers))
