"""Sessions on a local Ray cluster of several nodes: a node and a worker are killed, versions change, and no
answer is wrong.

All share one cluster, which starts once and ends with all its processes.
"""

from __future__ import annotations

import functools
import io
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from infer.server.ray import BatchSession, ReplicaOptions, application
from tests import waiting
from tests.load import Load
from tests.tiny import classifier, classify, edit_manifest, make_artifact, parse, reseal

pytestmark = pytest.mark.cluster

SEEDS = (7, 8)
_WAIT_S = 120.0
until = functools.partial(waiting.until, wait_s=_WAIT_S, step_s=0.1)

_SYSTEM = {"health_check_period_ms": 1000, "health_check_initial_delay_ms": 1000}
"""A dead node is noticed after five missed checks, in 5 s instead of 15 s."""

_SERVE = {"proxy_location": "HeadOnly", "logging_config": {"enable_access_log": False}}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Nodes:
    """The cluster, and where Serve listens."""

    cluster: Any
    url: str
    add: Callable[[], Any]
    nodes: list[Any] = field(default_factory=list)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head without CPUs, so that no replica is on it, and two nodes."""
    with (
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        # sockets of Ray lie there, and their names must be short
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster

        before = set(psutil.Process().children(recursive=True))
        cluster = Cluster(
            True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": _SYSTEM}
        )
        try:
            port = _free_port()

            def add() -> Any:
                return cluster.add_node(num_cpus=3)  # no more, because as many workers start to read data

            found = Nodes(cluster, f"http://127.0.0.1:{port}", add)
            found.nodes = [add(), add()]
            ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
            serve.start(http_options={"host": "127.0.0.1", "port": port}, **_SERVE)
            yield found
            serve.shutdown()
        finally:
            started = [p for p in psutil.Process().children(recursive=True) if p not in before]
            ray.shutdown()
            cluster.shutdown()
            _, left = psutil.wait_procs(started, timeout=20)
            for process in left:
                process.kill()
    assert not left, f"processes outlived their cluster: {left}"


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two artifacts of one net with other weights."""
    folder = tmp_path_factory.mktemp("versions")
    return [str(make_artifact(folder / f"v{seed}.infer", classifier(seed))) for seed in SEEDS]


def _statuses(handle: Any, count: int) -> list[dict[str, Any]]:
    """What each of `count` replicas says of itself."""
    found: list[dict[str, Any]] = []

    def complete() -> bool:
        try:
            found[:] = handle.broadcast("status").results()
        except Exception:  # one of them is dying
            return False
        return len(found) == count

    until(complete, f"there are not {count} replicas")
    return found


def _told(handle: Any, path: str) -> bool:
    """Whether both replicas heard of the version at `path`, and took or refused it."""
    models = [status["models"][""] for status in _statuses(handle, 2)]
    return all(model["path"] == path or path in (model["refused"] or "") for model in models)


def _deploy(path: str) -> None:
    """What `serve deploy` does with the README's file, for the version at `path`."""
    import yaml  # Ray brings it
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    config = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[0])
    (app,) = config["applications"]
    app.update(name="net", route_prefix="/net")
    app["args"]["num_cpus"] = 1
    app["deployments"][0]["user_config"] = {"path": path}
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))


@pytest.fixture(scope="module")
def net(nodes: Nodes, versions: list[str]) -> Any:
    """A handle of two replicas, which serve the first version at /net whenever a test begins."""
    from ray import serve

    _deploy(versions[0])

    def running() -> bool:
        app = serve.status().applications.get("net")
        return app is not None and app.status == "RUNNING"

    until(running, "Serve does not start the application")
    return serve.get_app_handle("net")


def test_a_node_is_killed_under_load(
    net: Any, nodes: Nodes, record_property: Callable[[str, object], None]
) -> None:
    """No answer is wrong, what the dead replica had is answered when it is asked again, and there are two
    replicas again."""
    places = {status["node"] for status in _statuses(net, 2)}
    with Load(net, f"{nodes.url}/net", SEEDS) as load:
        until(lambda: load.asked() > 50, "nothing is answered")
        victim = next(node for node in nodes.nodes if node.node_id in places)
        nodes.nodes.remove(victim)
        nodes.cluster.remove_node(victim, allow_graceful=False)
        killed, at = time.monotonic(), load.asked()
        until(lambda: load.asked() > at + 200, "the other replica does not answer")
        statuses = _statuses(net, 2)
        back_s = time.monotonic() - killed
    nodes.nodes.append(nodes.add())
    assert victim.node_id not in {status["node"] for status in statuses}
    assert not load.wrong
    assert not load.lost
    availability = load.counts["answered"] / load.asked()
    record_property("availability at the first try", availability)
    record_property("two replicas again after s", back_s)
    print(f"{load.asked()} asked, {availability:.2%} answered at the first try, whole in {back_s:.1f} s")
    assert load.counts["failed"] <= 0.05 * load.asked()


