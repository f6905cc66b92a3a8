"""The protocol over gRPC: Triton's client, both forms of tensors, every error, and the end of a server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from tritonclient import grpc as triton
from tritonclient.utils import np_to_triton_dtype

from infer.errors import InputError
from infer.server.grpc_api import _told
from infer.server.grpc_messages import MESSAGES, SERVICE
from infer.server.grpc_tensors import _CONTENTS, dump, parse, read
from infer.server.oip import InferRequest
from tests.command import infer_command
from tests.serving import DTYPES, Served, identities, serving, slow, wait_until_waiting
from tests.tiny import edit_manifest, identity, make_artifact, write
from tests.waiting import until

TOKEN = "a-token-that-is-long"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("grpc")
    models = [*identities(folder), slow(folder)]
    options = ("--grpc-port", "0", "--json-logs", "--queue", "4", "--max-body", "8MiB", "--streams", "1")
    with serving(folder, *models, *options) as found:
        yield found


@pytest.fixture(scope="module")
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.grpc) as found:
        yield found


def call(channel: grpc.Channel, method: str, message: Any = None, **options: Any) -> Any:
    """The answer to a message of our own."""
    kind = MESSAGES[f"{method}Response"]
    ask = channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=lambda asked: asked.SerializeToString(),
        response_deserializer=kind.FromString,
    )
    return ask(MESSAGES[f"{method}Request"]() if message is None else message, **options)


def request(model: str, *inputs: dict[str, Any], raw: tuple[bytes, ...] = (), **more: Any) -> Any:
    found = MESSAGES["ModelInferRequest"](model_name=model, raw_input_contents=raw, **more)
    for item in inputs:
        contents = item.pop("contents", None)
        added = found.inputs.add(**item)
        if contents is not None:
            added.contents.SetInParent()
            for field, values in contents.items():
                getattr(added.contents, field).extend(values)
    return found


def values_of(dtype: str) -> np.ndarray:
    if dtype == "string":
        return np.array([["a", "", "ü"], ["日本", "x" * 300, "\0"]], object)
    found = np.random.default_rng(0).uniform(-3, 3, (2, 3)) * (1 if dtype == "bool" else 40)
    return (found > 0) if dtype == "bool" else np.abs(found).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tritons_client_gets_what_it_sent(served: Served, dtype: str) -> None:
    """Of every dtype."""
    sent = values_of(dtype)
    with triton.InferenceServerClient(served.grpc) as client:
        item = triton.InferInput("x", sent.shape, np_to_triton_dtype(sent.dtype))
        item.set_data_from_numpy(sent)
        answer = client.infer(f"id-{dtype}", [item], request_id="mine")
        wanted = client.infer(f"id-{dtype}", [item], outputs=[triton.InferRequestedOutput("y")])
    for found in (answer, wanted):
        got = found.as_numpy("y")
        assert got.shape == sent.shape
        assert [v.decode() if isinstance(v, bytes) else v for v in got.ravel()] == sent.ravel().tolist()
    assert answer.get_response().id == "mine"


def test_triton_s_client_asks_about_the_server(served: Served) -> None:
    """Health, readiness and metadata are those of HTTP."""
    with triton.InferenceServerClient(served.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("id-int8")
        assert client.get_server_metadata().name == "infer"
        found = client.get_model_metadata("id-int8", as_json=True)
    expected = served.get("/v2/models/id-int8").json()
    for kind in ("inputs", "outputs"):
        for tensor in found[kind]:
            tensor["shape"] = [int(size) for size in tensor["shape"]]
    assert found == expected


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float16"])
def test_typed_values_are_answered_in_kind(channel: grpc.Channel, dtype: str) -> None:
    """As a list of values, in the field that the protocol has for them."""
    sent = values_of(dtype)
    datatype = np_to_triton_dtype(sent.dtype)
    field, _ = _CONTENTS[datatype]
    values = [v.encode() if isinstance(v, str) else v for v in sent.ravel().tolist()]
    item = {"name": "x", "datatype": datatype, "shape": sent.shape, "contents": {field: values}}
    answer = call(channel, "ModelInfer", request(f"id-{dtype}", item))
    (output,) = answer.outputs
    assert (output.name, output.datatype, tuple(output.shape)) == ("y", datatype, sent.shape)
    assert list(getattr(output.contents, field)) == values
    assert not answer.raw_output_contents


X = {"name": "x", "datatype": "FP32", "shape": (1, 2)}
TWO = np.ones(2, np.float32).tobytes()


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        (request("absent"), "NOT_FOUND", "no model 'absent'"),
        (request("id-float32", model_version="7"), "NOT_FOUND", "no version '7'"),
        (request("id-float32"), "INVALID_ARGUMENT", "x"),
        (request("id-float32", {**X}), "INVALID_ARGUMENT", "takes 2 values, but has 0"),
        (request("id-float32", {**X}, raw=(TWO, TWO)), "INVALID_ARGUMENT", "2 entries for 1 inputs"),
        (request("id-float32", {**X}, raw=(TWO + b"1",)), "INVALID_ARGUMENT", "takes 8 bytes, but 9 came"),
        (
            request("id-float32", {**X, "contents": {"fp32_contents": [1, 2]}}, raw=(TWO,)),
            "INVALID_ARGUMENT",
            "give one",
        ),
        (request("id-float32", {**X}, {**X}, raw=(TWO, TWO)), "INVALID_ARGUMENT", "given twice"),
        (
            request("id-float32", {**X, "contents": {"int_contents": [1, 2]}}),
            "INVALID_ARGUMENT",
            "belong in 'fp32_contents'",
        ),
        (
            request("id-int8", {**X, "datatype": "INT8", "contents": {"int_contents": [1, 200]}}),
            "INVALID_ARGUMENT",
            "must be values of INT8",
        ),
        (
            request("id-float16", {**X, "datatype": "FP16", "contents": {"fp32_contents": [1, 2]}}),
            "INVALID_ARGUMENT",
            "no typed form",
        ),
        (request("id-float32", {**X, "datatype": "FP8"}, raw=(TWO,)), "INVALID_ARGUMENT", "must be one of"),
        (request("id-float32", {**X, "shape": (-1, 2)}, raw=(TWO,)), "INVALID_ARGUMENT", "0 or more"),
        (request("id-float32", {**X, "shape": (2**60, 2)}, raw=(TWO,)), "INVALID_ARGUMENT", "elements"),
        (request("id-float32", {**X, "shape": (1,) * 65}, raw=(TWO,)), "INVALID_ARGUMENT", "65 dims"),
        (request("id-float32", {**X}, raw=(TWO,), id="i" * 2000), "INVALID_ARGUMENT", "2000 characters"),
        (
            request("id-float32", {**X}, raw=(TWO,), outputs=[{"name": "z"}]),
            "INVALID_ARGUMENT",
            "no output 'z'",
        ),
        (
            request("id-float32", {**X}, raw=(TWO,), parameters={"timeout": {"int64_param": -1}}),
            "INVALID_ARGUMENT",
            "microseconds above 0",
        ),
    ],
)
def test_what_is_wrong_is_said(channel: grpc.Channel, message: Any, code: str, said: str) -> None:
    """With the protocol's code, and the server goes on."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", message)
    assert caught.value.code().name == code
    assert said in caught.value.details()
    assert call(channel, "ServerReady").ready


