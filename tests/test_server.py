"""`infer serve`, asked by independent clients: tritonclient, openai, and HTTP by hand."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from infer.server.tensors import DATATYPES
from tests.serving import (
    DTYPES,
    Served,
    brightness,
    embedder,
    identities,
    loudness,
    recording,
    serving,
    slow,
    slow_request,
    tensor,
    wait_until_waiting,
)
from tests.tiny import classifier, classify, make_artifact, write

LIMIT_BYTES = 2**20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server with all kinds of models, two versions of `net` among them."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "v1").mkdir()
    first = write(
        folder / "v1", "g (float[batch, 10] x) => (float[batch, 10] logits) { logits = Neg(x) }", "net.onnx"
    )
    models = [first, make_artifact(folder / "net.infer"), embedder(folder / "words.infer")]
    models += [brightness(folder / "bright.infer"), loudness(folder / "loud.infer"), slow(folder)]
    models += identities(folder)
    options = ("--json-logs", "--max-body", "1MiB", "--queue", "64", "--streams", "1")
    with serving(folder, *models, *options) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.url.removeprefix("http://"), concurrency=1) as found:
        yield found


def values(dtype: str) -> np.ndarray[Any, Any]:
    """Some of a dtype, its limits among them, shape = (2, 3)."""
    if dtype == "string":
        return np.array([["", "a", "ü🙂"], ["a\nb", '"', "\\"]], dtype=object)
    if dtype == "bool":
        return np.array([[True, False, True], [False, False, True]])
    if dtype.startswith("float"):
        limits = np.finfo(dtype)
        return np.array([[0, -0.1, 1 / 3], [limits.min, limits.max, limits.tiny]], dtype)
    whole = np.iinfo(dtype)
    return np.array([[0, 1, 2], [whole.min, whole.max, whole.max - 1]], dtype)


def asked(client: triton.InferenceServerClient, dtype: str, binary: tuple[bool, bool], **more: Any) -> Any:
    """What the client makes of the answer of `dtype`'s identity."""
    array = values(dtype)
    given = triton.InferInput("x", list(array.shape), DATATYPES[dtype])
    given.set_data_from_numpy(array, binary_data=binary[0])
    wanted = triton.InferRequestedOutput("y", binary_data=binary[1])
    return client.infer(f"id-{dtype}", [given], outputs=[wanted], **more).as_numpy("y")


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_dtypes_in_both_forms(client: triton.InferenceServerClient, dtype: str) -> None:
    """tritonclient gets back what it sent, in JSON and binary, in and out; FP16 has no JSON form."""
    for binary in ((True, True), (True, False), (False, True), (False, False)):
        if dtype == "float16" and not all(binary):
            with pytest.raises(InferenceServerException):
                asked(client, dtype, binary)
            continue
        found = asked(client, dtype, binary)
        if dtype == "string":  # as bytes in binary form
            found = np.array(
                [[getattr(s, "decode", lambda s=s: s)() for s in row] for row in found], object
            )
        np.testing.assert_array_equal(found, values(dtype))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_both_ways(served: Served, client: triton.InferenceServerClient, encoding: str) -> None:
    """tritonclient compresses its request and asks for a compressed answer, which it is."""
    array = np.zeros((1, 4096), np.float32)
    given = triton.InferInput("x", list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    answer = client.infer(
        "id-float32",
        [given],
        request_compression_algorithm=encoding,
        response_compression_algorithm=encoding,
    )
    np.testing.assert_array_equal(answer.as_numpy("y"), array)
    body = json.dumps({"inputs": [tensor("x", array, "FP32")]}).encode()
    response = served.post(
        "/v2/models/id-float32/infer", content=body, headers={"accept-encoding": encoding}
    )
    assert response.headers["content-encoding"] == encoding
    assert int(response.headers["content-length"]) < 1000
    response = served.post("/v2/models/id-float32/infer", content=body)  # httpx lists all that it reads
    assert "content-encoding" not in response.headers


def test_what_there_is(served: Served, client: triton.InferenceServerClient) -> None:
    """Health, metadata, versions, configuration and index, as tritonclient reads them."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net")
    assert client.is_model_ready("net", "1")
    assert not client.is_model_ready("net", "3")
    assert not client.is_model_ready("absent")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = client.get_model_metadata("net")
    assert found["versions"] == ["1", "2"]
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 10]}]
    assert found["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}]
    assert client.get_model_metadata("net", "1")["outputs"][0]["shape"] == [-1, 10]
    assert client.get_model_config("id-string")["input"][0]["data_type"] == "TYPE_STRING"
    index = {(each["name"], each["version"]): each["state"] for each in client.get_model_repository_index()}
    assert index[("net", "1")] == index[("net", "2")] == "READY"
    assert served.get("/v2/models").json()["models"][:2] == ["net", "words"]


def test_versions_answer_for_themselves(client: triton.InferenceServerClient) -> None:
    """The newest answers by default, each under its number; outputs are the closed form."""
    x = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
    given = triton.InferInput("x", [3, 10], "FP32")
    given.set_data_from_numpy(x)
    newest = client.infer("net", [given], request_id="mine")
    assert newest.get_response()["model_version"] == "2"
    (before,) = client.get_inference_statistics("net", "2")["model_stats"]
    client.infer("net", [given])
    (after,) = client.get_inference_statistics("net", "2")["model_stats"]
    assert after["inference_count"] == before["inference_count"] + 3  # rows
    assert after["execution_count"] == before["execution_count"] + 1
    for part in ("success", "compute_infer"):
        spent = [found["inference_stats"][part] for found in (before, after)]
        assert spent[1]["count"] == spent[0]["count"] + 1
        assert spent[1]["ns"] > spent[0]["ns"]
    assert after["inference_stats"]["fail"] == before["inference_stats"]["fail"]
    assert newest.get_response()["id"] == "mine"
    np.testing.assert_allclose(newest.as_numpy("logits"), classify(classifier(), x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(client.infer("net", [given], "1").as_numpy("logits"), -x)


def test_many_callers_are_answered_rightly(served: Served) -> None:
    """64 requests at once, in batches or not: each gets the answer to its own."""
    rng = np.random.default_rng(1)
    rows = [rng.standard_normal((1 + i % 3, 10)).astype(np.float32) for i in range(64)]

    def ask(x: np.ndarray[Any, Any]) -> Any:
        response = served.post("/v2/models/net/infer", json={"inputs": [tensor("x", x, "FP32")]})
        (output,) = response.json()["outputs"]
        return np.array(output["data"]).reshape(output["shape"])

    with ThreadPoolExecutor(16) as pool:
        for x, found in zip(rows, pool.map(ask, rows), strict=True):
            np.testing.assert_allclose(found, classify(classifier(), x), rtol=1e-5, atol=1e-6)


X = {"inputs": [{"name": "x", "shape": [1, 10], "datatype": "FP32", "data": [0.0] * 10}]}
WRONG_X = {"inputs": [{**X["inputs"][0], "shape": [2, 5]}]}
ERRORS: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "no path": ("GET", "/nothing", {}, 404, "Not Found"),
    "no path below the API": ("GET", "/v2/", {}, 404, "Not Found"),
    "no model": ("GET", "/v2/models/absent", {}, 404, "there is no model 'absent'"),
    "no version": ("POST", "/v2/models/net/versions/3/infer", {"json": X}, 404, "it has 1, 2"),
    "no model to predict": ("POST", "/v1/models/absent:predict", {"json": {}}, 404, "'absent'"),
    "wrong verb": ("GET", "/v2/models/net/infer", {}, 405, "Method Not Allowed"),
    "wrong verb of health": ("DELETE", "/v2/health/ready", {}, 405, "Method Not Allowed"),
    "no JSON": ("POST", "/v2/models/net/infer", {"content": b"{"}, 400, "not valid JSON"),
    "wrong shape": ("POST", "/v2/models/net/infer", {"json": WRONG_X}, 400, "axis 1 must be 10, not 5"),
    "no feeds": ("POST", "/v2/models/net/infer", {"json": {"inputs": []}}, 400, "feeds lack 'x'"),
    "no such output": (
        "POST", "/v2/models/net/infer", {"json": {**X, "outputs": [{"name": "z"}]}}, 400, "no output 'z'",
    ),
    "a wrong length of the JSON": (
        "POST", "/v2/models/net/infer", {"json": X, "headers": {"inference-header-content-length": "1_0"}},
        400, "Inference-Header-Content-Length",
    ),
    "unknown encoding": (
        "POST", "/v2/models/net/infer", {"json": X, "headers": {"content-encoding": "br"}}, 415, "gzip",
    ),
    "too large": ("POST", "/v2/models/net/infer", {"content": bytes(LIMIT_BYTES + 1)}, 413, "1048576"),
    "too late": (
        "POST", "/v2/models/slow/infer", {"json": {**slow_request(999), "parameters": {"timeout": 50_000}}},
        504, "no answer in the time",
    ),
    "other site": ("GET", "/v2", {"headers": {"origin": "http://evil.example"}}, 403, "other sites"),
    "other name": ("GET", "/v2", {"headers": {"host": "evil.example"}}, 403, "names of this machine"),
    "large head": ("GET", "/v2", {"headers": {"a": "b" * 16_000, "c": "d" * 16_000}}, 431, "16384 bytes"),
    "type of content": (
        "POST", "/v1/models/words:predict", {"content": b"a", "headers": {"content-type": "image/png"}},
        415, "text/plain",
    ),
    "name of a file": ("POST", "/v1/models/bright:predict", {"json": {"inputs": ["/etc"]}}, 400, "b64"),
    "no picture": (
        "POST", "/v1/models/bright:predict", {"content": b"%!PS", "headers": {"content-type": "image/x"}},
        400, "cannot be read as an image",
    ),
    "no text": ("POST", "/v1/models/words:predict", {"json": {"inputs": [1]}}, 400, "text 0 must be a str"),
    "no list": ("POST", "/v1/models/words:predict", {"json": {"inputs": "a"}}, 400, "'inputs' must be"),
    "half a character": (
        "POST", "/v1/models/words:predict", {"content": b"\xff", "headers": {"content-type": "text/plain"}},
        400, "not UTF-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_wrong(served: Served, name: str) -> None:
    """The status, a reason, the request's id; nothing of the server's files."""
    method, path, options, status, reason = ERRORS[name]
    response = served.client.request(method, path, **options)
    assert response.status_code == status, response.text
    assert re.search(re.escape(reason), response.json()["error"]), response.text
    assert response.headers["x-request-id"]
    assert str(served.log.parent) not in response.text


def test_a_failure_of_the_model_is_told_by_its_id_only(tmp_path: Path) -> None:
    """What a backend says of a graph stays in the log."""
    graph = write(
        tmp_path, "g (float[n] x, int64[k] at) => (float[k] y) { y = Gather(x, at) }", "pick.onnx"
    )
    with serving(tmp_path, graph, "--json-logs") as served:
        given = [tensor("x", np.ones(3, np.float32), "FP32"), tensor("at", np.array([7]), "INT64")]
        response = served.post("/v2/models/pick/infer", json={"inputs": given})
        request_id = response.headers["x-request-id"]
        assert response.status_code == 500
        assert response.json() == {"error": f"the server failed; its log says more under {request_id}"}
        given[1] = tensor("at", np.array([2]), "INT64")
        assert served.post("/v2/models/pick/infer", json={"inputs": given}).status_code == 200
        (failure,) = [line for line in served.lines() if line["level"] == "error"]
        assert request_id in failure["message"]
        assert "Gather" in failure["exception"]


def test_a_client_that_leaves_takes_its_request_along(served: Served) -> None:
    """A request that waits behind a slow one is dropped when its client hangs up, and logged as 499."""
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.post, "/v2/models/slow/infer", json=slow_request(1500))
        wait_until_waiting(served, 1)
        with pytest.raises(httpx.ReadTimeout):
            served.post(
                "/v2/models/slow/infer",
                json=slow_request(1),
                timeout=0.2,
                headers={"x-request-id": "leaves"},
            )
        assert first.result().status_code == 200
    line = logged(served, "leaves")
    assert (line["status"], line["endpoint"], line["model"]) == (499, "infer_model", "slow")


def logged(served: Served, request_id: str) -> dict[str, Any]:
    """The line of a request's end, once it is there."""
    for _ in range(200):
        if found := [line for line in served.lines() if line.get("request_id") == request_id]:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no line of {request_id}")


def test_the_log_ties_a_request_to_its_trace(served: Served) -> None:
    """The caller's id comes back and is logged, with the trace it is part of; odd ones are replaced."""
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"x-request-id": "mine-1", "traceparent": f"00-{trace_id}-{parent_id}-01"}
    response = served.post("/v2/models/net/infer", json=X, headers=headers)
    assert response.headers["x-request-id"] == "mine-1"
    line = logged(served, "mine-1")
    assert (line["trace_id"], line["parent_id"]) == (trace_id, parent_id)
    assert re.fullmatch("[0-9a-f]{16}", line["span_id"])
    assert (line["method"], line["endpoint"], line["status"]) == ("POST", "infer_model", 200)
    assert (line["model"], line["version"]) == ("net", "2")
    assert line["bytes_out"] == len(response.content)
    assert line["bytes_in"] == int(response.request.headers["content-length"])
    response = served.get(
        "/v2", headers={"x-request-id": "a\tb", "traceparent": f"00-{'0' * 32}-{parent_id}-01"}
    )
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    line = logged(served, response.headers["x-request-id"])
    assert line["parent_id"] is None
    assert line["trace_id"] != "0" * 32


