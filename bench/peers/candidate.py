"""A peer as a candidate: asked through a pipe, timed where it runs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import infer
from bench.peers.model import Given
from bench.peers.places import ROOT
from infer.errors import BackendError
from infer.measure.queries import Query
from infer.npz import load_npz, save_npz
from infer.signature import Array, Signature

LOAD_S, RUN_S = 900.0, 300.0
"""How long loading may take, in which peers export, compile and quantize; and one run, or one query, which
some compile anew for feeds of another size."""

_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


class PeerError(BackendError):
    """A peer refused, died or did not answer; `name` says which."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Remote:
    """A candidate in a worker. Made by `started`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        threads: int,
        signature: Signature,
        folder: Path,
        run_s: float,
        environment: Mapping[str, str],
    ) -> None:
        self.name, self.signature, self.described = name, signature, name
        self._command, self._threads = command, threads
        self._folder, self._run_s, self._environment = folder, run_s, environment
        self._given: dict[str, Any] = {}
        self._load_s = LOAD_S
        self._queries: list[dict[str, Any]] = []
        self._start()

    def _start(self) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        environment = {
            **os.environ,
            **dict.fromkeys(_THREADS, str(self._threads)),
            "PYTHONPATH": os.pathsep.join(map(str, _paths())),
            "PYTHONNOUSERSITE": "1",
            # no peer may look for newer files, or report, while it is timed
            "HF_HUB_OFFLINE": "1",
            **self._environment,
        }
        with (self._folder / "printed.txt").open("wb") as printed:
            self._process = subprocess.Popen(
                [*self._command, str(theirs_in), str(theirs_out)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                cwd=ROOT,
                env=environment,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,  # Ctrl-C ends the measurement, and that ends the workers
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._requests, self._replies = ours_out, ours_in
        self._unread = b""
        self._ended: str | None = None

    def load(self, given: Given, load_s: float = LOAD_S) -> None:
        """In a new worker again, if something was made: what it took to make it, as a search with PyTorch
        and others, would slow down small models that are then asked there. Raises `PeerError`."""
        self._given, self._load_s = {"do": "load", **given.to_json()}, load_s
        found = Path(given.made).is_dir()
        self.described = str(self.ask(self._given, load_s)["described"])
        if not found and Path(given.made).is_dir():
            self.restart()

    def restart(self) -> None:
        """Load in a new worker; queries made before go on there. Raises `PeerError`."""
        self.end()
        self._start()
        self.ask(self._given, self._load_s)
        for request in self._queries:
            self.ask(request, self._run_s)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for `feeds`, by name. Raises `PeerError`."""
        outputs = self._folder / "outputs.npz"
        self.ask(
            {"do": "run", "feeds": self._save(feeds, "feeds.npz"), "outputs": str(outputs)}, self._run_s
        )
        return load_npz(outputs)

    def query(self, feeds: Mapping[str, Array], repeat: int = 1) -> Query:
        """Asking with `feeds`, `repeat` times in a row. Raises `PeerError`."""
        feeds_file = self._save(feeds, f"query-{len(self._queries)}.npz")
        return self._asked({"do": "query", "feeds": feeds_file, "repeat": repeat}, repeat)

    def query_each(self, feeds: Sequence[Mapping[str, Array]]) -> Query:
        """Asking with one of `feeds` after another, again and again. Raises `PeerError`."""
        number = len(self._queries)
        files = [self._save(each, f"query-{number}-{i}.npz") for i, each in enumerate(feeds)]
        return self._asked({"do": "query", "each": files}, len(files))

    def _asked(self, request: dict[str, Any], runs: int) -> Query:
        self._queries.append(request)
        return _RemoteQuery(self, int(self.ask(request, runs * self._run_s)["query"]), runs * self._run_s)

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The worker's reply. Raises `PeerError`; after the worker's end, the same one again."""
        if self._ended:
            raise PeerError(self.name, self._ended)
        with contextlib.suppress(BrokenPipeError):  # reading tells how it ended
            _write(self._requests, json.dumps(request).encode() + b"\n")
        line = self._line(request["do"], time.monotonic() + timeout_s, timeout_s)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(self.name, str(reply["error"]))
        return reply

    def _line(self, asked: str, until: float, timeout_s: float) -> bytes:
        while b"\n" not in self._unread:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._replies], [], [], left)[0]:
                self._kill()
                self._ended = f"no answer to '{asked}' within {timeout_s:g} s"
                raise PeerError(self.name, self._ended)
            read = os.read(self._replies, 2**20)
            if not read:
                self._ended = self._how_it_ended(asked)
                raise PeerError(self.name, self._ended)
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _how_it_ended(self, asked: str) -> str:
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._kill()
            return f"its process closed the pipe at '{asked}'"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        printed = (self._folder / "printed.txt").read_text(encoding="utf-8", errors="replace").split()
        return f"its process ended with {how} at '{asked}': {' '.join(printed)[-300:]}"

    def _save(self, feeds: Mapping[str, Array], name: str) -> str:
        path = self._folder / name
        save_npz(path, dict(feeds))
        return str(path)

    def end(self) -> None:
        """End the worker, and whatever it started."""
        self._kill()
        os.close(self._requests)
        os.close(self._replies)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class _RemoteQuery:
    """A query of a worker: it keeps the time, so that the way there is not charged."""

    def __init__(self, remote: Remote, number: int, query_s: float) -> None:
        self._remote, self._number, self._query_s = remote, number, query_s

    def turn(self, count: int) -> Array:
        request = {"do": "turn", "query": self._number, "count": count}
        reply = self._remote.ask(request, self._query_s + count)
        return np.array(reply["latencies_ms"], np.float64)

    def serve(self, due_s: Array) -> Array:
        request = {"do": "serve", "query": self._number, "due_s": due_s.tolist()}
        reply = self._remote.ask(request, self._query_s + 10 * float(due_s[-1]))
        return np.array(reply["latencies_ms"], np.float64)


@contextmanager
def started(
    name: str,
    module: str,
    python: Path,
    signature: Signature,
    threads: int,
    run_s: float = RUN_S,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Remote]:
    """A worker that imports `module` when it is told to load; ended with the block. `environment` is beside
    the variables of this process."""
    with tempfile.TemporaryDirectory(prefix="infer-peer-") as scratch:
        command = [str(python), "-m", "bench.peers.worker", module]
        remote = Remote(name, command, threads, signature, Path(scratch), run_s, environment or {})
        try:
            yield remote
        finally:
            remote.end()


def _paths() -> list[Path]:
    """Where `bench` and `infer` are. Never the project's installed packages, which a peer's own must not
    be mixed with."""
    installed = Path(infer.__file__).parents[1]
    return [ROOT] if installed.name == "site-packages" else [*dict.fromkeys((ROOT, installed))]


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