def slow_message(count: int, **more: Any) -> Any:
    item = {"name": "n", "datatype": "INT64", "shape": (1,), "contents": {"int64_contents": [count]}}
    return request("slow", item, **more)


LATE, GONE = (f'infer_requests_total{{model="slow",outcome="{outcome}"' for outcome in ("late", "gone"))


def figure(served: Served, name: str) -> float:
    """Of the slow model, from the server's metrics."""
    lines = served.get("/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith(name) and 'model="slow"' in line
    )


def test_late_cancelled_and_crowded_out(served: Served, channel: grpc.Channel) -> None:
    """A deadline of the client or in the request, and a full queue: each has its code, and what is refused
    is told when to come again. Both deadlines count as late."""
    late = figure(served, LATE)
    for options in (
        {"message": slow_message(2_000, parameters={"timeout": {"int64_param": 50_000}})},
        {"message": slow_message(2_000), "timeout": 0.1},
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelInfer", **options)
        assert caught.value.code().name == "DEADLINE_EXCEEDED"
    until(lambda: figure(served, LATE) == late + 2)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(call, channel, "ModelInfer", slow_message(400)) for _ in range(8)]
        errors = [error for each in asked if (error := each.exception()) is not None]
    assert errors
    for error in errors:
        assert isinstance(error, grpc.RpcError)
        assert error.code().name == "RESOURCE_EXHAUSTED"
        assert dict(error.trailing_metadata())["retry-after"] == "1"