def scraped(served: Served) -> dict[tuple[str, ...], float]:
    """Samples by name and label values, as the library's own parser reads them."""
    text = served.get("/metrics").text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_was_asked(served: Served) -> None:
    """Own names and Triton's go on by what is asked between two scrapes."""
    before = scraped(served)
    rows = {"inputs": [tensor("x", np.zeros((5, 10), np.float32), "FP32")]}
    for _ in range(3):
        served.post("/v2/models/net/infer", json=rows)
    served.post("/v2/models/net/infer", json=WRONG_X)
    now = scraped(served)

    def grown(*sample: str) -> float:
        return now[sample] - before.get(sample, 0.0)

    assert grown("infer_requests_total", "2", "net", "success") == 3
    assert grown("infer_requests_total", "2", "bad input", "net") == 1
    assert grown("infer_rows_total", "2", "net") == grown("nv_inference_count", "2", "net") == 15
    assert grown("infer_runs_total", "2", "net") == grown("nv_inference_exec_count", "2", "net") == 3
    assert grown("nv_inference_request_success", "2", "net") == 3
    assert grown("nv_inference_request_failure", "2", "net") == 1
    assert grown("infer_request_seconds_count", "2", "net") == 4
    seconds = grown("infer_request_seconds_sum", "2", "net")
    assert grown("nv_inference_request_duration_us", "2", "net") == pytest.approx(1e6 * seconds)
    waited = grown("infer_queue_seconds_total", "2", "net")
    assert grown("nv_inference_queue_duration_us", "2", "net") == pytest.approx(1e6 * waited)
    assert grown("infer_run_positions_total", "2", "net") == 15
    assert grown("infer_padding_positions_total", "2", "net") == 0
    assert grown("infer_http_responses_total", "200", "infer_model") == 3
    assert now[("infer_requests_waiting", "2", "net")] == 0


