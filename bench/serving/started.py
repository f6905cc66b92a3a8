"""A server in a process of its own, ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.peers.environment import prepare
from bench.peers.places import ROOT
from bench.serving import Server
from bench.serving.client import HttpQuery, request
from infer.errors import InferError
from infer.machine import this_machine, usable_cpus

_START_S = 120.0


@dataclass(frozen=True)
class Started:
    """Where it listens, and its first process."""

    port: int
    pid: int


@contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """This thread, and what it starts, run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def started(server: Server, artifact: Path, workers: int = 1) -> Iterator[Started]:
    """The server, on this thread's cores, once it answers; it is ended afterwards. Raises `InferError` if
    it does not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        "artifact": str(artifact),
        "graph": str(artifact / "graphs" / "fp32.onnx"),
        "tokenizer": str(next(artifact.rglob("tokenizer.json"), "")),
        "port": str(port),
        "workers": str(workers),
        "threads": str(max(1, min(this_machine().cores, usable_cpus()) // workers)),
    }
    command = [str(prepare(server.requirements)), *(part.format(**places) for part in server.command)]
    environment = {
        **os.environ,
        **server.environment,
        **{name.upper(): value for name, value in places.items()},
        "PYTHONPATH": str(ROOT),
    }
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=printed, stderr=printed, start_new_session=True
        )
        try:
            _await(server, process, port, printed)
            yield Started(port, process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _await(server: Server, process: subprocess.Popen[bytes], port: int, printed: object) -> None:
    query = HttpQuery(port, [request(server.path, json.dumps(server.body("a sentence")).encode())])
    until = time.monotonic() + _START_S
    while True:
        try:
            query.answer(0)
            return
        except (OSError, InferError, StopIteration, RuntimeError) as error:
            if process.poll() is not None or time.monotonic() > until:
                printed.seek(0)  # type: ignore[attr-defined]
                said = printed.read().decode(errors="replace")[-1500:]  # type: ignore[attr-defined]
                raise InferError(f"{server.name} does not answer ({error}): {said}") from error
            time.sleep(0.2)