def test_each_call_is_logged_and_counted(served: Served, channel: grpc.Channel) -> None:
    """With its id and trace, as over HTTP."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("x-request-id", "mine-1"), ("traceparent", f"00-{trace}-b7ad6b7169203331-01"))
    call(channel, "ModelInfer", request("id-float32", {**X}, raw=(TWO,)), metadata=metadata)
    (line,) = [line for line in served.lines() if line.get("request_id") == "mine-1"]
    assert (line["method"], line["endpoint"], line["status"]) == ("gRPC", "ModelInfer", "OK")
    assert (line["model"], line["version"], line["trace_id"]) == ("id-float32", "1", trace)
    assert line["bytes_in"] > 8 < line["bytes_out"]
    assert 'endpoint="grpc ModelInfer",status="OK"' in served.get("/metrics").text


@pytest.mark.slow
def test_tokens_workers_and_the_end(tmp_path: Path) -> None:
    """Strangers see health alone; two workers answer at one port; SIGTERM lets what is under way end."""
    (tmp_path / "tokens").write_text(TOKEN + "\n", encoding="utf-8")
    models = (write(tmp_path, identity("float32"), "net.onnx"), slow(tmp_path))
    options = ("--grpc-port", "0", "--workers", "2", "--token-file", tmp_path / "tokens")
    known = (("authorization", f"Bearer {TOKEN}"),)
    with serving(tmp_path, *models, *options) as served, ThreadPoolExecutor(8) as pool:
        with grpc.insecure_channel(served.grpc) as channel:
            until(lambda: call(channel, "ServerReady").ready)  # this worker may be the later one
            for metadata in ((), (("authorization", "Bearer of-another-server"),)):
                with pytest.raises(grpc.RpcError) as caught:
                    call(channel, "ServerMetadata", metadata=metadata)
                assert caught.value.code().name == "UNAUTHENTICATED"
            call(channel, "ModelInfer", request("net", {**X}, raw=(TWO,)), metadata=known)
            asked = [
                pool.submit(call, channel, "ModelInfer", slow_message(200), metadata=known)
                for _ in range(8)
            ]
            headers = {"authorization": f"Bearer {TOKEN}"}
            served.client.headers.update(headers)
            wait_until_waiting(served, 8)  # what comes later is refused
            assert served.stop() == 0
            assert {each.result().outputs[0].name for each in asked} == {"y"}


def test_what_cannot_answer_now_and_what_nobody_foresaw(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that cannot be loaded is UNAVAILABLE, the others answer; an error of ours is INTERNAL, and
    what it was stays in the log."""
    bad = make_artifact(tmp_path / "bad.infer")
    edit_manifest(bad, lambda data: data["inputs"][0].update(name="other"))
    net = write(tmp_path, identity("float32"), "net.onnx")
    with (
        serving(tmp_path, bad, net, "--lazy", "--grpc-port", "0") as served,
        grpc.insecure_channel(served.grpc) as channel,
    ):
        other = {"name": "other", "datatype": "FP32", "shape": [1, 10]}
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelInfer", request("bad", other, raw=(bytes(40),)))
        assert caught.value.code().name == "UNAVAILABLE"
        assert caught.value.details() == "the model 'bad' could not be loaded; the server's log says why"
        assert call(channel, "ModelInfer", request("net", {**X}, raw=(TWO,))).outputs[0].name == "y"
        asked = MESSAGES["ModelReadyRequest"](name="bad")
        assert not call(channel, "ModelReady", asked).ready
    with caplog.at_level("ERROR", logger="infer.server"):
        code, text = _told(RuntimeError("a path and a secret"), "mine-2")
    assert (code.name, text) == ("INTERNAL", "the server failed; its log says more under mine-2")
    assert "a path and a secret" in caplog.text


def test_a_body_may_have_any_time(tmp_path: Path) -> None:
    """More milliseconds than the library counts are no limit."""
    net = write(tmp_path, identity("float32"), "net.onnx")
    options = ("--grpc-port", "0", "--body-timeout", "999999999h")
    with serving(tmp_path, net, *options) as served, grpc.insecure_channel(served.grpc) as channel:
        assert call(channel, "ServerReady").ready


