"""Refusals before the application hears of a request: the same answers, and only to what is plain."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infer.server.admission import Gate
from infer.server.door import Door
from infer.server.models import Models
from infer.server.options import ServerOptions
from infer.server.service import Service
from tests.serving import Served, serving, slow, slow_request, wait_until_waiting
from tests.tiny import identity, write
from tests.waiting import until

PATHS = ("/v2/models/net/infer", "/v2/models/net/versions/1/infer", "/v1/models/net:predict")


def request(path: str = PATHS[0], body: bytes = b"{}", **headers: str) -> bytes:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = {"host": "localhost", "content-length": str(len(body)), **given}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Of one model, `net`, for which as many wait as may."""
    path = write(tmp_path_factory.mktemp("door"), identity("float32"), "net.onnx")
    options = ServerOptions(max_waiting=2)
    found = Service(Models([path], options), options)
    next(iter(found.models)).waiting = 2
    yield found
    found.close()


def refused(service: Service, data: bytes) -> bytes | None:
    async def ask() -> bytes | None:
        return Door(service).refusal(data, [(b"date", b"today")])

    return asyncio.run(ask())


@pytest.mark.parametrize("path", PATHS)
def test_plain_requests_are_refused(service: Service, path: str) -> None:
    """By each of the paths that ask a model; not while there is room, nor when the server leaves, which has
    more to say."""
    answer = refused(service, request(path, x_request_id="mine"))
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\ndate: today\r\n")
    assert {b"retry-after: 1", b"x-request-id: mine"} <= set(head.split(b"\r\n"))
    assert body == b'{"error":"2 requests wait for \'net\' already; try again later"}'
    model = next(iter(service.models))
    model.waiting = 1
    assert refused(service, request(path)) is None
    model.waiting = 2
    service.leaving = True
    assert refused(service, request(path)) is None
    service.leaving = False


@pytest.mark.parametrize(
    "data",
    [
        request("/v2/models/other/infer"),
        request("/v2/models/net/versions/2/infer"),
        request("/v2/models/net/infer?x=1"),
        request("/v2/models/n%65t/infer"),
        request("/v2/models/net:predict"),
        request("/v1/models/net/infer"),
        request(host="evil.example"),
        request(origin="http://evil.example"),
        request(origin="http://["),
        request(connection="close"),
        request(expect="100-continue"),
        request(transfer_encoding="chunked"),
        request(content_length="1"),
        request(content_length="3"),
        request(content_length="+2"),
        request(Content_Length="2"),  # twice
        request(Host="localhost"),
        request(x="a\0b"),
        request(x="a\xffb"),
        request(x="y" * 20_000),
        request().replace(b"POST", b"GET"),
        request().replace(b"HTTP/1.1", b"HTTP/1.0"),
        request().replace(b"host:", b"host :"),
        request().replace(b"host:", b" host:"),
        request().replace(b"\r\n", b"\n"),
        request() + request(),
        request()[:-1],
        request()[:30],
        b"",
    ],
)
def test_all_else_goes_the_long_way(service: Service, data: bytes) -> None:
    """Strangers, other models, and whatever parsers may read differently."""
    assert refused(service, data) is None


