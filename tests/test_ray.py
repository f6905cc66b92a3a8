"""Sessions on Ray, without a cluster: options, HTTP, versions, and the rows of a batch."""

from __future__ import annotations

import asyncio
import base64
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

import infer
from infer.backends.ort import OrtExecutable
from infer.errors import DeadlineError, FeedError, InputError, OverloadedError, ParityError
from infer.server.inputs import inputs_of, kind_of
from infer.server.ray import BatchSession, ReplicaOptions, application, from_config
from infer.server.ray.http import UnknownModelError, error_response
from infer.server.ray.models import Model, open_model
from infer.server.ray.serving import Replica, paths_of
from infer.tasks import TASKS
from tests.tiny import classifier, classify, identity, make_artifact, reseal, write

SEEDS = (7, 8)
ROW = np.random.default_rng(0).standard_normal((1, 10)).astype(np.float32)


@pytest.fixture(autouse=True)
def _allotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread and no GPU, as of an actor with one CPU."""
    for place in ("models", "data"):
        monkeypatch.setattr(f"infer.server.ray.{place}.allotted_threads", lambda: 1)
        monkeypatch.setattr(f"infer.server.ray.{place}.allotted_device", lambda: "cpu")


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two artifacts of one net with other weights."""
    folder = tmp_path_factory.mktemp("versions")
    return [str(make_artifact(folder / f"v{seed}.infer", classifier(seed))) for seed in SEEDS]


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory, versions: list[str]) -> str:
    """An artifact whose graph is another one than its golden points are of; all its hashes are right."""
    path = make_artifact(tmp_path_factory.mktemp("liar") / "net.infer", classifier(9))
    for golden in (path / "golden").glob("*-outputs.npz"):
        golden.write_bytes((Path(versions[0]) / "golden" / golden.name).read_bytes())
    reseal(path)
    return str(path)


def _is(answer: Any, seed: int) -> bool:
    return bool(np.allclose(answer["logits"], classify(classifier(seed), ROW), atol=1e-5))


def test_without_ray_the_command_that_installs_it_is_named() -> None:
    """And nothing else of infer misses it."""
    program = (
        "import sys; sys.modules['ray'] = None; import infer.server, infer.live\nimport infer.server.ray"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "MissingPackageError" in done.stderr
    assert done.stderr.strip().endswith('pip install "infer-onnx[ray]"')


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "user_config must be"),
        ({"path": 3}, "user_config must be"),
        ({"path": "a", "paths": {"a": "b"}}, "user_config must be"),
        ({"paths": {}}, "user_config must be"),
        ({"paths": {"a": None}}, "user_config must be"),
        ("net.infer", "user_config must be"),
        ({"paths": {"../etc": "a"}}, "a model id has"),
        ({"paths": {"": "a"}}, "a model id has"),
        ({"paths": {"a" * 129: "a"}}, "a model id has"),
    ],
)
def test_a_config_that_names_no_model_is_refused(config: Any, words: str) -> None:
    """Before a replica is started for it, and by each replica."""
    with pytest.raises(InputError, match=words):
        paths_of(config)


def test_options_that_cannot_be_are_refused() -> None:
    """By name, in Python and in a configuration file."""
    with pytest.raises(InputError, match="min_replicas must be an int of 1 or more"):
        ReplicaOptions(min_replicas=0)
    with pytest.raises(InputError, match="max_models must be"):
        ReplicaOptions(max_models=True)
    with pytest.raises(InputError, match="less than min_replicas, 3"):
        ReplicaOptions(min_replicas=3, max_replicas=2)
    with pytest.raises(InputError, match="there is no option 'replicas'; there are min_replicas"):
        from_config({"path": "net.infer", "replicas": 2})