@pytest.mark.slow
def test_each_worker_takes_calls(tmp_path: Path) -> None:
    """The system deals connections out to all that listen at the port."""
    net = write(tmp_path, identity("float32"), "net.onnx")
    own = (("grpc.use_local_subchannel_pool", 1),)  # a connection for each channel
    with (
        serving(tmp_path, net, "--grpc-port", "0", "--workers", "2") as served,
        contextlib.ExitStack() as stack,
    ):
        port = int(served.grpc.rpartition(":")[2])

        def at_port(status: str) -> list[int]:
            """How many sockets each worker has there."""
            workers = psutil.Process(served.process.pid).children()
            found = [
                sum((each.status, each.laddr.port) == (status, port) for each in worker.net_connections())
                for worker in workers
            ]
            return [count for count in found if count]

        until(lambda: len(at_port("LISTEN")) == 2)
        for _ in range(32):
            channel = stack.enter_context(grpc.insecure_channel(served.grpc, options=own))
            call(channel, "ModelInfer", request("net", {**X}, raw=(TWO,)))
        taken = at_port("ESTABLISHED")
        assert (sum(taken), len(taken)) == (32, 2)


@given(
    st.sampled_from(sorted(_CONTENTS)).flatmap(
        lambda datatype: st.tuples(
            st.just(datatype),
            st_numpy.arrays(
                np.dtype(_CONTENTS[datatype][1]) if datatype != "BYTES" else np.dtype("int8"),
                st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
            ),
        )
    )
)
def test_typed_and_raw_say_the_same(drawn: tuple[str, np.ndarray]) -> None:
    """A request parsed from either form has the same feeds, and an answer in that form has them again."""
    datatype, array = drawn
    if datatype == "BYTES":
        array = np.array([f"t{value}" for value in array.ravel()], object).reshape(array.shape)
    outputs = {"x": array}
    for raw in (False, True):
        answer = dump(outputs, InferRequest(None, {}, (), raw, None), "m", "1")
        again = MESSAGES["ModelInferRequest"](raw_input_contents=answer.raw_output_contents)
        for output in answer.outputs:
            item = again.inputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
            if not (raw and answer.raw_output_contents):
                item.contents.CopyFrom(output.contents)
        found = parse(again).feeds["x"]
        assert found.shape == array.shape
        expected = [v.encode() if isinstance(v, str) else v for v in array.ravel().tolist()]
        np.testing.assert_array_equal(np.array(found.ravel().tolist()), np.array(expected))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_request_are_refused(data: bytes) -> None:
    """With our error, never otherwise."""
    with contextlib.suppress(InputError):
        parse(read("ModelInferRequest", data))


def test_what_the_library_refuses(served: Served, channel: grpc.Channel) -> None:
    """Compressed messages, which it would inflate without a bound; ones above --max-body; and bytes that
    are no message, which are told and counted as ours."""
    ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    large = request("id-float32", {**X, "shape": (1, 2**22)}, raw=(bytes(2**24),)).SerializeToString()
    before = memory(served)
    for sent, options, code in (
        (b"\x0a\xff", {}, "INVALID_ARGUMENT"),
        (large, {"compression": grpc.Compression.Gzip}, "UNIMPLEMENTED"),
        (large, {}, "RESOURCE_EXHAUSTED"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask(sent, **options)
        assert caught.value.code().name == code
    assert memory(served) - before < 2**25
    assert 'endpoint="grpc ModelInfer",status="INVALID_ARGUMENT"' in served.get("/metrics").text
    assert served.lines()  # all of them JSON, whatever the library has to say


def memory(served: Served) -> int:
    return int(psutil.Process(served.process.pid).memory_info().rss)


def test_who_goes_away_is_not_answered(served: Served, channel: grpc.Channel) -> None:
    """A request that waits behind a slow one and is cancelled is not run."""
    runs, gone = figure(served, "infer_runs_total"), figure(served, GONE)
    ask = channel.unary_unary(
        f"/{SERVICE}/ModelInfer", request_serializer=lambda asked: asked.SerializeToString()
    )
    first = ask.future(slow_message(1500))
    wait_until_waiting(served, 1)
    second = ask.future(slow_message(2))
    wait_until_waiting(served, 2)
    second.cancel()
    first.result()
    assert figure(served, GONE) == gone + 1
    assert figure(served, "infer_runs_total") == runs + 1


def test_a_port_that_is_taken_is_not_shared(served: Served, tmp_path: Path) -> None:
    """With the option that lets workers share a port, two servers would each get some of the requests."""
    model = write(tmp_path, identity("float32"), "net.onnx")
    port = served.grpc.rpartition(":")[2]
    done = infer_command("serve", str(model), "--port", "0", "--grpc-port", port)
    assert done.code == 1
    assert "give another --host or --grpc-port" in done.err