def test_who_needs_a_token_is_not_told_without_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a model has much to do is for those to know who may ask it."""
    monkeypatch.setattr(service, "gate", Gate(ServerOptions(tokens=("correct-horse-battery",))))
    assert refused(service, request()) is None
    assert refused(service, request(authorization="Bearer wrong-horse-battery")) is None
    assert refused(service, request(authorization="Bearer correct-horse-battery")) is not None


LINES = (
    *(b"a: b", b"accept: */*", b"x:\ty  ", b"x:", b"X-Request-Id: 1", b"connection: keep-alive"),
    *(b"connection: close", b"connection: upgrade", b"content-length: 2", b"Content-Length: 0"),
    *(
        b"transfer-encoding: chunked",
        b"Transfer-Encoding:identity",
        b"host: localhost",
        b"expect: 100-continue",
    ),
    *(b"x : y", b" x: y", b"x: \x80", b"x: \0", b"x: \r", b"x_y: 1", b": x", b"", b"x"),
)

BAD = {line.lower() for line in LINES[6:]}


@given(
    st.lists(st.sampled_from(LINES), max_size=3),
    st.integers(0, 3),
    st.sampled_from((b"", b"{}", b"{}\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")),
    st.sampled_from((b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r")),
)
@example([b"accept: */*", b"connection: keep-alive"], 2, b"{}", b"\r\n")
def test_what_is_refused_is_one_whole_request(
    service: Service, lines: list[bytes], size: int, body: bytes, end: bytes
) -> None:
    """To h11, too, which reads what comes next: nothing is left over, and nothing is missing, whatever
    headers there are, whatever length they tell, and however lines end."""
    head = [b"POST /v2/models/net/infer HTTP/1.1", b"host: localhost", b"content-length: %d" % size, *lines]
    data = end.join((*head, b"", body))
    plain = not {line.lower() for line in lines} & BAD and size == len(body) and end == b"\r\n"
    if refused(service, data) is None:
        assert not plain
        return
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    events = []
    while not isinstance(event := parser.next_event(), (h11.EndOfMessage, type(h11.NEED_DATA))):
        events.append(event)
    assert isinstance(events[0], h11.Request)
    assert isinstance(event, h11.EndOfMessage)
    assert parser.trailing_data == (b"", False)


def answer(sock: socket.socket, parts: tuple[bytes, ...]) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status line, headers, and body of the answer to a request that is sent in parts."""
    for part in parts:
        sock.sendall(part)
        time.sleep(0.01 * (len(parts) > 1))
    found = b""
    while b"\r\n\r\n" not in found:
        found += sock.recv(65536)
    head, _, body = found.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = {name: value for name, _, value in (line.partition(b": ") for line in lines)}
    while len(body) < int(headers[b"content-length"]):
        body += sock.recv(65536)
    return status, headers, body


def metric(served: Served, start: str) -> float:
    lines = served.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(start))


def test_both_ways_answer_alike(tmp_path: Path) -> None:
    """By the door, and by the application, which gets what comes in two parts: the same answers, and the
    same counts. The connection stays, and is answered once there is room. The log has a line of the one,
    and the number of the others."""

    with serving(tmp_path, slow(tmp_path), "--queue", "1", "--json-logs") as served:
        done = threading.Thread(
            target=served.post, args=("/v2/models/slow/infer",), kwargs={"json": slow_request(1000)}
        )
        done.start()
        wait_until_waiting(served, 1)
        whole = request("/v2/models/slow/infer", x_request_id="mine")
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
            door, again, long = (
                answer(sock, parts) for parts in ((whole,), (whole,), (whole[:-1], whole[-1:]))
            )
            for found in (door, again, long):
                del found[1][b"date"]
            assert door == again == long
            assert door[0] == b"HTTP/1.1 503 Service Unavailable"
            assert metric(served, "infer_requests_total{") == metric(
                served, 'infer_requests_total{model="slow",outcome="refused",version="1"}'
            )
            assert metric(served, 'infer_requests_total{model="slow",outcome="refused",version="1"}') == 3
            assert metric(served, 'infer_http_responses_total{endpoint="infer_model",status="503"}') == 3
            until(lambda: any("refused within" in line["message"] for line in served.lines()))
            lines = [line for line in served.lines() if line.get("status") == 503]
            assert [line["request_id"] for line in lines] == ["mine"]
            told = [line["message"] for line in served.lines() if "refused within" in line["message"]]
            assert told == ["requests for 'slow' refused within 1 s, because too many wait: 2"]
            done.join()
            status, _, _ = answer(sock, (whole,))  # not a good one, but it is looked at
            assert status == b"HTTP/1.1 400 Bad Request"
