"""The life of a server: how it starts, what it refuses to start with, and how it ends."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
import pytest

from infer.errors import InputError, OverloadedError
from infer.machine import this_machine
from infer.server.memory import own_bytes
from infer.server.models import Models, UnavailableError, UnknownModelError, model_name
from infer.server.options import ServerOptions
from tests.command import infer_command
from tests.serving import (
    Served,
    ready_lines,
    serving,
    slow,
    slow_request,
    wait_for_workers,
    wait_until_waiting,
    workers,
)
from tests.tiny import edit_manifest, identity, make_artifact, parse, write
from tests.waiting import until

LIVE, READY = "/v2/health/live", "/v2/health/ready"
ONE = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


def asks(served: Served) -> Any:
    return served.post("/v2/models/net/infer", json=ONE)


def test_the_command_has_the_defaults_of_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written twice, so that help needs nothing of what serves."""
    told: list[ServerOptions] = []
    monkeypatch.setattr("infer.server.workers.serve", lambda _, options, __: told.append(options))
    model = write(tmp_path, identity("float32"), "net.onnx")
    assert infer_command("serve", model, "--port", "0").code == 0
    assert told == [ServerOptions(port=0)]


@pytest.mark.slow
def test_what_is_under_way_is_answered_before_the_end(tmp_path: Path) -> None:
    """SIGTERM with 32 requests in flight and one stalled upload: 32 answers, and an end in drain + 1 s."""
    drain_s = 5
    with serving(tmp_path, slow(tmp_path), "--drain", f"{drain_s}s", "--body-timeout", "60s") as served:
        stalled = socket.create_connection(("127.0.0.1", served.port))
        stalled.sendall(
            b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{"
        )
        with ThreadPoolExecutor(32) as pool:
            asked = [
                pool.submit(served.post, "/v2/models/slow/infer", json=slow_request(10)) for _ in range(32)
            ]
            wait_until_waiting(served, 16)
            start = time.monotonic()
            assert served.stop() == 0
            assert time.monotonic() - start < drain_s + 1
            assert {answer.result().status_code for answer in asked} == {200}
        stalled.close()
        with pytest.raises(httpx.ConnectError):
            served.get("/v2/health/live")


def test_an_idle_server_ends_at_once(tmp_path: Path) -> None:
    """On SIGTERM and Ctrl-C, with an idle connection open, and without a trace of an error."""
    model = write(tmp_path, identity("float32"), "net.onnx")
    for number in (signal.SIGTERM, signal.SIGINT):
        with serving(tmp_path, model, "--json-logs") as served:
            idle = socket.create_connection(("127.0.0.1", served.port))
            idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
            start = time.monotonic()
            assert served.stop(number) == 0
            assert time.monotonic() - start < 5
            assert {line["level"] for line in served.lines()} == {"info"}
            idle.close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_lame_duck_answers_on(tmp_path: Path, count: int) -> None:
    """Told to stop, it is not ready any more, and takes requests until its time is over."""
    model = write(tmp_path, identity("float32"), "net.onnx")
    with serving(tmp_path, model, "--lame-duck", "2s", "--workers", count) as served:
        start = time.monotonic()
        for process in (served.process.pid, *workers(psutil.Process(served.process.pid))):
            os.kill(process, signal.SIGTERM)  # as to a group of processes
        until(lambda: served.get(READY).status_code == 503)
        assert served.get(LIVE).headers["connection"] == "close"
        assert (served.get(LIVE).status_code, asks(served).status_code) == (200, 200)
        assert served.get("/v2/models/net/ready").status_code == 503
        assert time.monotonic() - start < 2
        assert served.process.wait(10) == 0
        assert 2 <= time.monotonic() - start < 6


def test_a_lame_duck_that_is_told_again_ends(tmp_path: Path) -> None:
    model = write(tmp_path, identity("float32"), "net.onnx")
    with serving(tmp_path, model, "--lame-duck", "60s") as served:
        served.process.send_signal(signal.SIGTERM)
        until(lambda: served.get(READY).status_code == 503)
        time.sleep(1.0)  # what comes sooner is taken for the same
        assert served.stop() == 0


def test_a_run_that_does_not_end_does_not_keep_the_process(tmp_path: Path) -> None:
    """After the time to drain it is given up."""
    with serving(tmp_path, slow(tmp_path), "--drain", "1s") as served:
        threading.Thread(target=_quietly, args=(served, slow_request(1_000_000)), daemon=True).start()
        wait_until_waiting(served, 1)
        start = time.monotonic()
        served.stop()
        assert time.monotonic() - start < 3


def _quietly(served: Served, request: dict[str, Any]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        served.post("/v2/models/slow/infer", json=request)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "hung_s"), [(signal.SIGKILL, 30), (signal.SIGSTOP, 4)])
def test_a_worker_that_dies_or_hangs_is_replaced(tmp_path: Path, number: int, hung_s: int) -> None:
    """kill -9 or -STOP of one of two: answers go on, right ones only, and within 5 s of its death, or of
    when it has stood still for too long, there are two again."""
    model = write(tmp_path, identity("float32"), "net.onnx")
    with serving(tmp_path, model, "--workers", "2", "--json-logs", "--hung", f"{hung_s}s") as served:
        parent = psutil.Process(served.process.pid)
        first = workers(parent)
        assert len(first) == 2
        wait_for_workers(served, 2)
        os.kill(first[0], number)
        killed = time.monotonic()
        while len(ready_lines(served)) < 3:
            assert time.monotonic() - killed < 5 + (hung_s if number == signal.SIGSTOP else 0)
            try:
                assert asks(served).json()["outputs"][0]["data"] == [1, 2]
            except httpx.TransportError:
                continue  # it was with the one that died
        now = workers(parent)
        assert len(now) == 2
        assert first[1] in now
        (line,) = [line for line in served.lines() if "died" in line["message"]]
        assert str(first[0]) in line["message"]
        text = served.get("/metrics").text
        assert 'infer_requests_total{model="net",outcome="success",version="1"}' in text
        assert served.stop() == 0
        assert not any(psutil.pid_exists(pid) for pid in (*first, *now))


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """kill -9 of the parent leaves nobody behind."""
    model = write(tmp_path, identity("float32"), "net.onnx")
    with serving(tmp_path, model, "--workers", "2", "--json-logs") as served:
        wait_for_workers(served, 2)
        left = workers(psutil.Process(served.process.pid))
        served.process.kill()
        served.process.wait()
        _, alive = psutil.wait_procs(
            [psutil.Process(pid) for pid in left if psutil.pid_exists(pid)], timeout=10
        )
        assert not alive


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    """With one process or two: exit code 1 and the reason, not a server that is never ready."""
    artifact = make_artifact(tmp_path / "net.infer")
    (graph,) = (artifact / "graphs").iterdir()
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    for count in (1, 2):
        with serving(tmp_path, artifact, "--workers", count, "--json-logs", ready=False) as served:
            assert served.process.wait(timeout=60) == 1
            assert "differs from the sha256" in served.log.read_text(encoding="utf-8")