def test_what_never_reached_a_model_is_counted_too(served: Served) -> None:
    """Bodies that are no JSON or too large are bad input, and requests beyond the queue are refused."""

    def counted(outcome: str) -> float:
        return scraped(served)[("infer_requests_total", *sorted(("slow", "1", outcome)))]

    bad, refused = counted("bad input"), counted("refused")
    assert served.post("/v2/models/slow/infer", content=b"{").status_code == 400
    assert served.post("/v1/models/slow:predict", content=b"[]").status_code == 400
    assert served.post("/v2/models/slow/infer", content=bytes(2 * LIMIT_BYTES)).status_code == 413
    assert counted("bad input") == bad + 3
    with ThreadPoolExecutor(96) as pool:
        asked = [
            pool.submit(served.post, "/v2/models/slow/infer", json=slow_request(40)) for _ in range(96)
        ]
        statuses = [answer.result().status_code for answer in asked]
    assert set(statuses) == {200, 503}
    assert counted("refused") == refused + statuses.count(503)


def test_an_answer_may_have_any_time(tmp_path: Path) -> None:
    """More than a wait can take is no limit, for requests that wait for their turn, too."""
    with serving(tmp_path, slow(tmp_path), "--timeout", "999999999h") as served:
        with ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(served.post, "/v2/models/slow/infer", json=slow_request(20)) for _ in range(8)
            ]
            assert {answer.result().status_code for answer in asked} == {200}


