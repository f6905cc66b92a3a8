"""Serving: in this process, or in several that share a socket and are started again when they die."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from ctypes import c_double
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from infer.errors import InferError, InputError
from infer.server import logs
from infer.server.admission import read_tokens
from infer.server.app import make_app
from infer.server.door import Door
from infer.server.http import Server
from infer.server.metrics import SHARED_FOLDER
from infer.server.models import Models
from infer.server.options import ServerOptions
from infer.server.service import Service

if TYPE_CHECKING:
    from infer.server.grpc_api import GrpcServer

CANNOT_START = 3
"""The exit code of a worker that would fail in the same way again."""

# Windows has no such signal
_RELOAD = getattr(signal, "SIGHUP", None)

_SHORT_LIFE_S = 10.0
_LONGEST_PAUSE_S = 4.0
_LOOK_S = 0.1
_BEAT_S = 0.5
_PAUSED_S, _KILLED_S = 2.0, 1.0
_log = logging.getLogger("infer.server")


def serve(paths: Sequence[Path], options: ServerOptions, listener: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT, then leave and drain; at SIGHUP, take up artifacts that changed.
    Raises what loading the models raises."""
    logs.start(options.json_logs)
    if options.workers == 1:
        with _reload_held_back():
            serve_here(Models(paths, options), options, listener)
    else:
        Workers(paths, options, listener).run()


def serve_here(
    models: Models, options: ServerOptions, listener: socket.socket, beat: Callable[[], None] | None = None
) -> None:
    """Answer in this process. It listens while models are loaded, and is ready after that. `beat` is called
    again and again, as long as the event loop runs."""
    service = Service(models, options)
    grpc = _grpc_server(service)
    failures: list[InferError] = []
    tasks: list[asyncio.Task[None]] = []

    async def keep_beating(beat: Callable[[], None]) -> None:
        while True:
            beat()
            await asyncio.sleep(_BEAT_S)

    async def load() -> None:
        try:
            if grpc is not None:
                await grpc.start()
            await service.load_at_start()
        except InferError as error:
            failures.append(error)
            server.drain()

    def reload() -> None:
        if not service.leaving:
            tasks.append(asyncio.ensure_future(service.reload()))

    def start() -> None:
        tasks.append(asyncio.ensure_future(load()))
        if beat is not None:
            tasks.append(asyncio.ensure_future(keep_beating(beat)))
        if _RELOAD is not None and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(_RELOAD, reload)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {_RELOAD})

    async def stop() -> None:
        if grpc is not None:
            await grpc.stop()

    def on_leave() -> None:
        service.leaving = True

    def on_drain() -> None:
        service.draining = True
        if grpc is not None:
            grpc.drain()

    app, door = make_app(service, start, stop), Door(service)
    server = Server(app, options, on_leave, on_drain, door.refusal)
    try:
        server.run(sockets=[listener])
    finally:
        door.tell()
        service.close()
    if failures:
        raise failures[0]