def test_versions_change_under_load(net: Any, nodes: Nodes, versions: list[str], tmp_path: Path) -> None:
    """In place: no request fails, each is answered by one of both versions, and soon by the new one only. A
    damaged version is refused by all replicas, which go on and say so."""
    damaged = make_artifact(tmp_path / "damaged.infer", classifier(9))
    next((damaged / "graphs").iterdir()).write_bytes(b"no graph")
    pids = {status["pid"] for status in _statuses(net, 2)}
    with Load(net, f"{nodes.url}/net", SEEDS) as load:
        for path, seed in ((versions[0], SEEDS[0]), (versions[1], SEEDS[1]), (str(damaged), SEEDS[1])):
            _deploy(path)
            until(lambda path=path: _told(net, path), f"'{path}' reaches no replica")  # type: ignore[misc]
            at = load.asked()
            until(lambda at=at: load.asked() > at + 150, "nothing is answered")  # type: ignore[misc]
            assert set(load.recent) == {seed}
        statuses = _statuses(net, 2)
        _deploy(versions[0])
    assert not load.wrong
    assert not load.lost
    assert load.counts["failed"] == 0
    assert {status["pid"] for status in statuses} == pids, "replicas were restarted"
    for status in statuses:
        told = status["models"][""]
        assert told["path"] == versions[1]
        assert "damaged.infer" in told["refused"]


def test_a_replica_is_added_while_requests_wait(
    nodes: Nodes, versions: list[str], record_property: Callable[[str, object], None]
) -> None:
    """Where there are more under way than one is to have, and no request fails for it."""
    from ray import serve

    limits = ReplicaOptions(max_replicas=2, target_ongoing_requests=0.5)
    handle = serve.run(application(versions[0], limits), name="growing", route_prefix="/growing")
    try:
        before = {status["pid"] for status in _statuses(handle, 1)}
        with Load(handle, f"{nodes.url}/growing", SEEDS[:1]) as load:
            began = time.monotonic()
            after = {status["pid"] for status in _statuses(handle, 2)}
            added_s = time.monotonic() - began
            record_property("a second replica after s", added_s)
            print(f"a second replica after {added_s:.1f} s")
            at = load.asked()
            until(lambda: load.asked() > at + 150, "nothing is answered")
        assert before < after
        assert not load.wrong
        assert not load.lost
        assert load.counts["failed"] == 0
    finally:
        serve.delete("growing")


def test_several_models_in_one_replica_that_has_room_for_one(nodes: Nodes, versions: list[str]) -> None:
    """Each request is answered by the model that it names; unknown ones are 404; and what comes while one
    runs and one waits is refused with Retry-After, not kept."""
    from ray import serve

    paths = {str(seed): path for seed, path in zip(SEEDS, versions, strict=True)}
    limits = ReplicaOptions(max_models=1, max_ongoing_requests=1, max_queued_requests=1)
    handle = serve.run(application(paths, limits), name="many", route_prefix="/many")
    x = np.random.default_rng(0).standard_normal((1, 10)).astype(np.float32)
    try:
        for seed in (*SEEDS, *SEEDS):
            answer = handle.options(multiplexed_model_id=str(seed)).remote({"x": x}).result(timeout_s=20)
            np.testing.assert_allclose(answer["logits"], classify(classifier(seed), x), atol=1e-5)
        (status,) = _statuses(handle, 1)
        assert sum(model["digest"] is not None for model in status["models"].values()) == 1

        responses: list[tuple[int, httpx.Response]] = []

        def ask(seed: int) -> None:
            headers = {"serve_multiplexed_model_id": str(seed)}
            body = {"inputs": [{"x": x.tolist()}]}
            responses.append(
                (seed, httpx.post(f"{nodes.url}/many", json=body, headers=headers, timeout=20))
            )

        threads = [threading.Thread(target=ask, args=(SEEDS[n % 2],)) for n in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_WAIT_S)
        assert {response.status_code for _, response in responses} == {200, 503}
        for seed, response in responses:
            if response.status_code == 503:
                assert response.headers["retry-after"] == "1"
                continue
            answer = np.array(response.json()["results"][0]["logits"])
            np.testing.assert_allclose(answer, classify(classifier(seed), x), atol=1e-5)
        ask(9)
        _, unknown = responses[-1]
        assert unknown.status_code == 404
        assert "'9'" in unknown.json()["error"]
    finally:
        serve.delete("many")


