"""When a server says that it is ready, and what it gives each of its models."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import infer.session as session_module
from infer.artifact import Artifact
from infer.errors import FeedError
from infer.machine import this_machine
from infer.server import models as models_module
from infer.server.app import make_app
from infer.server.models import Models
from infer.server.options import ServerOptions
from infer.server.service import Service
from tests.tiny import make_artifact, write
from tests.waiting import WAIT_S


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two models."""
    return [make_artifact(tmp_path / f"{name}.infer") for name in ("first", "second")]


def test_it_is_ready_when_all_models_are_loaded(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """503 while the second one loads, 200 after it; of its models, the first is ready before."""
    begun, free = threading.Event(), threading.Event()
    opened = models_module.open_session

    def opened_late(artifact: Any, *given: Any) -> Any:
        if artifact.path == paths[1]:
            begun.set()
            assert free.wait(WAIT_S)
        return opened(artifact, *given)

    monkeypatch.setattr(models_module, "open_session", opened_late)
    options = ServerOptions()
    service = Service(Models(paths, options), options)

    async def stop() -> None:
        pass

    async def ask() -> tuple[list[int], list[int]]:
        transport = httpx.ASGITransport(make_app(service, lambda: None, stop))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

            async def statuses() -> list[int]:
                asked = ("health/ready", "models/first/ready", "models/second/ready", "health/live")
                return [(await client.get(f"/v2/{path}")).status_code for path in asked]

            loading = asyncio.ensure_future(service.load_at_start())
            assert await asyncio.to_thread(begun.wait, WAIT_S)
            before = await statuses()
            free.set()
            await loading
            return before, await statuses()

    try:
        assert asyncio.run(ask()) == ([503, 200, 503, 200], [200, 200, 200, 200])
    finally:
        free.set()
        service.close()


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_workers_divide_the_cores(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, workers: int, threads: int
) -> None:
    """Of eight, each worker's models have their share, and one at least."""
    machine = replace(this_machine(), cores=8)
    for module in ("infer.server.models", "infer.planner"):
        monkeypatch.setattr(f"{module}.this_machine", lambda: machine, raising=False)
    found = Models(paths, ServerOptions(workers=workers))
    assert [model.plan.num_threads for model in found] == [threads, threads]
    found.close()


def test_each_model_is_warmed_up_at_the_sizes_that_it_has(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its own dims; one that has none of them runs a row of its example. And a run's arrays are
    limited, however they come."""
    fixed = write(tmp_path, "g (float[2, 3] x) => (float[2, 3] y) { y = Abs(x) }", "fixed.onnx")
    ran: list[tuple[str, Any]] = []
    warm_up = session_module.warm_up

    def spied(artifact: Artifact, plan: Any, run: Any, wish: Any) -> None:
        ran.append((artifact.location.name, wish))
        warm_up(artifact, plan, run, wish)

    monkeypatch.setattr(session_module, "warm_up", spied)
    options = ServerOptions(warm_up=({"batch": 2}, {"batch": 4}), max_feed_bytes=400)
    models = Models([paths[0], fixed], options)
    models.load_at_start()
    assert ran == [("first.infer", [{"batch": 2}, {"batch": 4}]), ("fixed.onnx", True)]
    held = models.hold(models.get("first"))
    held.session.batcher.run({"x": np.zeros((10, 10), np.float32)})
    with pytest.raises(FeedError, match="440 bytes"):
        held.session.batcher.run({"x": np.zeros((11, 10), np.float32)})
    held.leave()
    models.close()
