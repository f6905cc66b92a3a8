"""A peer for tests: what it does is its setting `does`. Imported by workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import infer
from bench.peers.model import Feeds, Given, Loaded
from infer.signature import Array

LATE = 30
"""The call at which those that end late do."""


def load(given: Given) -> Loaded:
    """Doubles `x`; or, given an artifact, answers as it does."""
    does = given.settings["does"]
    if does == "refuses":
        raise ValueError("this model has an operator that nobody knows")
    if does == "makes":
        given.once(lambda folder: (folder / "maker").write_text(str(os.getpid())))
    if does == "prints":
        os.write(1, b'{"error": "printed"}\n')
        print("native code is chatty", flush=True)
    session = infer.load(given.path, num_threads=given.threads) if given.path else None
    calls = 0

    def prepare(feeds: Feeds) -> Callable[[], Any]:
        return lambda: call(feeds)

    def call(feeds: Feeds) -> dict[str, Array]:
        nonlocal calls
        calls += 1
        if does == "prints":
            os.write(1, b"\n[1, 2\n")
        elif does == "dies" or (does == "dies late" and calls == LATE):
            os.write(2, b"no memory left\n")
            os._exit(3)
        elif does == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif does == "hangs":
            time.sleep(600)
        elif does == "refuses a batch" and len(feeds["x"]) > 1:
            raise ValueError("the batch must be 1")
        elif does == "sleeps":
            time.sleep(0.005)
        outputs = session.run(feeds) if session else {"y": feeds["x"] + feeds["x"]}
        if does == "differs":
            outputs = {name: array + 0.5 for name, array in outputs.items()}
        if does == "approximates":
            outputs = {name: 1.001 * array for name, array in outputs.items()}
        if does == "gives other shapes":
            outputs = {name: array[..., :1] for name, array in outputs.items()}
        return outputs

    return Loaded(f"a fake that {does}", prepare, lambda found: found)
