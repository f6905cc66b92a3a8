"""The process a peer runs in: `python -m bench.peers.worker MODULE IN OUT`, with the peer's own Python.

Requests come as lines of JSON through the file descriptor IN, answers go through OUT; whatever libraries
print goes to stdout and stderr and disturbs neither. Arrays travel in `.npz` files that a request names.

    {"do": "load", …the fields of Given}                   {"described": "…"}
    {"do": "run", "feeds": PATH, "outputs": PATH}          {}
    {"do": "query", "feeds": PATH, "repeat": 1}            {"query": 0}
    {"do": "query", "each": [PATH, …]}                     {"query": 0}, which asks one after another
    {"do": "turn", "query": 0, "count": 50}                {"latencies_ms": […]}
    {"do": "serve", "query": 0, "due_s": […]}              {"latencies_ms": […]}

An error is {"error": "…"}, and the next request is awaited. The process ends when IN does.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.model import Given, Loaded
from infer.measure.queries import Call
from infer.measure.rest import settle
from infer.npz import load_npz, save_npz

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer requests until there are no more."""
    _end_with_parent()
    module, requests, replies = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(requests, False)  # a peer may start processes, which must not keep them open
    os.set_inheritable(replies, False)
    worker = _Worker(module)
    with os.fdopen(requests, encoding="utf-8") as lines, os.fdopen(replies, "w", encoding="utf-8") as out:
        for line in lines:
            request = json.loads(line)
            try:
                reply = worker.answer(request)
            except Exception as error:  # the peer's own, of any kind; whoever asked decides what it means
                reply = {"error": _told(error)}
            out.write(json.dumps(reply) + "\n")
            out.flush()


def _end_with_parent() -> None:
    """A worker whose comparison was killed would go on compiling for minutes before it read the end."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has this
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _told(error: Exception) -> str:
    # long ones tell a backtrace or a whole graph after their first lines
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 400 else text[:200] + ' … ' + text[-200:]}"


class _Worker:
    def __init__(self, module: str) -> None:
        self._module = module
        self._loaded: Loaded | None = None
        self._queries: list[Call] = []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        do: Callable[[dict[str, Any]], dict[str, Any]] = {
            "load": self._load,
            "run": self._run,
            "query": self._query,
            "turn": self._turn,
            "serve": self._serve,
        }[request["do"]]
        return do(request)

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        self._loaded = importlib.import_module(self._module).load(Given.from_json(request))
        return {"described": self._loaded.described}

    @property
    def _model(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError("nothing was loaded")
        return self._loaded

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        outputs = self._model.run(load_npz(Path(request["feeds"])))
        save_npz(Path(request["outputs"]), {name: np.asarray(array) for name, array in outputs.items()})
        settle()
        return {}

    def _query(self, request: dict[str, Any]) -> dict[str, Any]:
        files = request.get("each") or [request["feeds"]] * int(request["repeat"])
        prepared = {file: self._model.prepare(load_npz(Path(file))) for file in dict.fromkeys(files)}
        calls = [prepared[file] for file in files]
        in_turn = itertools.cycle(calls)

        def several() -> None:
            for call in calls:
                call()

        def next_one() -> None:
            next(in_turn)()

        self._queries.append(
            Call(next_one if "each" in request else several if len(calls) > 1 else calls[0])
        )
        return {"query": len(self._queries) - 1}

    def _turn(self, request: dict[str, Any]) -> dict[str, Any]:
        latencies = self._queries[request["query"]].turn(request["count"])
        settle()
        return {"latencies_ms": latencies.tolist()}

    def _serve(self, request: dict[str, Any]) -> dict[str, Any]:
        latencies = self._queries[request["query"]].serve(np.array(request["due_s"], np.float64))
        settle()
        return {"latencies_ms": latencies.tolist()}


if __name__ == "__main__":
    main()