def test_what_serve_is_told() -> None:
    """Options become those of a deployment; scaling is on only if there is something to scale."""
    fixed = application("net.infer", ReplicaOptions(min_replicas=2, num_cpus=3, max_queued_requests=9))
    deployment = fixed._bound_deployment
    assert deployment.num_replicas == 2
    assert deployment.max_queued_requests == 9
    assert deployment.ray_actor_options["num_cpus"] == 3
    assert deployment.user_config == {"path": str(Path("net.infer").absolute())}
    scaled = from_config({"paths": {"a": "/a"}, "max_replicas": 4, "target_ongoing_requests": 5.0})
    config = scaled._bound_deployment._deployment_config
    assert config.autoscaling_config.max_replicas == 4
    assert config.autoscaling_config.target_ongoing_requests == 5.0
    assert config.user_config == {"paths": {"a": "/a"}}


def test_the_readme_asks_for_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its programs call what exists, with arguments that it takes; its file is deployed on a cluster."""
    import ray.data
    from ray import serve

    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    serving, batches = re.findall(r"```py\n(.*?)```", readme, re.DOTALL)
    served: list[Any] = []
    monkeypatch.setattr(serve, "run", served.append)
    exec(serving, {})
    assert served[0]._bound_deployment.user_config == {"path": "/models/minilm.infer"}

    class Data:
        def map_batches(self, cls: Any, *, fn_constructor_kwargs: dict[str, Any], **options: Any) -> Data:
            assert cls is BatchSession
            inspect.signature(cls).bind(**fn_constructor_kwargs)
            inspect.signature(ray.data.Dataset.map_batches).bind(self, cls, **options)
            return self

        def write_parquet(self, path: str) -> None:
            served.append(path)

    monkeypatch.setattr(ray.data, "read_parquet", lambda path: Data())
    exec(batches, {})
    assert served[1] == "/data/vectors"


@pytest.mark.parametrize("task", TASKS)
def test_no_string_in_json_is_the_name_of_a_file(task: str, tmp_path: Path) -> None:
    """Tasks that open files when given a string get bytes from HTTP, or the request is refused."""
    opens_files = task.startswith(("image", "object", "face", "audio", "voice", "speaker"))
    secret = tmp_path / "secret.png"
    if not opens_files:
        assert inputs_of([str(secret)], kind_of(task)) == [str(secret)]
        return
    for value in (str(secret), [str(secret)], {"path": str(secret)}, {"b64": "x", "path": "y"}, None, 1):
        with pytest.raises(InputError, match="must be an object"):
            inputs_of([value], kind_of(task))
    with pytest.raises(InputError, match="not valid base64"):
        inputs_of([{"b64": "*"}], kind_of(task))
    assert inputs_of([{"b64": base64.b64encode(b"\x89PNG").decode()}], kind_of(task)) == [b"\x89PNG"]


def test_the_status_says_whose_fault_it_is() -> None:
    """What a caller can mend is told; what it cannot is not shown to it."""
    cases = [
        (UnknownModelError("no a"), 404),
        (FeedError("wrong"), 400),
        (InputError("wrong"), 400),
        (OverloadedError("later"), 503),
        (DeadlineError("late"), 504),
        (RuntimeError("/secret/path"), 500),
        (infer.ArtifactError("/secret/path"), 500),
    ]
    for error, status in cases:
        response = error_response(error)
        assert response.status_code == status
        assert (b"/secret" in response.body) is False
        assert ("retry-after" in response.headers) is (status == 503)


def _run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


@pytest.fixture
def replica() -> Iterator[Replica]:
    found = Replica(ReplicaOptions(max_body_bytes=4096))
    yield found
    if found._lone is not None:
        found._lone.live.close()


def test_a_bad_version_leaves_the_one_that_serves(
    replica: Replica, versions: list[str], liar: str, tmp_path: Path
) -> None:
    """One that is not there, one that answers otherwise than recorded, a config that names none: `status`
    says why, and the next good one takes over."""

    async def story() -> None:
        await replica.reconfigure({"path": versions[0]})
        for bad, words in ((str(tmp_path / "none"), "there is no artifact"), (liar, "as it was proved to")):
            await replica.reconfigure({"path": bad})
            assert _is(await replica({"x": ROW}), SEEDS[0])
            (told,) = replica._refused.values()
            assert told.startswith(bad)
            assert words in told
            assert replica._paths == {"": versions[0]}
        await replica.check_health()
        await replica.reconfigure({"typing error": versions[1]})
        assert _is(await replica({"x": ROW}), SEEDS[0])
        assert "user_config must be" in replica._refused[""]
        await replica.reconfigure({"path": versions[1]})
        assert _is(await replica({"x": ROW}), SEEDS[1])
        assert (replica._refused, replica._paths) == ({}, {"": versions[1]})
        await replica.check_health()

    _run(story())


def test_a_new_replica_has_nothing_else_to_serve(replica: Replica, liar: str) -> None:
    """So it does not start, and Serve says why."""
    with pytest.raises(ParityError, match="as it was proved to"):
        _run(replica.reconfigure({"path": liar}))
    assert replica._lone is None


def test_a_replica_that_is_given_no_model_is_not_healthy(replica: Replica) -> None:
    """A configuration file without one says so when it starts."""
    assert from_config({"min_replicas": 2})._bound_deployment.user_config is None
    with pytest.raises(InputError, match="user_config must be"):
        _run(replica.check_health())


def test_health_is_the_answer_to_a_golden_point(
    replica: Replica, versions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that begins to answer wrongly is unhealthy; one whose folder is gone is not."""
    path = make_artifact(tmp_path / "net.infer", classifier(SEEDS[0]))
    _run(replica.reconfigure({"path": str(path)}))
    path.rename(tmp_path / "elsewhere")
    _run(replica.check_health())
    original = OrtExecutable.run
    monkeypatch.setattr(
        OrtExecutable,
        "run",
        lambda self, *args: {name: array + 0.01 for name, array in original(self, *args).items()},
    )
    with pytest.raises(ParityError, match="outside the tolerance"):
        _run(replica.check_health())