def test_many_small_compressed_bodies_find_room(tmp_path: Path) -> None:
    """Each takes what it can inflate to, not what the largest could: forty at once, of which four of the
    largest would fill the server."""
    body = gzip.compress(json.dumps(slow_request(20)).encode())
    with serving(tmp_path, slow(tmp_path)) as served, ThreadPoolExecutor(40) as pool:
        asked = [
            pool.submit(
                served.post,
                "/v2/models/slow/infer",
                content=body,
                headers={"content-encoding": "gzip"},
            )
            for _ in range(40)
        ]
        assert {answer.result().status_code for answer in asked} == {200}


def test_recordings_are_predicted(served: Served) -> None:
    """As the whole body, and as base64 in JSON; at another rate than the model's."""
    path = "/v1/models/loud:predict"
    for amplitude, label in ((0.8, "loud"), (0.01, "quiet")):
        sound = recording(amplitude, 16000)
        response = served.post(path, content=sound, headers={"content-type": "audio/wav"})
        assert response.status_code == 200, response.text
        assert response.json()["results"][0]["labels"][0]["label"] == label
        encoded = {"inputs": [{"b64": base64.b64encode(sound).decode()}]}
        assert served.post(path, json=encoded).json()["results"] == response.json()["results"]
    response = served.post(path, content=b"no sound", headers={"content-type": "audio/wav"})
    assert response.status_code == 400
    assert served.post(path, json={"inputs": ["/etc/passwd"]}).status_code == 400


