"""Callers of a deployed net, and what became of their requests."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from tests.tiny import classifier, classify


class Load:
    """Callers that ask all the time, by handle and HTTP, and hold each answer against the closed form.

    `seeds` are those of the nets of `tests.tiny.classifier` that may answer.
    """

    def __init__(self, handle: Any, url: str, seeds: Sequence[int]) -> None:
        self._handle, self._url, self._seeds = handle, url, seeds
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.wrong: list[Any] = []
        self.lost: list[Exception] = []
        self.recent: list[int] = []  # the versions that answered, newest last
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(6)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30.0)

    def asked(self) -> int:
        return self.counts["answered"] + self.counts["failed"]

    def _ask(self, number: int) -> None:
        rng = np.random.default_rng(number)
        with httpx.Client(timeout=20) as client:
            while not self._stop.wait(0.02):  # all cores shall not be busy with asking
                x = rng.standard_normal((1, 10)).astype(np.float32)
                ask = self._by_http if number % 3 == 0 else self._by_handle
                for attempt in ("first", "second", "third"):
                    try:
                        answer = ask(client, x)
                    except Exception as error:
                        with self._lock:
                            self.counts["failed"] += attempt == "first"
                            if attempt == "third":
                                self.lost.append(error)
                        time.sleep(0.2)
                        continue
                    self._judge(x, answer, attempt)
                    break

    def _by_handle(self, client: httpx.Client, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._handle.remote({"x": x}).result(timeout_s=20)["logits"])

    def _by_http(self, client: httpx.Client, x: np.ndarray) -> np.ndarray:
        answered = client.post(self._url, json={"inputs": [{"x": x.tolist()}]}).raise_for_status()
        return np.array(answered.json()["results"][0]["logits"])

    def _judge(self, x: np.ndarray, answer: np.ndarray, attempt: str) -> None:
        by = [seed for seed in self._seeds if np.allclose(answer, classify(classifier(seed), x), atol=1e-4)]
        with self._lock:
            self.counts["answered"] += attempt == "first"
            if by:
                self.recent = [*self.recent[-99:], by[0]]
            else:
                self.wrong.append((x, answer))