def _text_artifact(folder: Path) -> Path:
    """A text's vector is the sum of its words': each of a, b, c, d has a place, and 1, 2, 4, 8 there."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    graph = parse(
        "g (int64[batch, length] ids) => (float[batch, 4] vector)"
        " <float[5, 4] table = {0,0,0,0, 1,0,0,0, 0,2,0,0, 0,0,4,0, 0,0,0,8}>"
        " { rows = Gather(table, ids) vector = ReduceSum<axes = [1], keepdims = 0>(rows) }",
        opset=11,
    )
    path = make_artifact(folder / "text.infer", graph)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["pad", *"abcd"])}, "pad"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    reads = {"file": "tokenizer.json", "inputs": {"ids": "ids"}, "max_length": 16}
    return _with_task(path, "text-embedding", {"tokenizer": reads, "output": "vector"})


def _image_artifact(folder: Path) -> Path:
    """A picture's label is its strongest colour."""
    graph = parse(
        "g (float[batch, 3, 4, 4] pixels) => (float[batch, 3] logits)"
        " { mean = GlobalAveragePool(pixels) logits = Flatten(mean) }"
    )
    path = make_artifact(folder / "picture.infer", graph)
    steps = [{"op": "resize", "height": 4, "width": 4}, {"op": "rescale", "factor": 1 / 255}]
    spec = {"input": "pixels", "output": "logits", "steps": steps, "labels": list(COLOURS)}
    return _with_task(path, "image-classification", spec)


def _with_task(path: Path, name: str, spec: dict[str, Any]) -> Path:
    edit_manifest(path, lambda data: data.update(task={"name": name, "spec": spec}))
    reseal(path)
    return path


def test_every_row_is_answered_once_though_a_worker_dies(
    nodes: Nodes, versions: list[str], tmp_path: Path
) -> None:
    """Parquet files with numbers, texts and pictures, some of them bad, over two workers, of which one
    kills itself at its second batch."""
    import pyarrow.parquet
    import ray

    xs, words = np.random.default_rng(0).standard_normal((120, 10)), np.arange(120 * 4).reshape(120, 4) % 5
    bad = {"x": 5, "text": 77, "picture": 118}
    columns = {
        "id": list(range(120)),
        "x": [x.tolist() for x in xs],
        "text": [" ".join(np.repeat(list("abcd"), counts)) for counts in words],
        "picture": [_picture(number) for number in range(120)],
    }
    for (column, number), cell in zip(bad.items(), ([1.0, 2.0], None, b"no picture"), strict=True):
        columns[column][number] = cell
    table = pyarrow.table(columns)
    (tmp_path / "rows").mkdir()
    for part in range(6):
        pyarrow.parquet.write_table(table.slice(20 * part, 20), tmp_path / "rows" / f"{part}.parquet")
    paths = {"x": versions[0], "text": _text_artifact(tmp_path), "picture": _image_artifact(tmp_path)}
    mark = tmp_path / "killed"

    class Mortal:
        """Answers all three columns; kills its worker, once."""

        def __init__(self) -> None:
            self.sessions = {
                column: BatchSession(path, column, result=f"of {column}", error=f"no {column}")
                for column, path in paths.items()
            }
            self.batches = 0

        def __call__(self, batch: Any) -> Any:
            self.batches += 1
            if self.batches == 2:
                try:
                    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            for session in self.sessions.values():
                batch = session(batch)
            return {**batch, "pid": np.full(len(batch["id"]), os.getpid())}

    data = ray.data.read_parquet(str(tmp_path / "rows"), concurrency=1).repartition(
        target_num_rows_per_block=20
    )
    workers = ray.data.ActorPoolStrategy(size=2)
    found = data.map_batches(Mortal, batch_size=10, compute=workers, num_cpus=1).take_all()
    assert mark.exists(), "no worker died"
    assert len({row["pid"] for row in found}) > 1
    assert sorted(row["id"] for row in found) == list(range(120))
    truth = classify(classifier(SEEDS[0]), xs.astype(np.float32))
    for row in found:
        number = row["id"]
        for column in paths:
            assert (row[f"of {column}"] is None) is (number == bad[column])
            assert (row[f"no {column}"] is None) is (number != bad[column])
        if number != bad["x"]:
            np.testing.assert_allclose(row["of x"]["logits"], truth[number], atol=1e-4)
        if number != bad["text"]:
            np.testing.assert_array_equal(row["of text"]["vector"], words[number] * [1, 2, 4, 8])
        if number != bad["picture"]:
            first = row["of picture"]["labels"][0]
            assert first["label"] == COLOURS[number % 3]
            assert first["score"] == pytest.approx(np.e / (np.e + 2), abs=1e-6)


COLOURS = ("red", "green", "blue")


def _picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), ["#f00", "#0f0", "#00f"][number % 3]).save(file, "png")
    return file.getvalue()


def test_nobody_outside_is_asked(nodes: Nodes) -> None:
    """No process of the cluster is connected with another machine: Ray's usage statistics are off."""
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    processes = psutil.Process().children(recursive=True)
    assert len(processes) > 3
    remote = [
        (process.name(), connection.raddr.ip)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.raddr and connection.raddr.ip.removeprefix("::ffff:") not in own
    ]
    assert remote == []