def test_a_lazy_model_fails_for_its_callers_only(tmp_path: Path) -> None:
    """503 with no word of why but in the log; others answer."""
    artifact = make_artifact(tmp_path / "bad.infer")
    edit_manifest(artifact, lambda data: data["inputs"][0].update(name="other"))
    net = write(tmp_path, identity("float32"), "net.onnx")
    with serving(tmp_path, artifact, net, "--lazy", "--json-logs") as served:
        response = served.post("/v2/models/bad/infer", json=ONE)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["error"] == "the model 'bad' could not be loaded; the server's log says why"
        assert asks(served).status_code == 200
        assert served.get("/v2/models/bad/ready").status_code == 503
        assert served.get("/v2/models/net/ready").status_code == 200
        assert served.get("/v2/health/ready").status_code == 200
        (line,) = [line for line in served.lines() if line["level"] == "error"]
        assert "they do not belong together" in line["message"]


def test_a_model_counts_for_what_loading_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Others make room afterwards; one that takes more than the budget is loaded all the same, alone."""
    own = iter(np.cumsum([0, 600, 0, 600, 0, 1_200_000, 0, 1_200_000]))
    monkeypatch.setattr("infer.server.models.own_bytes", lambda: int(next(own)))
    models = Models(
        [make_artifact(tmp_path / f"{name}.infer") for name in "abc"],
        ServerOptions(memory_budget_bytes=1_000_000),
    )
    a, b, c = models
    for model in (a, b, c):
        models.hold(model).leave()
        assert model.state == "READY"
    assert c.memory_bytes == 1_200_000
    assert (a.state, b.state) == ("UNLOADED", "UNLOADED")
    assert "take 200000 bytes more than the memory budget, 'c' 1200000 of all" in caplog.text
    c.unload(idle_only=True)
    models.hold(c).leave()
    assert c.state == "READY"
    models.close()


def test_memory_of_its_own_is_what_is_no_files() -> None:
    before, size = own_bytes(), 8 * 2**20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(bytes(size))
        assert own_bytes() - before >= size


def test_models_share_a_memory_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not asked for the longest makes room, unless it is in use."""
    monkeypatch.setattr("infer.server.models.own_bytes", lambda: 0)
    paths = [make_artifact(tmp_path / f"{name}.infer") for name in "abc"]
    size = Models(paths[:1], ServerOptions()).get("a").weights_bytes
    models = Models(paths, ServerOptions(memory_budget_bytes=2 * size))
    a, b, c = models
    models.load_at_start()
    assert [model.state for model in models] == ["UNLOADED"] * 3
    assert not a.plan.spinning
    held_a, held_b = models.hold(a), models.hold(b)
    with pytest.raises(OverloadedError, match="no room for the model 'c'"):
        models.hold(c)
    held_b.leave()
    held_c = models.hold(c)
    assert [model.state for model in models] == ["READY", "UNLOADED", "READY"]
    held_a.leave()
    held_c.leave()
    held_b = models.hold(b)
    assert [model.state for model in models] == ["UNLOADED", "READY", "READY"]
    assert held_b.session.batcher.stats().refused == 0
    with pytest.raises(InputError, match="more than the memory budget"):
        Models(paths, ServerOptions(memory_budget_bytes=size - 1))
    held_b.leave()
    models.close()
    with pytest.raises(UnavailableError, match="stopping"):
        models.hold(a)
    with pytest.raises(UnknownModelError, match="no version '2'; it has 1"):
        models.get("a", "2")