def test_http(replica: Replica, versions: list[str]) -> None:
    """Answers are those of the session; what does not fit is refused with its status."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await replica(Request(scope, receive, send))
        await response(scope, receive, send)

    async def story() -> None:
        await replica.reconfigure({"path": versions[0]})
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            rows = [{"x": ROW.tolist()}, {"x": (2 * ROW).tolist()}]
            answered = await client.post("/", json={"inputs": rows})
            assert answered.status_code == 200
            assert answered.headers["content-type"] == "application/json"
            first, second = answered.json()["results"]
            assert _is({"logits": np.array(first["logits"])}, SEEDS[0])
            np.testing.assert_allclose(second["logits"], classify(classifier(SEEDS[0]), 2 * ROW), atol=1e-5)
            assert (await client.post("/", json={"inputs": []})).json() == {"results": []}
            for body, status, words in (
                (b"{", 400, "not valid JSON"),
                (b"[]", 400, "the body must be"),
                (b'{"inputs": {}}', 400, "'inputs' must be"),
                (b'{"inputs": [{"x": [[1, 2]]}]}', 400, "must have shape"),
                (b'{"inputs": [' + b" " * 4096 + b"]}", 413, "more than the 4096 bytes"),
            ):
                answered = await client.post("/", content=body)
                assert answered.status_code == status, answered.text
                assert words in answered.json()["error"]

    _run(story())


def test_a_model_that_is_let_go_of_while_it_is_used_answers_first(
    versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray's multiplexer does: `__del__` is called in another thread while a request runs."""
    began, free = threading.Event(), threading.Event()
    original = OrtExecutable.run

    def held(self: OrtExecutable, *args: Any) -> Any:
        began.set()
        assert free.wait(20)
        return original(self, *args)

    model = open_model(versions[0], 8)
    monkeypatch.setattr(OrtExecutable, "run", held)

    async def ask(model: Model) -> Any:
        async with model.used() as session:
            return session, await session.arun({"x": ROW})

    async def story() -> None:
        asked = asyncio.ensure_future(ask(model))
        await asyncio.to_thread(began.wait, 20)
        await asyncio.to_thread(model.__del__)
        free.set()
        session, answer = await asked
        assert _is(answer, SEEDS[0])
        assert "closed" in repr(session)

    _run(story())