def test_unknown_names_make_no_series(served: Served) -> None:
    """Labels are the models' and the endpoints', never what a request says."""
    served.get("/v2/models/made-up-name")
    served.get("/made/up/path")
    assert "made" not in served.get("/metrics").text


def test_texts_are_predicted(served: Served) -> None:
    """As JSON and as the body itself; row i of the words' vectors is (i, i², 1)."""
    response = served.post("/v1/models/words:predict", json={"inputs": ["one two", "four"]})
    assert [each["vector"] for each in response.json()["results"]] == [[5, 13, 2], [5, 25, 1]]
    response = served.post(
        "/v1/models/words/versions/1:predict",
        content=b"three",
        headers={"content-type": "text/plain; charset=utf-8"},
    )
    assert [each["vector"] for each in response.json()["results"]] == [[4, 16, 1]]
    assert served.post("/v1/models/words:predict", json={"inputs": []}).json()["results"] == []


def test_pictures_are_predicted(served: Served) -> None:
    """A file as it is, or base64 in JSON."""
    white, black = (_png(colour) for colour in ("white", "black"))
    response = served.post(
        "/v1/models/bright:predict", content=white, headers={"content-type": "image/png"}
    )
    (found,) = response.json()["results"]
    assert found["labels"][0]["label"] == "bright"
    inputs = [{"b64": base64.b64encode(picture).decode()} for picture in (black, white)]
    results = served.post("/v1/models/bright:predict", json={"inputs": inputs}).json()["results"]
    assert [found["labels"][0]["label"] for found in results] == ["dark", "bright"]


def _png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def test_arrays_are_predicted(served: Served) -> None:
    """A model without a task takes feeds."""
    feeds = {"x": [[0.0] * 9 + [1.0]]}
    response = served.post("/v1/models/net/versions/1:predict", json={"inputs": [feeds]})
    assert response.json()["results"][0]["logits"][0][9] == -1