def test_shared_weights_are_mapped(tmp_path: Path) -> None:
    """The system's list of mappings names the file of the weights, which all workers then share."""
    model = parse("g (float[n, 256] x) => (float[n, 256] y) { y = MatMul(x, w) }")
    weights = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    for shared in (True, False):
        models = Models([path], ServerOptions(share_weights=shared))
        held = models.hold(models.get("net"))
        x = np.ones((1, 256), np.float32)
        np.testing.assert_allclose(held.session.run({"x": x})["y"], x @ weights, rtol=1e-4, atol=1e-4)
        assert ("net.data" in Path("/proc/self/maps").read_text(encoding="utf-8")) == shared
        held.leave()
        models.close()


@pytest.mark.parametrize(("asked", "streams"), [(None, this_machine().cores), (1, 1), (3, 3)])
def test_runs_of_a_model_go_on_at_once(tmp_path: Path, asked: int | None, streams: int) -> None:
    """As many as asked for, or else as this machine has cores, up to eight."""
    path = write(tmp_path, identity("float32"), "net.onnx")
    models = Models([path], ServerOptions(streams=asked))
    held = models.hold(models.get("net"))
    assert held.session.plan.streams == min(streams, 8)
    held.leave()
    models.close()


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/net.infer", "net"), ("net", "net"), ("a-b_1.5.onnx", "a-b_1.5"), ("x.infer/", "x")],
)
def test_names_of_models(path: str, name: str) -> None:
    assert model_name(Path(path)) == name


@pytest.mark.parametrize(
    "path", ["ü.infer", "a b.infer", "a%2f.infer", "a" * 129, "a:b.infer", "..infer/../...infer"]
)
def test_names_that_have_no_place_in_a_url_are_refused(path: str) -> None:
    with pytest.raises(InputError, match="cannot be served as"):
        model_name(Path(path))


def test_what_it_does_not_start_with(tmp_path: Path) -> None:
    """Wrong usage is 2, what cannot be had 1; each says the cure."""
    model = write(tmp_path, identity("float32"), "net.onnx")
    (tmp_path / "short").write_text("secret\n", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, code, said in (
            ((), 2, "ARTIFACTS"),
            ((model, "--host", "0.0.0.0"), 2, "give --token-file, or --no-auth"),
            ((model, "--host", "::"), 2, "give --token-file, or --no-auth"),
            ((model, "--timeout", "30"), 2, "500ms, 30s"),
            ((model, "--max-body", "0MiB"), 2, "512KiB, 64MiB"),
            ((model, "--max-feed", "many"), 2, "512KiB, 64MiB"),
            ((model, "--warm-up", "8"), 2, "as in batch=8,sequence=128"),
            ((model, "--warm-up", "batch=0"), 2, "as in batch=8,sequence=128"),
            ((model, "--warm-up", "tokens=8"), 1, "no model has the dims tokens"),
            ((tmp_path / "absent.infer",), 1, "there is no artifact"),
            ((model, "--token-file", tmp_path / "absent"), 1, "cannot be read: No such file"),
            ((model, "--token-file", tmp_path / "short"), 1, "has fewer than 16 characters"),
            ((model, "--port", port), 1, "Address already in use; give another --host or --port"),
            ((model, "--host", "192.0.2.1", "--no-auth"), 1, "give another --host or --port"),
        ):
            outcome = infer_command("serve", *arguments)
            assert outcome.code == code, outcome
            assert said in " ".join(outcome.err.split()), outcome
            assert "secret" not in outcome.err
