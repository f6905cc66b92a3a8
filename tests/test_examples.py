"""The recipes in `examples/` serve what they say, with the frameworks that they are for."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest

import infer
from infer.backends.ort import OrtExecutable
from tests.tiny import classifier, classify, make_artifact

EXAMPLES = Path(__file__).parents[1] / "examples"
X = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
FEEDS = {"x": X.tolist()}
_WAIT_S = 30.0

# of a process that finds the examples
_PATHS = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])

pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="examples are not shipped, and so not there when a wheel is tested"
)


def _right(logits: Any) -> bool:
    return bool(np.allclose(logits, classify(classifier(), X), atol=1e-5))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("examples") / "net.infer")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, model: Path) -> Any:
    """Imports one of the examples, as the framework would in its folder."""
    monkeypatch.setenv("MODEL", str(model))
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


class Held:
    """While it is not free, runs wait."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Event(), threading.Event()
        self.original = OrtExecutable.run

    def run(self, executable: OrtExecutable, *args: Any) -> Any:
        self.begun.set()
        assert self.free.wait(_WAIT_S)
        return self.original(executable, *args)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    found = Held()
    found.free.set()
    monkeypatch.setattr(OrtExecutable, "run", lambda *args: found.run(*args))
    return found


def test_fastapi_answers_and_refuses(example: Any, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right answers; 400 for wrong feeds, 503 with Retry-After when too many wait, 504 when it takes too
    long."""
    from fastapi.testclient import TestClient

    fastapi_app: ModuleType = example("fastapi_app")
    monkeypatch.setattr(fastapi_app, "BATCHING", infer.BatchOptions(max_waiting=1))
    with TestClient(fastapi_app.app) as client, ThreadPoolExecutor(1) as pool:
        assert _right(client.post("/answer", json=FEEDS).json()["logits"])
        refused = client.post("/answer", json={"y": [[1.0]]})
        assert (refused.status_code, "lack 'x'" in refused.json()["error"]) == (400, True)
        held.free.clear()
        held.begun.clear()
        monkeypatch.setattr(fastapi_app, "TIMEOUT_S", 0.5)
        late = pool.submit(client.post, "/answer", json=FEEDS)
        assert held.begun.wait(_WAIT_S)
        overloaded = client.post("/answer", json=FEEDS)
        assert (overloaded.status_code, overloaded.headers["Retry-After"]) == (503, "1")
        assert late.result(_WAIT_S).status_code == 504
        held.free.set()


@contextmanager
def _gunicorn(model: Path, folder: Path, *arguments: str) -> Iterator[httpx.Client]:
    """A client of gunicorn on a port of the system's choice."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.listen()
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", *arguments]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "MODEL": str(model), "PYTHONPATH": _PATHS},
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_WAIT_S) as client:
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=_WAIT_S)
    assert process.returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="gunicorn forks")
def test_flask_behind_gunicorn(model: Path) -> None:
    """Both workers answer from a session of their own, opened after the fork."""
    with _gunicorn(model, EXAMPLES, "--config", "gunicorn_conf.py", "flask_app:app") as client:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.post("/answer", json=FEEDS), range(32)))
        assert all(_right(answer.json()["logits"]) for answer in answers)
        assert client.post("/answer", json={"x": [[1.0]]}).status_code == 400


@pytest.mark.skipif(not hasattr(os, "fork"), reason="gunicorn forks")
def test_a_session_opened_before_the_fork_says_so(model: Path, tmp_path: Path) -> None:
    """Each request hears what to do, within the time that an answer takes; none hangs."""
    (tmp_path / "early.py").write_text("import flask_app\nflask_app.open_model()\napp = flask_app.app\n")
    with _gunicorn(model, tmp_path, "--preload", "early:app") as client:
        found = client.post("/answer", json=FEEDS)
        assert found.status_code == 503
        assert "call infer.load after the fork" in found.json()["error"]


CELERY = """
import os, sys
from celery.contrib.testing.worker import start_worker
import celery_app
with start_worker(celery_app.app, pool="solo", perform_ping_check=False):
    print(celery_app.answer.delay({"x": eval(sys.argv[1])}).get(timeout=20)["logits"], flush=True)
    celery_app.close_model()
    os._exit(0)  # the worker's own end takes longer than all the rest
"""


FORKING = """
import os
from celery_app import answer, app
app.conf.update(
    broker_url=os.environ["BROKER"], result_backend=os.environ["RESULTS"],
    broker_transport_options={name: os.environ["FOLDER"] for name in ("data_folder_in", "data_folder_out",
                                                                       "control_folder")},
)
@app.task
def told(feeds):
    return answer(feeds), os.getpid()
"""

ASKING = """
import sys
import forking
asked = [forking.told.delay({"x": eval(sys.argv[1])}) for _ in range(20)]
print([each.get(timeout=60) for each in asked])
"""


def test_celery_works_off_tasks(model: Path) -> None:
    """A worker opens the session when it starts, and answers what comes through the broker."""
    done = subprocess.run(
        [sys.executable, "-c", CELERY, repr(X.tolist())],
        env={**os.environ, "MODEL": str(model), "PYTHONPATH": _PATHS},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert _right(eval(done.stdout.splitlines()[-1]))


def test_celery_answers_from_forked_workers(model: Path, tmp_path: Path) -> None:
    """The pool that Celery has by default: two processes, forked from one that opened nothing, each with a
    session of its own. The broker is a folder."""
    for folder in ("queue", "results"):
        (tmp_path / folder).mkdir()
    environment = {
        **os.environ,
        "BROKER": "filesystem://",
        "RESULTS": (tmp_path / "results").as_uri(),
        "FOLDER": str(tmp_path / "queue"),
        "MODEL": str(model),
        "PYTHONPATH": _PATHS,
    }
    (tmp_path / "forking.py").write_text(FORKING, encoding="utf-8")
    command = [sys.executable, "-m", "celery", "-A", "forking:app", "worker"]
    with (tmp_path / "log.txt").open("w") as log:
        worker = subprocess.Popen(
            [*command, "--pool=prefork", "--concurrency=2", "--without-gossip", "--without-mingle"],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    try:
        asked = [sys.executable, "-c", ASKING, repr(X.tolist())]
        done = subprocess.run(
            asked, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, (done.stderr, (tmp_path / "log.txt").read_text())
        answers = eval(done.stdout.splitlines()[-1])
        assert len(answers) == 20
        assert all(_right(answer["logits"]) for answer, _ in answers)
        workers = {pid for _, pid in answers}
        assert workers
        assert worker.pid not in workers
    finally:
        worker.terminate()
        worker.wait(60)


def test_threads_share_a_session(model: Path, example: Any) -> None:
    """Each input gets its answer, in order."""
    thread_pool = example("thread_pool")
    rows = [{"x": X[row : row + 1]} for row in range(len(X))] * 20
    found = list(thread_pool.answers(str(model), rows))
    assert _right(np.concatenate([answer["logits"] for answer in found[-3:]]))
    assert len(found) == 60


def test_the_readme_names_every_example() -> None:
    """And no other."""
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"examples/{path.name}" in readme