@pytest.fixture(scope="module")
def rows_session(versions: list[str]) -> Iterator[BatchSession]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infer.server.ray.data.allotted_threads", lambda: 1)
        patch.setattr("infer.server.ray.data.allotted_device", lambda: "cpu")
        found = BatchSession(versions[0], "x")
    yield found
    found._session.close()


CELLS = st.one_of(
    st.lists(st.floats(-3, 3), min_size=10, max_size=10).map(np.array),
    st.sampled_from([np.zeros(3), None, "text", np.full(10, 1e300), np.zeros((2, 10))]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(CELLS, max_size=12))
def test_each_row_of_a_batch_has_its_own_answer(rows_session: BatchSession, cells: list[Any]) -> None:
    """Good rows are answered as alone, whatever bad ones stand between them, and all keep their place."""
    column = np.empty(len(cells), object)
    column[:] = cells
    found = rows_session({"id": np.arange(len(cells)), "x": column})
    assert list(found) == ["id", "x", "result", "error"]
    assert found["id"].tolist() == list(range(len(cells)))
    assert len(found["result"]) == len(found["error"]) == len(cells)
    for cell, result, error in zip(cells, found["result"], found["error"], strict=True):
        good = isinstance(cell, np.ndarray) and cell.shape == (10,) and bool(cell.max() < 1e300)
        assert (error is None) is good
        if good:
            x = cell.astype(np.float32)[None]
            np.testing.assert_allclose(result["logits"], classify(classifier(SEEDS[0]), x)[0], atol=1e-4)
        else:
            assert result is None


def test_a_bad_row_raises_if_that_is_asked_for(versions: list[str]) -> None:
    """Then there is no column of errors."""
    session = BatchSession(versions[0], ["x"], result="scores", error=None)
    assert list(session({"x": np.zeros((2, 10))})) == ["x", "scores"]
    with pytest.raises(FeedError, match="must have shape"):
        session({"x": np.array([np.zeros(10), np.zeros(9)], object)})
    with pytest.raises(InputError, match="there is no column 'x'; there are 'y'"):
        session({"y": np.zeros((2, 10))})
    session._session.close()


def test_rows_that_may_not_run_together_run_alone(tmp_path: Path) -> None:
    """A graph that mixes its rows answers each as if it were alone."""
    graph = write(
        tmp_path,
        "g (float[N, 2] x) => (float[N, 2] y) { m = ReduceMean<axes = [0]>(x) y = Sub(x, m) }",
    )
    session = BatchSession(graph, "x")
    found = session({"x": np.array([[1.0, 2.0], [5.0, 7.0]])})
    assert found["error"] == [None, None]
    assert [np.ravel(result["y"]).tolist() for result in found["result"]] == [[0.0, 0.0], [0.0, 0.0]]
    session._session.close()


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("int32", [5, -(2**31)], 2**32 + 5),
        ("int8", [127], 300),
        ("int8", [0], np.uint64(2**63)),
        ("uint8", [255], -1),
        ("uint64", [2**63], -1),
        ("float16", [0.1, 60_000.0], 70_000),
    ],
)
def test_numbers_that_an_input_cannot_hold_are_an_error(
    tmp_path: Path, dtype: str, good: list[Any], bad: Any
) -> None:
    """Of their row alone; those that it can hold are narrowed, and floats are rounded."""
    session = BatchSession(write(tmp_path, identity(dtype, "N")), "x")
    column = np.empty(len(good) + 1, object)
    column[:] = [*good, bad]
    found = session({"x": column})
    for result, number in zip(found["result"], good, strict=False):
        np.testing.assert_array_equal(result["y"], np.array(number, dtype))
    assert found["error"][:-1] == [None] * len(good)
    assert f"has numbers that {dtype} cannot hold" in found["error"][-1]
    session._session.close()


def test_an_unknown_column_type_of_batch_is_said(rows_session: BatchSession) -> None:
    """Batches in another format have no columns to add to."""
    with pytest.raises(InputError, match="leave batch_format as it is"):
        rows_session([1, 2])  # type: ignore[arg-type]