@contextmanager
def _reload_held_back() -> Iterator[None]:
    """What was asked for while artifacts are read is done afterwards: it may be about another artifact."""
    if _RELOAD is None:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {_RELOAD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _grpc_server(service: Service) -> GrpcServer | None:
    if service.options.grpc_port is None:
        return None
    from infer.server.grpc_api import GrpcServer  # its libraries are an extra

    return GrpcServer(service)


class Workers:
    """The parent of `options.workers` processes. It loads no model, so it has nothing that could fail."""

    def __init__(self, paths: Sequence[Path], options: ServerOptions, listener: socket.socket) -> None:
        self._paths, self._options, self._listener = list(paths), options, listener
        # not forked: threads and locks of libraries do not survive that
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []
        self._born: dict[int | None, float] = {}
        self._beats: dict[int | None, c_double] = {}  # when each one's event loop ran, 0 before it did
        self._again: dict[int, float] = {}  # place of one that died → when another takes it
        self._short_lives = 0
        self._first = set(range(options.workers))  # places whose first process is there
        self._stopping = False
        self._looked = self._awake_since = time.monotonic()

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises `InferError` if the workers cannot start."""
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        if _RELOAD is not None:
            handlers[_RELOAD] = signal.signal(_RELOAD, self._reload)
        folder = os.environ[SHARED_FOLDER] = tempfile.mkdtemp(prefix="infer-metrics-")
        try:
            with _reload_held_back():
                self._processes = [self._started() for _ in range(self._options.workers)]
            while not self._stopping:
                alive = [p for place, p in enumerate(self._processes) if place not in self._again]
                wait([process.sentinel for process in alive], timeout=_LOOK_S)
                self._end_hung(alive)
                self._note_dead(folder)
                self._replace_dead()
        finally:
            self._end()
            shutil.rmtree(folder, ignore_errors=True)
            del os.environ[SHARED_FOLDER]
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:  # told again: they need not wait until it was noticed
            self._tell(number)
        self._stopping = True

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self._options = renewed(self._options)  # of those that take others' places
        self._tell(number)

    def _tell(self, number: int) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                if process.pid is not None:
                    os.kill(process.pid, number)

    def _started(self) -> BaseProcess:
        """A worker. SIGHUP is held back meanwhile, until it is among those that are told, and so it is in
        there until it can be followed."""
        beat = self._context.RawValue(c_double, 0.0)
        arguments = (self._paths, self._options, self._listener, beat)
        process = self._context.Process(target=work, args=arguments, name="infer-worker")
        process.start()
        self._born[process.pid], self._beats[process.pid] = time.monotonic(), beat
        return process

    def _end_hung(self, processes: Sequence[BaseProcess]) -> None:
        """End those whose event loop stands still: they would take connections, and never answer."""
        before, self._looked = self._looked, time.monotonic()
        if self._looked - before > _PAUSED_S:  # this one stood still, too: all were paused
            self._awake_since = self._looked
        for process in processes:
            beat = self._beats[process.pid]
            silent_s = self._looked - max(beat.value, self._awake_since) if beat.value else 0.0
            if silent_s > self._options.hung_s and process.is_alive() and not self._stopping:
                _log.error("worker %s has stood still for %.0f s and is ended", process.pid, silent_s)
                beat.value = 0.0  # once is enough
                process.kill()
                process.join(_KILLED_S)  # one that waits for a device may not end

    def _note_dead(self, folder: str) -> None:
        for place, process in enumerate(self._processes):
            if process.is_alive() or place in self._again or self._stopping:
                continue
            # later the artifact may have been damaged, and the others go on serving what they have
            if process.exitcode == CANNOT_START and place in self._first:
                raise InferError("a worker could not start; what it logged says why")
            _log.error(
                "worker %s died (exit code %s); another takes its place", process.pid, process.exitcode
            )
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(process.pid, folder)  # type: ignore[no-untyped-call]
            del self._beats[process.pid]
            lived_s = time.monotonic() - self._born.pop(process.pid)
            # one that dies again and again is not started without a pause
            self._short_lives = self._short_lives + 1 if lived_s < _SHORT_LIFE_S else 0
            pause_s = min(_LONGEST_PAUSE_S, 0.25 * 2**self._short_lives) if self._short_lives > 1 else 0.0
            self._again[place] = time.monotonic() + pause_s

    def _replace_dead(self) -> None:
        for place, due in list(self._again.items()):
            if time.monotonic() >= due and not self._stopping:
                del self._again[place]
                with _reload_held_back():
                    self._processes[place] = self._started()
                self._first.discard(place)

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        self._listener.close()  # with the last worker's, so that nobody waits for a connection in vain
        deadline = time.monotonic() + self._options.lame_duck_s + self._options.drain_s + 1.0
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def work(paths: Sequence[Path], options: ServerOptions, listener: socket.socket, beat: c_double) -> None:
    """A worker process, which writes the time into `beat` again and again. SIGHUP is held back until it can
    be followed."""

    def tell() -> None:
        beat.value = time.monotonic()

    logs.start(options.json_logs)
    threading.Thread(target=_end_with_parent, name="infer-parent", daemon=True).start()
    try:
        serve_here(Models(paths, options), options, listener, tell)
    except InferError as error:
        _log.error("worker %s cannot start: %s", os.getpid(), error)
        sys.exit(CANNOT_START)


def renewed(options: ServerOptions) -> ServerOptions:
    """With the tokens that are in their file now; as they are if it cannot be read."""
    if options.token_file is None:
        return options
    try:
        return replace(options, tokens=read_tokens(options.token_file))
    except InputError:
        return options


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    with suppress(ProcessLookupError):
        os.kill(os.getpid(), signal.SIGTERM)