def test_the_openai_client_gets_embeddings(served: Served) -> None:
    """As floats, in base64 (its own default), one and many; tokens are counted."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        many = client.embeddings.create(model="words", input=["one two", "four"])
        assert [each.embedding for each in many.data] == [[5, 13, 2], [5, 25, 1]]
        assert [each.index for each in many.data] == [0, 1]
        assert many.usage.prompt_tokens == 3
        one = client.embeddings.create(model="words", input="three", encoding_format="float", dimensions=3)
        assert one.data[0].embedding == [4, 16, 1]
        assert {"net", "words"} <= {model.id for model in client.models.list()}
        assert client.models.retrieve("words").id == "words"
        with pytest.raises(openai.NotFoundError, match="no model 'absent'"):
            client.embeddings.create(model="absent", input="a")
        with pytest.raises(openai.BadRequestError, match="no text-embedding model"):
            client.embeddings.create(model="net", input="a")
        with pytest.raises(openai.BadRequestError, match="'dimensions' must be 3"):
            client.embeddings.create(model="words", input="a", dimensions=2)
        with pytest.raises(openai.BadRequestError, match="one or more texts"):
            client.embeddings.create(model="words", input=[])


def test_an_encoding_that_is_null_is_the_default(served: Served) -> None:
    """As clients may send what they were not told; an empty one is refused."""
    asked = {"model": "words", "input": "three", "encoding_format": None}
    response = served.post("/v1/embeddings", json=asked)
    assert response.json()["data"][0]["embedding"] == [4, 16, 1]
    response = served.post("/v1/embeddings", json={**asked, "encoding_format": ""})
    assert response.status_code == 400


def test_probes_are_answered_while_models_work(served: Served) -> None:
    """Health comes back at once beside 16 slow requests, and none of them is lost."""
    with ThreadPoolExecutor(16) as pool:
        running = [
            pool.submit(served.post, "/v2/models/slow/infer", json=slow_request(20)) for _ in range(16)
        ]
        while not all(future.done() for future in running):
            start = time.perf_counter()
            assert served.get("/v2/health/ready").status_code == 200
            assert time.perf_counter() - start < 2
        assert {future.result().status_code for future in running} == {200}


def test_the_page_is_served_without_anything_from_elsewhere(served: Served) -> None:
    """Its three files, a policy that allows itself alone, and no address of another host in them."""
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        response = served.get(path)
        assert response.headers["content-type"].startswith(kind)
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert not re.search(r"https?://(?!www\.w3\.org/)", response.text)


@pytest.mark.slow
def test_the_protocol_holds_for_whatever_is_asked(served: Served) -> None:
    """schemathesis makes requests of the OpenAPI document, right and wrong ones, for models that there are
    and are not: no 5xx, but for what gives itself no time, and only the statuses, types and shapes of
    answers that the document states."""
    import schemathesis
    from schemathesis import checks as of

    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    # whether wrong ones were refused is what the other tests say: a schema cannot tell all that is wrong
    checks = [of.not_a_server_error, of.status_code_conformance, of.content_type_conformance]
    checks += [of.response_schema_conformance]
    paths, statuses = set(), set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(), known=st.booleans())
        def ask(case: Any, known: bool) -> None:
            if known and "model" in case.path_parameters:
                case.path_parameters["model"] = "net"
            elif known and isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = "words"
            response = case.call()
            # who gives a request some microseconds is told that they are over
            given = case.body.get("parameters") if isinstance(case.body, dict) else None
            hurried = response.status_code == 504 and isinstance(given, dict) and "timeout" in given
            case.validate_response(response, checks=checks[1:] if hurried else checks)
            statuses.add(response.status_code)

        ask()
        paths.add(operation.path)
    assert len(paths) >= 18
    assert statuses >= {200, 400, 404}


def test_an_openapi_document_describes_the_protocol(served: Served) -> None:
    """Every path of it is answered by something."""
    document = served.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    for path, item in document["paths"].items():
        for method in item:
            filled = path.format(model="net", version="1")
            response = served.client.request(method, filled)
            asks = path.endswith(("/infer", ":predict", "/embeddings"))
            assert response.status_code == (400 if asks else 200), path
